"""Which module may import what, and other rules that span files."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgsignals
from tests.support.sources import (
    Source,
    belongs,
    excessive,
    grown,
    implements,
    impurities,
    is_sentence,
    loose,
    oversized,
    reached_into,
    reserved,
    upward,
)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pgsignals"

# A room imports from the rooms above it only; a module outside of any is a room of its own.
ROOMS = [
    "errors",  # what users catch
    "_pure",  # no socket, thread or clock
    "_runtime",  # what the process does around us
    "embedded",  # a server for tests and demos
    "_wire",  # knows psycopg and sockets
    "manager",
    "database",
    "_durable",  # durable channels on the server
    "_sending",  # what leaves in transactions of the caller's own
    "_sources",  # where notifications come from
    "_dispatch",  # from the backlog to the handlers, and the outcome back
    "signals",
    "_engine",  # one life of a reactor
    "reactor",
    "testing",
    "telemetry",
    "demo",
    "cli",
    "__init__",
    "__main__",
]

# A module imports from the lines above its own only.  A new module needs a place here.
LEVELS: list[set[str]] = [
    {"errors", "_pure", "_runtime", "_wire", "_durable", "_sending"},
    {"_sources", "_dispatch", "_engine"},
    {"_pure.backoff", "_pure.conninfo", "_pure.decode", "_pure.metrics"},
    {"_pure.states.table", "_pure.values"},
    {"_pure.burst", "_pure.names"},
    {"_pure.states.machines"},
    {"_pure.states"},
    {"_pure.phases"},
    {"_pure.publication", "_pure.statements"},
    {"_pure.events", "_pure.lanes", "_pure.publishing"},
    {"_pure.order"},
    {"_runtime.fork", "_runtime.log", "_runtime.program", "_runtime.reentry", "_runtime.shared"},
    {"embedded._processes"},
    {"embedded._binaries"},
    {"embedded"},
    {"_wire.borrowed", "_wire.callers", "_wire.encodings", "_wire.farewell", "_wire.waker"},
    {"_wire.arrivals", "_wire.descriptor", "_wire.hooks", "_wire.notifies", "_wire.results"},
    {"_wire.poller", "_wire.session"},
    {"_wire.opening"},
    {"_wire.access"},
    {"_wire.custody", "_wire.sessions"},
    {"_wire.entries"},
    {"manager"},
    {"database"},
    {"_durable.schema"},
    {"_sending.publish"},
    {"_sources.counters", "_sources.errands", "_sources.reports"},
    {"_sources.intake", "_sources.upkeep"},
    {"_sources.asking"},
    {"_sources.probing"},
    {"_sources.setup"},
    {"_sources.registering"},
    {"_sources.listen"},
    {"_dispatch.checks", "_dispatch.handlers", "_dispatch.handover"},
    {"_dispatch.backlog"},
    {"_dispatch.connected"},
    {"_dispatch.ordered"},
    {"_dispatch.calls"},
    {"_dispatch.workers"},
    {"signals"},
    {"_engine.config", "_engine.ending", "_engine.interest"},
    {"_engine.announcing", "_engine.finishing", "_engine.mailbox"},
    {"_engine.reader"},
    {"_engine.life"},
    {"_engine.engine"},
    {"_engine.foreground"},
    {"reactor"},
    {"testing._forwarding", "testing._waiting"},
    {"testing._handlers", "testing._proxy", "testing._sessions"},
    {"testing._capture"},
    {"testing"},
    {"telemetry"},
    {"demo._shop"},
    {"demo._view"},
    {"demo"},
    {"demo.__main__"},
    {"cli.extras", "cli.terminal"},
    {"cli._findings", "cli._metrics", "cli._watch", "cli.arguments"},
    {"cli._delivery", "cli._notifiers", "cli._screen"},
    {"cli._checks"},
    {"cli.bench", "cli.completion", "cli.demo", "cli.doctor", "cli.listen", "cli.notify"},
    {"cli.run", "cli.schema", "cli.top"},
    {"cli.publish"},
    {"cli"},
    {"__init__"},
    {"__main__"},
]
LEVEL_OF = {module: level for level, modules in enumerate(LEVELS) for module in modules}

# Who may import these and who else may not: modules, or rooms with all that they contain.
ONLY_IN: dict[str, set[str]] = {
    "argparse": {"cli"},
    "blinker": {"_dispatch.ordered"},
    "marshal": set(),
    "opentelemetry": {"telemetry"},
    "pickle": set(),
    "prometheus_client": {"cli._metrics"},
    "psycopg": {"_wire"},
    "rich": {"cli._screen"},
    "select": {"_wire", "cli", "testing._forwarding"},
    "selectors": {"_wire"},
    "socket": {"_wire", "cli._checks", "cli._metrics", "embedded", "testing._forwarding"},
    "yaml": set(),
}

# Rooms and modules that get time, random numbers and the outside world as arguments.
PURE = {"errors", "_pure"}

# Who may call these, and no others may.
CALLED_IN: dict[str, set[str]] = {
    "eval": set(),
    "exec": set(),
    "print": {"cli.arguments", "cli.completion", "cli.publish", "cli.schema", "demo"},
    "time.time": {"_engine.reader"},  # for operators, who compare it with a wall clock
}

# Private attributes that other modules may use, and which modules.
FRIENDS: dict[str, set[str]] = {
    "_SubParsersAction": {"cli.completion"},  # argparse has no public way to list what it knows
    "_access": {"_dispatch", "_engine", "_sources", "cli", "testing"},  # sessions beside a Database
    "_actions": {"cli.completion"},
    "_choices_actions": {"cli.completion"},
    "_custody": {"_engine", "_sources", "cli", "testing"},  # the session of a Database
    "_engine": {"cli", "telemetry", "testing"},  # what runs behind a Reactor
    "_getframe": {"_runtime.reentry", "_wire.opening"},
    "_watcher_of": {"database"},
}

# Types from higher levels that annotations may name, each with the reason.
TYPES_FROM_ABOVE: dict[tuple[str, str], str] = {
    ("_dispatch.handlers", "reactor"): "receivers of `stopped` are given the Reactor",
}

# Calls that go up: each Protocol with the module that implements it, "" for users' classes, and
# the reason why it is not an import.
PROTOCOLS: dict[str, tuple[str, str]] = {
    "_dispatch.calls.Namespace": ("signals", "calls ask who has registered, wherever that is"),
    "_pure.decode.Adapter": ("", "pydantic's TypeAdapter, which need not be installed"),
    "_pure.decode.Dataclass": ("", "any dataclass; the standard library has no type for it"),
    "_pure.decode.Model": ("", "pydantic's BaseModel, which need not be installed"),
    "_pure.lanes.Source": ("_sources.listen", "several kinds of source feed one backlog"),
    "_sources.listen.Events": ("_engine.announcing", "a link reports what happens to it"),
    "_sources.listen.LinkHost": ("_engine.reader", "a link asks the thread that owns its socket"),
    "_sources.upkeep.Host": ("_engine.reader", "a source needs the reader's thread, and helpers"),
    "_wire.custody.Host": ("_engine.life", "a served database passes calls to its reactor"),
    "_wire.custody.Watcher": ("_wire.entries", "a manager learns what no socket shows"),
    "_wire.poller.Line": ("_wire.session", "users may have their own classes watched"),
    "_wire.poller.Watched": ("_sources.listen", "links and databases have sessions, one by one"),
    "manager.Member": ("database", "users may have their own classes watched"),
    "signals.Watcher": ("_engine.engine", "signals notify reactors when handlers change"),
}

# Modules with Protocols of one `__call__`: they only say what a function looks like.
CALLABLES: dict[str, str] = {
    "_dispatch.handlers": "users' handlers, and the decorators that take them",
    "testing._capture": "a fixture of the pytest plugin",
    "testing._handlers": "a fixture of the pytest plugin",
}

# What is larger than the limits today.  Entries may only shrink, and none may be added.
RATCHET = tomllib.loads((ROOT / "tests" / "ratchet.toml").read_text("utf-8"))

MACHINE_PATHS = re.compile(r"(?<![\w.])/[w]ork/|\.\./[s]hared")


SOURCES = [Source(path, PACKAGE, set(LEVEL_OF)) for path in sorted(PACKAGE.rglob("*.py"))]
each_module = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


@each_module
def test_module_imports_from_lower_levels_only(source: Source) -> None:
    assert source.name in LEVEL_OF, f"give {source.name} a level"

    assert not source.has_relative_import
    assert upward(source, LEVEL_OF, source.imports) == set()


def test_levels_are_in_the_order_of_the_rooms() -> None:
    packages = {room for room in ROOMS if any(name.startswith(f"{room}.") for name in LEVEL_OF)}
    rooms = [
        ROOMS.index(name.partition(".")[0])
        for modules in LEVELS
        for name in sorted(modules)
        if name not in packages or name in ("cli", "demo", "embedded", "testing")
    ]

    assert rooms == sorted(rooms)


@each_module
def test_only_listed_types_are_imported_from_above(source: Source) -> None:
    allowed = {target for module, target in TYPES_FROM_ABOVE if module == source.name}

    assert upward(source, LEVEL_OF, source.type_imports) == allowed


@each_module
def test_module_imports_nothing_that_is_reserved_for_another(source: Source) -> None:
    assert reserved(source.foreign_imports, ONLY_IN, source.name) == set()


@each_module
def test_module_calls_nothing_that_is_reserved_for_another(source: Source) -> None:
    assert reserved(source.calls, CALLED_IN, source.name) == set()


@each_module
def test_pure_module_knows_neither_sockets_threads_nor_clocks(source: Source) -> None:
    if belongs(source.name, PURE):
        assert impurities(source) == set()


@each_module
def test_private_attributes_are_used_by_friends_alone(source: Source) -> None:
    assert reserved(reached_into(source), FRIENDS, source.name) == set()
    assert reached_into(source) <= set(FRIENDS)


@each_module
def test_module_opens_with_a_sentence(source: Source) -> None:
    assert is_sentence(source.docstring), source.docstring


def test_every_protocol_is_listed_with_its_reason() -> None:
    protocols = {
        f"{source.name}.{name}": shape
        for source in SOURCES
        for name, shape in source.classes.items()
        if shape.is_protocol
    }
    calls = {name for name, shape in protocols.items() if shape.members == {"__call__"}}

    assert set(protocols) - calls == set(PROTOCOLS)
    assert {name.rpartition(".")[0] for name in calls} == set(CALLABLES)


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if PROTOCOLS[name][0]])
def test_protocol_is_implemented_by_the_module_that_the_list_names(protocol: str) -> None:
    module, _, name = protocol.rpartition(".")
    by_name = {source.name: source for source in SOURCES}

    assert implements(by_name[PROTOCOLS[protocol][0]], by_name[module].classes[name])


def test_nothing_outgrows_its_limit() -> None:
    found = oversized(SOURCES)

    assert grown(found, RATCHET) == []
    assert loose(found, RATCHET) == []
    assert excessive(found) == set()


@each_module
def test_loggers_have_names_that_do_not_change_with_a_module(source: Source) -> None:
    text = (PACKAGE / f"{source.name.replace('.', '/')}.py").with_suffix(".py")
    if text.is_file():
        loggers = re.findall(r"(?:getLogger|Log)\((.*?)\)", text.read_text("utf-8"))
        names = {name for name in loggers if name not in ("name", "Adapter")}

        assert names <= {f'"pgsignals{part}"' for part in ("", ".reactor", ".manager", ".run")}


def test_tables_name_only_modules_that_exist() -> None:
    implementers = {module for module, _ in PROTOCOLS.values() if module}
    from_above = {name for names in TYPES_FROM_ABOVE for name in names}
    tables = [set(LEVEL_OF), PURE, implementers, from_above, *FRIENDS.values()]

    assert set().union(*tables, *ONLY_IN.values(), *CALLED_IN.values()) == set(LEVEL_OF)
    assert set(LEVEL_OF) == {source.name for source in SOURCES}


@pytest.mark.parametrize("name", pgsignals.__all__)
def test_public_name_has_a_docstring_of_its_own(name: str) -> None:
    value = getattr(pgsignals, name)

    if not isinstance(value, str):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")  # made by dataclass or NamedTuple


def project_files() -> Iterator[Path]:
    git = ["git", "-c", "safe.directory=*"]  # whoever owns the checkout
    ls_files = [*git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(ls_files, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("needs git to list the project's files")
    names = listing.stdout.decode().rstrip("\0").split("\0")
    return (ROOT / name for name in names if (ROOT / name).is_file())


def test_no_file_names_a_place_outside_the_project() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in project_files()
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]

    assert lines == []
