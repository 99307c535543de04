"""What one module of the package imports, calls, declares and measures, read off its text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

TYPE_CHECKING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Shape:
    """A class, as its text shows it."""

    bases: set[str]
    methods: set[str]
    attributes: set[str]
    """Every ``self.name`` that a method assigns, slots, and names assigned in the class's body."""

    @property
    def is_protocol(self) -> bool:
        return any(base.partition("[")[0] in ("Protocol", "typing.Protocol") for base in self.bases)

    @property
    def members(self) -> set[str]:
        return self.methods | self.attributes


@dataclass
class Source:
    """One module of the package *root*; names of the package's own modules lack its name."""

    path: Path
    root: Path
    ours: set[str] = field(default_factory=set)
    """The names of all modules, to tell an imported module from an imported name."""

    def __post_init__(self) -> None:
        parts = self.path.relative_to(self.root).with_suffix("").parts
        self.name = ".".join(parts).removesuffix(".__init__")
        self.file = self.path.relative_to(self.root).as_posix()
        text = self.path.read_text("utf-8")
        self.tree = ast.parse(text, self.path.name)
        self.lines = len(text.splitlines())
        self.docstring = ast.get_docstring(self.tree) or ""
        self.has_relative_import = False
        self.imports: set[str] = set()
        self.type_imports: set[str] = set()
        self.calls: set[str] = set()
        for node, for_types in _walk(self.tree):
            imports = self.type_imports if for_types else self.imports
            if isinstance(node, ast.Import):
                imports.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                self._take_import_from(node, imports)
            elif isinstance(node, ast.Call):
                self.calls.add(ast.unparse(node.func))
        self.classes = dict(_classes(self.tree))
        self.functions = dict(_functions(self.tree))

    def _take_import_from(self, node: ast.ImportFrom, imports: set[str]) -> None:
        self.has_relative_import |= node.level > 0
        top = self.root.name
        names = {alias.name for alias in node.names}
        modules = {n for n in names if f"{node.module}.{n}".removeprefix(f"{top}.") in self.ours}
        imports.update(f"{node.module}.{name}" for name in modules)
        if names - modules:
            imports.add(node.module or "")
        self.calls.update(f"{node.module}.{name}" for name in names)

    def own(self, imports: Iterable[str]) -> set[str]:
        """Those *imports* that are of this package; the package itself is ``__init__``."""
        names = [name.partition(".") for name in imports]
        return {rest or "__init__" for top, _, rest in names if top == self.root.name}

    @property
    def foreign_imports(self) -> set[str]:
        """Packages that it imports, for whatever purpose."""
        return {name.partition(".")[0] for name in self.imports | self.type_imports}


def _walk(node: ast.AST, for_types: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether only type checkers see it."""
    yield node, for_types
    if isinstance(node, ast.If) and ast.unparse(node.test) in TYPE_CHECKING:
        for statement in node.body:
            yield from _walk(statement, True)
        for statement in node.orelse:
            yield from _walk(statement, for_types)
        return
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, for_types)


def _classes(tree: ast.Module) -> Iterator[tuple[str, Shape]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            functions = [one for one in node.body if isinstance(one, Function)]
            attributes = _assigned_in(node.body)
            for function in functions:
                attributes |= _assigned_to_self(function)
            methods = {function.name for function in functions}
            bases = {ast.unparse(base) for base in node.bases}
            yield node.name, Shape(bases, methods, attributes - methods)


def _assigned_in(body: list[ast.stmt]) -> set[str]:
    """Names that the body of a class assigns or declares, and its slots."""
    names: set[str] = set()
    for statement in body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        found = {one.id for target in targets for one in ast.walk(target) if _is_name(one)}
        if "__slots__" in found:
            found = {str(one.value) for one in ast.walk(statement) if _is_text(one)}
        names |= found
    return names


def _is_name(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)


def _is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _assigned_to_self(function: Function) -> set[str]:
    arguments = [*function.args.posonlyargs, *function.args.args]
    if not arguments:
        return set()
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == arguments[0].arg
    }


def _functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, int]]:
    """Every function with its lines, docstring and decorators left out."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, Function | ast.ClassDef)
        name = f"{within}{child.name}" if isinstance(child, Function | ast.ClassDef) else within
        if isinstance(child, Function):
            assert child.end_lineno is not None
            lines = child.end_lineno - child.lineno + 1
            first = child.body[0]
            if ast.get_docstring(child, clean=False) is not None and first.end_lineno is not None:
                lines -= first.end_lineno - first.lineno + 1
            yield name, lines
        yield from _functions(child, f"{name}." if named else within)


# -- the rules -----------------------------------------------------------------------------------


def upward(source: Source, level_of: dict[str, int], imports: Iterable[str]) -> set[str]:
    """Imports of modules that stand beside or above this one, or nowhere."""
    level = level_of[source.name]
    return {name for name in source.own(imports) if level_of.get(name, level) >= level}


def belongs(name: str, users: Iterable[str]) -> bool:
    """Whether the module *name* is one of *users*, which may be rooms: all that they contain."""
    return any(name == user or name.startswith(f"{user}.") for user in users)


def reserved(used: Iterable[str], reservations: dict[str, set[str]], name: str) -> set[str]:
    """What the module *name* uses though it is reserved for others."""
    forbidden = {one for one, users in reservations.items() if not belongs(name, users)}
    return set(used) & forbidden


IMPURE_MODULES = {
    *("asyncio", "concurrent", "logging", "multiprocessing", "os", "pathlib", "queue", "secrets"),
    *("select", "selectors", "signal", "socket", "ssl", "subprocess", "tempfile", "threading"),
    *("time", "uuid"),
}
IMPURE_CALLS = {"input", "open", "print", "datetime.now", "datetime.utcnow", "date.today"}


def impurities(source: Source) -> set[str]:
    """What a pure module must not use: the outside world, clocks, or the random module itself."""
    found = source.foreign_imports & IMPURE_MODULES
    for call in source.calls:
        short = ".".join(call.split(".")[-2:])
        is_chance = bool(re.fullmatch(r"random\.(?!Random$)\w+", call))
        if is_chance or call in IMPURE_CALLS or short in IMPURE_CALLS:
            found.add(call)
    return found


def reached_into(source: Source) -> set[str]:
    """Private attributes that a module uses of objects of others: those that it neither defines
    nor spells as a string, other than on ``self`` and ``cls``."""
    own, used = {"_asdict", "_fields", "_replace"}, set()  # public, on a NamedTuple
    for node in ast.walk(source.tree):
        if isinstance(node, Function | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Constant):
            own.add(str(node.value))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute):
            if isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif re.match(r"_(?!_)", node.attr) and ast.unparse(node.value) not in ("self", "cls"):
                used.add(node.attr)
    return used - own


