"""What CONTRIBUTING.md tells a newcomer to do can be done."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TEXTS = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")

each_text = pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)


def targets() -> set[str]:
    """Those that a user names."""
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    return set(phony.split())


def commands(path: Path) -> list[list[str]]:
    """The words of each line of the shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run(*command: str) -> str:
    """What it prints, when it succeeds."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# make


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("command", [["make"], ["make", "help"]], ids=" ".join)
def test_make_lists_every_target(command: list[str]) -> None:
    lines = run(*command).splitlines()

    listed = {line.split()[1]: line for line in lines}
    assert listed.keys() == targets()
    assert all(len(line) <= 80 for line in lines)


def test_targets_are_phony_and_phony_ones_are_targets() -> None:
    rules = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))

    assert rules == targets()


# CONTRIBUTING.md


@pytest.mark.timeout(300)  # it collects the tests for each of them
def test_commands_exist() -> None:
    found = commands(ROOT / "CONTRIBUTING.md")

    assert len(found) > 8
    for words in found:
        check(words)


def check(words: list[str]) -> None:
    """Complain of a command that a newcomer could not run."""
    match words:
        case ["make", target]:
            assert target in targets()
        case ["make", target, arguments]:
            assert target in targets()
            assert "$(ARGS)" in MAKEFILE
            check_pytest(shlex.split(arguments.removeprefix("ARGS=")))
        case [".venv/bin/python", "-m", module, "--help"]:
            assert "usage:" in run(sys.executable, "-m", module, "--help")
        case [".venv/bin/python", script]:
            assert (ROOT / script).is_file()
        case ["pre-commit", "install"]:
            pass
        case _:
            pytest.fail(f"nobody knows whether this works: {shlex.join(words)}")


def check_pytest(arguments: list[str]) -> None:
    """Complain of arguments that select no test."""
    if importlib.util.find_spec("xdist") is None and "-n" in arguments:
        del arguments[arguments.index("-n") : arguments.index("-n") + 2]
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    assert re.search(r": [1-9]", run(*collect, *arguments))


@each_text
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    links = {link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link}
    paths = set(re.findall(r"`((?:\.?\w+/)[\w./]*)`", text)) - {
        "/usr/lib/postgresql/17/bin",
        "build/docs",
    }

    assert links
    for name in links | paths:
        assert (ROOT / name).exists(), name


# pre-commit


def test_hooks_are_tools_of_the_project() -> None:
    entries = re.findall(r"^ +entry: (\S+)", HOOKS, re.MULTILINE)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]
    tools = {re.split(r"\W", tool)[0] for group in ("lint", "types") for tool in groups[group]}

    assert {Path(entry).name for entry in entries} == tools
    assert {Path(entry).parent.as_posix() for entry in entries} == {".venv/bin"}
    assert re.findall(r"repo: (.*)", HOOKS) == ["local"]
    assert set(re.findall(r"language: (.*)", HOOKS)) == {"system"}


@pytest.mark.skipif(
    importlib.util.find_spec("pre_commit") is None, reason="pre-commit is not installed"
)
def test_pre_commit_understands_the_hooks() -> None:
    run(sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml")
