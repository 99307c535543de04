"""That each rule of the architecture can be broken: planted modules, and what is found in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent

import pytest

from tests.support.sources import (
    HARD_LIMITS,
    LIMITS,
    Source,
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
from tests.test_architecture import CALLED_IN, LEVEL_OF, ONLY_IN

Plant = Callable[[str, str], Source]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Write a module of a package like ours, and read it as the rules do."""

    def write(name: str, text: str) -> Source:
        path = tmp_path / "pgsignals" / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), "utf-8")
        return Source(path, tmp_path / "pgsignals", set(LEVEL_OF))

    return write


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pgsignals.reactor", {"reactor"}),
        ("from pgsignals.reactor import Reactor", {"reactor"}),
        ("from pgsignals import reactor", {"reactor"}),
        ("import pgsignals", {"__init__"}),
        ("from pgsignals import Reactor", {"__init__"}),
        ("from pgsignals.cli.run import run", {"cli.run"}),
        ("from pgsignals.unlisted import thing", {"unlisted"}),
        ("def late():\n    from pgsignals.reactor import Reactor", {"reactor"}),
        ("from pgsignals.errors import Error", set()),
    ],
)
def test_import_from_above_is_seen(plant: Plant, text: str, found: set[str]) -> None:
    source = plant("_pure.names", text)

    assert upward(source, LEVEL_OF, source.imports) == found


def test_relative_import_is_seen(plant: Plant) -> None:
    assert plant("_pure.names", "from . import values").has_relative_import


@pytest.mark.parametrize("test", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_import_for_types_alone_is_seen_and_told_apart(plant: Plant, test: str) -> None:
    text = f"""
        if {test}:
            from pgsignals.reactor import Reactor
        else:
            from pgsignals.signals import channel
    """
    source = plant("_pure.names", text)

    assert upward(source, LEVEL_OF, source.type_imports) == {"reactor"}
    assert upward(source, LEVEL_OF, source.imports) == {"signals"}


@pytest.mark.parametrize("module", sorted(ONLY_IN))
def test_reserved_import_is_seen(plant: Plant, module: str) -> None:
    source = plant("_pure.names", f"if TYPE_CHECKING:\n    from {module}.part import name")

    assert reserved(source.foreign_imports, ONLY_IN, source.name) == {module}


def test_reserved_import_is_allowed_in_the_whole_of_a_room_and_not_in_its_namesakes() -> None:
    assert reserved({"psycopg"}, ONLY_IN, "_wire.anything") == set()
    assert reserved({"psycopg"}, ONLY_IN, "_wired") == {"psycopg"}


@pytest.mark.parametrize("call", sorted(CALLED_IN))
def test_reserved_call_is_seen(plant: Plant, call: str) -> None:
    source = plant("_pure.names", f"{call}('x')")

    assert reserved(source.calls, CALLED_IN, source.name) == {call}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import threading", {"threading"}),
        ("from time import monotonic", {"time"}),
        ("import socket", {"socket"}),
        ("import os.path", {"os"}),
        ("import selectors", {"selectors"}),
        ("from queue import SimpleQueue", {"queue"}),
        ("import random\nrandom.random()", {"random.random"}),
        ("import random\nrandom.choice([1])", {"random.choice"}),
        ("from random import uniform", {"random.uniform"}),
        ("import random\nrandom.Random(1).random()", set()),
        ("from datetime import datetime\ndatetime.now()", {"datetime.now"}),
        ("import datetime\ndatetime.datetime.now()", {"datetime.datetime.now"}),
        ("from datetime import datetime\ndatetime.fromtimestamp(0)", set()),
        ("open('file')", {"open"}),
        ("def wait(rng, now):\n    return now + rng.random()", set()),
    ],
)
def test_impurity_is_seen(plant: Plant, text: str, found: set[str]) -> None:
    assert impurities(plant("_pure.names", text)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("reactor._engine.stop()", {"_engine"}),
        ("def f(link): return link.database._custody.lend()", {"_custody"}),
        ("class A:\n    def f(self): return self._mine", set()),
        ("class A:\n    def f(self, other): self._mine = other._mine", set()),
        ("class A:\n    __slots__ = ('_mine',)\ndef f(other): return other._mine", set()),
        ("notification._asdict()", set()),
        ("thing.__class__", set()),
    ],
)
def test_private_attribute_of_another_module_is_seen(
    plant: Plant, text: str, found: set[str]
) -> None:
    assert reached_into(plant("_pure.names", text)) == found