def is_sentence(docstring: str) -> bool:
    """Whether a docstring opens with one sentence at least."""
    opening = " ".join(docstring.partition("\n\n")[0].split())
    return len(opening.split()) >= 4 and opening.endswith((".", "::"))


def implements(source: Source, protocol: Shape) -> bool:
    """Whether a class of *source*, with its bases there, has all members of *protocol*."""

    def members(name: str) -> set[str]:
        shape = source.classes.get(name)
        if shape is None:
            return set()
        return shape.members.union(*(members(base.partition("[")[0]) for base in shape.bases))

    return any(protocol.members <= members(name) for name in source.classes)


LIMITS = {"lines": 400, "attributes": 25, "methods": 20, "functions": 60}


def oversized(sources: Iterable[Source]) -> dict[str, dict[str, int]]:
    """What exceeds the limits, with its figure, by the kind of limit."""
    figures: dict[str, dict[str, int]] = {kind: {} for kind in LIMITS}
    for source in sources:
        figures["lines"][source.file] = source.lines
        for name, shape in source.classes.items():
            figures["attributes"][f"{source.name}.{name}"] = len(shape.attributes)
            figures["methods"][f"{source.name}.{name}"] = len(shape.methods)
        for name, lines in source.functions.items():
            figures["functions"][f"{source.name}.{name}"] = lines
    return {
        kind: {name: figure for name, figure in found.items() if figure > LIMITS[kind]}
        for kind, found in figures.items()
    }


#: What nothing may exceed, whatever its entry says.
HARD_LIMITS = {"lines": 500, "attributes": 30}


def excessive(found: dict[str, dict[str, int]]) -> set[str]:
    """What exceeds a hard limit."""
    return {
        name
        for kind, limit in HARD_LIMITS.items()
        for name, figure in found[kind].items()
        if figure > limit
    }


def grown(found: dict[str, dict[str, int]], allowed: dict[str, dict[str, int]]) -> list[str]:
    """What is larger than its entry allows, or too large and has none."""
    return [
        f"{name} has {figure} {kind}, {allowed[kind].get(name, LIMITS[kind])} are allowed"
        for kind, figures in found.items()
        for name, figure in figures.items()
        if figure > allowed[kind].get(name, LIMITS[kind])
    ]


def loose(found: dict[str, dict[str, int]], allowed: dict[str, dict[str, int]]) -> list[str]:
    """Entries that are no longer needed, or more than 5 % too large."""
    return [
        f"lower {name} = {entry} in [{kind}] to {found[kind][name]}"
        if name in found[kind]
        else f"remove {name} from [{kind}]: it is within the limit"
        for kind, entries in allowed.items()
        for name, entry in entries.items()
        if entry > 1.05 * found[kind].get(name, 0)
    ]
