"""Every example runs to its end, as a function and as a program."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
#: Those that come to an end by themselves; the others have test files of their own.
PROGRAMS = [*sorted(EXAMPLES.glob("*.py")), EXAMPLES / "cache" / "read_through.py"]
READMES = sorted(EXAMPLES.glob("*/README.md"))

each_program = pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
each_readme = pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)


def test_there_is_an_example_of_each_way() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    folders = {path.parent.name for path in READMES}

    assert names == {"background_handlers", "several_databases", "typed_handlers", "wait_loop"}
    assert folders == {"cache", "django_signals", "live_orders", "worker"}


@each_program
def test_main_runs_on_the_database_of_its_argument(
    path: Path, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    main = importlib.import_module(module).main

    assert main([dsn]) == 0
    assert capsys.readouterr().out.count("\n") > 2


@each_program
def test_program_takes_its_database_from_the_environment(path: Path, dsn: str) -> None:
    result = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "DATABASE_URL": dsn, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_several_databases_are_watched_at_once(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module("examples.several_databases").main

    assert main([dsn, dsn, dsn]) == 0
    printed = capsys.readouterr().out
    assert all(f"number {number}, " in printed for number in range(3))
    assert "is back" in printed


@each_program
def test_program_explains_itself(path: Path) -> None:
    command = [sys.executable, str(path), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert "dsn" in result.stdout


@each_readme
def test_readme_leads_to_what_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    programs = re.findall(r"^.*\bpython (\S+)", text, re.MULTILINE)
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)

    assert programs
    for program in programs:
        assert (ROOT / program).is_file() or program == "manage.py"
    for link in links:
        assert (path.parent / link).exists(), link
