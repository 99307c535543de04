"""Every example runs to its end, as a function and as a program."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))

each_program = pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)


def test_there_is_an_example_of_each_way() -> None:
    names = {path.stem for path in PROGRAMS}

    assert names == {"background_handlers", "several_databases", "wait_loop"}


@each_program
def test_main_runs_on_the_database_of_its_argument(
    path: Path, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"examples.{path.stem}").main

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
