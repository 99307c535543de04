"""The pages of the documentation: their blocks, their files, and the server that a reader has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pgsignals.embedded import Postgres
from tests.support.admin import Admin

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

FENCED = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)^```$", re.MULTILINE)
#: The first line of a block that is a file, or goes on with one.
NAME = re.compile(r"(?:#|--|<!--) ([\w./]+\.[a-z]+)(?:, continued)?(?: -->)?\n")


class Block(NamedTuple):
    """A fenced block: its language, its text, and the number of the line before the text."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is, or a part of; None for one that is run where it stands."""
        found = NAME.match(self.text)
        return found[1] if found else None


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    source = path.read_text("utf-8")
    return [
        Block(found[1], found[2], source.count("\n", 0, found.start()) + 1)
        for found in FENCED.finditer(source)
    ]


def files(path: Path) -> dict[str, str]:
    """The files that a page shows, by their names."""
    found: dict[str, str] = {}
    for block in blocks(path):
        if block.file:
            found[block.file] = found.get(block.file, "") + block.text
    return found


def write_files(path: Path, folder: Path) -> None:
    """Do what the reader of a page does: make its files."""
    for name, text in files(path).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def name_of(path: Path) -> str:
    """A file's name as it stands in the project."""
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def environment(postgres: Postgres, admin: Admin) -> Iterator[dict[str, str]]:
    """The variables with which the connection strings of the documentation lead to the server."""
    names = ("shop", "warehouse")
    path = f"{postgres.bindir}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{postgres.password}'")
    for name in names:
        admin.execute(f"CREATE DATABASE {name} OWNER app")
    yield {
        **os.environ,
        "DATABASE_URL": "postgresql://app@localhost/shop",
        "PATH": path,  # a server brings psql along, except that of some wheels
        "PGPASSWORD": postgres.password,
        "PGPORT": str(postgres.port),
        "PYTHONPATH": str(ROOT),
    }
    for name in names:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    admin.execute("DROP ROLE app")
