"""Which module may import what, and other rules that a reader of one file cannot see broken."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pgsignals

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pgsignals"

# A module imports from the lines above its own only.  A new module needs a place here.
LEVELS: list[set[str]] = [
    {"errors", "_pure", "_runtime", "_wire", "_sources", "_dispatch", "_engine"},
    {"_pure.backoff", "_pure.conninfo", "_pure.decode", "_pure.metrics"},
    {"_pure.states", "_pure.values"},
    {"_pure.burst", "_pure.names"},
    {"_pure.statements"},
    {"_pure.lanes"},
    {"_runtime.fork", "_runtime.log", "_runtime.reentry"},
    {"_wire.borrowed", "_wire.encodings", "_wire.waker", "embedded._processes"},
    {"_wire.descriptor", "_wire.hooks", "_wire.notifies", "_wire.results"},
    {"embedded._binaries"},
    {"embedded"},
    {"_wire.session", "manager"},
    {"_wire.opening"},
    {"database"},
    {"_wire.sessions"},
    {"_sources.counters", "_sources.reports"},
    {"_dispatch.backlog", "_dispatch.handlers"},
    {"signals"},
    {"_dispatch.workers"},
    {"_sources.listen"},
    {"_engine.reader"},
    {"_engine.life"},
    {"reactor"},
    {"testing._waiting"},
    {"testing._handlers", "testing._proxy", "testing._sessions"},
    {"testing._capture"},
    {"testing"},
    {"demo._shop", "telemetry"},
    {"demo._view"},
    {"demo"},
    {"demo.__main__"},
    {"cli.extras", "cli.terminal"},
    {"cli._findings", "cli._metrics", "cli._watch", "cli.arguments"},
    {"cli._delivery", "cli._notifiers", "cli._screen"},
    {"cli._checks"},
    {"cli.bench", "cli.completion", "cli.demo", "cli.doctor", "cli.listen", "cli.notify"},
    {"cli.run", "cli.top"},
    {"cli"},
    {"__init__"},
    {"__main__"},
]
LEVEL_OF = {module: level for level, modules in enumerate(LEVELS) for module in modules}
OURS = {f"pgsignals.{module}" for module in LEVEL_OF}

# Who may import these; nobody else does.
ONLY_IN: dict[str, set[str]] = {
    "argparse": {
        "cli",
        *("cli.arguments", "cli.bench", "cli.completion", "cli.demo", "cli.doctor"),
        *("cli.listen", "cli.notify", "cli.run", "cli.top"),
    },
    "blinker": {"signals"},
    "marshal": set(),
    "opentelemetry": {"telemetry"},
    "pickle": set(),
    "prometheus_client": {"cli._metrics"},
    "psycopg": {
        *("_wire.borrowed", "_wire.descriptor", "_wire.encodings", "_wire.hooks"),
        *("_wire.notifies", "_wire.opening", "_wire.results", "_wire.session"),
    },
    "rich": {"cli._screen"},
    "yaml": set(),
}

# Time, chance and the outside world are arguments of these.
PURE = {"errors", *(module for module in LEVEL_OF if module.startswith("_pure"))}
IMPURE = {"os", "queue", "select", "selectors", "socket", "subprocess", "threading", "time"}

# Who may call these; nobody else does.
CALLED_IN: dict[str, set[str]] = {
    "eval": set(),
    "exec": set(),
    "print": {"cli.arguments", "cli.completion", "demo", "demo._view"},
    "time.time": {"_engine.reader"},  # what operators compare with a clock on the wall
}

MACHINE_PATHS = re.compile(r"(?<![\w.])/[w]ork/|\.\./[s]hared")


class Source(ast.NodeVisitor):
    """The imports and calls of one module, save those that only annotations need."""

    def __init__(self, path: Path) -> None:
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        self.name = name.removesuffix(".__init__")
        self.imports: set[str] = set()
        self.calls: set[str] = set()
        self.has_relative_import = False
        self.visit(ast.parse(path.read_text("utf-8"), path.name))

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = []
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.imports.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.has_relative_import |= node.level > 0
        names = {alias.name for alias in node.names}
        modules = {name for name in names if f"{node.module}.{name}" in OURS}
        self.imports.update(f"{node.module}.{name}" for name in modules)
        if names - modules:
            self.imports.add(node.module or "")
        self.calls.update(f"{node.module}.{name}" for name in names)

    def visit_Call(self, node: ast.Call) -> None:
        self.calls.add(ast.unparse(node.func))
        self.generic_visit(node)

    @property
    def own_imports(self) -> set[str]:
        """The modules of this package that it imports; the package itself is `__init__`."""
        names = {name.partition(".") for name in self.imports}
        return {rest or "__init__" for top, _, rest in names if top == "pgsignals"}

    @property
    def foreign_imports(self) -> set[str]:
        return {name.partition(".")[0] for name in self.imports}


SOURCES = [Source(path) for path in sorted(PACKAGE.rglob("*.py"))]
each_module = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)


@each_module
def test_module_imports_from_lower_levels_only(source: Source) -> None:
    assert source.name in LEVEL_OF, f"give {source.name} a level"
    level = LEVEL_OF[source.name]

    assert not source.has_relative_import
    assert {name for name in source.own_imports if LEVEL_OF.get(name, level) >= level} == set()


@each_module
def test_module_imports_nothing_that_is_reserved_for_another(source: Source) -> None:
    reserved = {name for name, users in ONLY_IN.items() if source.name not in users}

    assert source.foreign_imports & reserved == set()


@each_module
def test_module_calls_nothing_that_is_reserved_for_another(source: Source) -> None:
    reserved = {name for name, users in CALLED_IN.items() if source.name not in users}

    assert source.calls & reserved == set()


@each_module
def test_pure_module_knows_neither_sockets_threads_nor_clocks(source: Source) -> None:
    if source.name in PURE:
        assert source.foreign_imports & IMPURE == set()


@each_module
def test_loggers_have_names_that_do_not_change_with_a_module(source: Source) -> None:
    text = (PACKAGE / f"{source.name.replace('.', '/')}.py").with_suffix(".py")
    if text.is_file():
        loggers = re.findall(r"(?:getLogger|Log)\((.*?)\)", text.read_text("utf-8"))
        names = {name for name in loggers if name not in ("name", "Adapter")}

        assert names <= {f'"pgsignals{part}"' for part in ("", ".reactor", ".manager", ".run")}


def test_tables_name_only_modules_that_exist() -> None:
    tables = [set(LEVEL_OF), PURE, *ONLY_IN.values(), *CALLED_IN.values()]

    assert set().union(*tables) == {source.name for source in SOURCES}


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
        pytest.skip("only git can tell the project's files from others beside them")
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