@pytest.mark.parametrize(
    ("docstring", "good"),
    [
        ("", False),
        ("``pgsignals run``.", False),
        ("The states of a link", False),
        ("The states of a link.", True),
        ("The states\nof a link.\n\nMore of it", True),
    ],
)
def test_sentence_is_told_from_less(docstring: str, good: bool) -> None:
    assert is_sentence(docstring) == good


PROTOCOL = """
    class Host(typing.Protocol):
        depth: int
        def notify(self): ...

    class Generic(Protocol[T]): ...
"""


def test_protocol_is_seen_with_its_members(plant: Plant) -> None:
    classes = plant("database", PROTOCOL).classes

    assert classes["Host"].is_protocol
    assert classes["Generic"].is_protocol
    assert classes["Host"].members == {"depth", "notify"}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("class Life:\n    def notify(self): self.depth = 1", True),
        ("class Life:\n    depth = 1\n    def notify(self): pass", True),
        ("class A:\n    depth = 1\nclass B(A):\n    def notify(self): pass", True),
        ("class Life:\n    def notify(self): pass", False),
        ("class A:\n    depth = 1\nclass B:\n    def notify(self): pass", False),
    ],
)
def test_class_that_does_not_implement_a_protocol_is_seen(
    plant: Plant, text: str, answer: bool
) -> None:
    host = plant("database", PROTOCOL).classes["Host"]

    assert implements(plant("_engine.life", text), host) == answer


def test_attributes_are_those_that_are_assigned_declared_or_slots(plant: Plant) -> None:
    text = """
        class Link:
            __slots__ = (*OTHERS, "slot", "_state")
            KIND = "link"
            declared: int

            def __init__(this):
                this.plain = this.chained = 1
                this.typed: int = 2
                (this.one, this.two) = 3, 4
                this.count += 1
                for this.loop in (): pass
                with open() as this.file: pass
                other.foreign = 1
                print(this.read)

            @property
            def state(this): return this._state
    """
    shape = plant("_pure.names", text).classes["Link"]

    assert shape.methods == {"__init__", "state"}
    assert shape.attributes == {
        *("slot", "_state", "KIND", "declared", "plain", "chained", "typed", "one", "two"),
        *("count", "loop", "file"),
    }


def test_length_of_a_function_leaves_out_its_docstring(plant: Plant) -> None:
    text = """
        class A:
            def f(self):
                '''One.

                Two.
                '''
                return 1
    """

    assert plant("_pure.names", text).functions == {"A.f": 2}


def big(figure: int) -> dict[str, str]:
    """A module for each limit, which has *figure* of that kind."""
    lines = "\n".join(["x = 1"] * figure)
    methods = "\n".join(f"def m{number}(self): pass" for number in range(figure))
    attributes = "\n".join(f"a{number}: int" for number in range(figure))
    return {
        "lines": lines,
        "attributes": f"class Big:\n{indent(attributes, '    ')}",
        "methods": f"class Big:\n{indent(methods, '    ')}",
        "functions": f"def big():\n{indent(lines, '    ')}"[: -len("\n    x = 1")],
    }


NAMES = {
    "lines": "_pure/names.py",
    "attributes": "_pure.names.Big",
    "methods": "_pure.names.Big",
    "functions": "_pure.names.big",
}


@pytest.mark.parametrize("kind", sorted(LIMITS))
def test_what_exceeds_a_limit_is_seen_and_may_only_shrink(plant: Plant, kind: str) -> None:
    name, limit = NAMES[kind], LIMITS[kind]
    none: dict[str, dict[str, int]] = {one: {} for one in LIMITS}

    def found(figure: int) -> dict[str, dict[str, int]]:
        return oversized([plant("_pure.names", big(figure)[kind])])

    assert found(limit)[kind] == {}
    assert found(limit + 1)[kind] == {name: limit + 1}
    assert len(grown(found(limit + 1), none)) == 1
    entry = none | {kind: {name: limit + 10}}
    assert grown(found(limit + 10), entry) == []
    assert len(grown(found(limit + 11), entry)) == 1
    assert loose(found(limit + 10), entry) == []
    assert len(loose(found(limit + 10), none | {kind: {name: 2 * limit}})) == 1
    assert len(loose(found(limit), entry)) == 1


@pytest.mark.parametrize("kind", sorted(HARD_LIMITS))
def test_what_exceeds_a_hard_limit_is_seen_whatever_its_entry(plant: Plant, kind: str) -> None:
    limit = HARD_LIMITS[kind]

    assert excessive(oversized([plant("_pure.names", big(limit)[kind])])) == set()
    assert excessive(oversized([plant("_pure.names", big(limit + 1)[kind])])) == {NAMES[kind]}
