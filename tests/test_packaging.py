"""What the distribution says of itself, and that each fact is written once."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import pgsignals

ROOT = Path(__file__).parents[1]
DISTRIBUTION = "pgsignals-reactor"


@pytest.fixture
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True)  # refuses a section or key given twice
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # keys as they are written
    parser.read_string((ROOT / "setup.cfg").read_text("utf-8"))
    return parser


@pytest.fixture
def project() -> dict[str, Any]:
    tables: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return tables["project"]


def test_setup_cfg_holds_options_of_setuptools_commands_only(
    setup_cfg: configparser.ConfigParser,
) -> None:
    assert setup_cfg.sections() == ["sdist", "egg_info"]
    assert not setup_cfg.defaults()


def test_setup_cfg_keys_are_spelled_as_setuptools_wants_them(
    setup_cfg: configparser.ConfigParser,
) -> None:
    keys = [key for section in setup_cfg.sections() for key in setup_cfg[section]]

    assert [key for key in keys if key != key.lower().replace("-", "_")] == []


def test_no_other_file_configures_a_tool() -> None:
    others = ("setup.py", "pytest.ini", "tox.ini", "mypy.ini", "ruff.toml", ".coveragerc")

    assert [name for name in others if (ROOT / name).exists()] == []


def test_version_is_that_of_the_metadata(project: dict[str, Any]) -> None:
    assert pgsignals.__version__ == metadata.version(DISTRIBUTION) == project["version"]


def test_version_is_written_in_pyproject_only(project: dict[str, Any]) -> None:
    files = [ROOT / "setup.cfg", *(ROOT / "pgsignals").rglob("*.py")]
    copies = [path.name for path in files if project["version"] in path.read_text("utf-8")]

    assert copies == []


def test_command_is_the_same_as_running_the_package() -> None:
    entry_points = metadata.distribution(DISTRIBUTION).entry_points
    (command,) = entry_points.select(group="console_scripts")

    assert command.name == "pgsignals"
    assert command.value == "pgsignals.cli:main"
    assert callable(command.load())


def test_pytest_finds_the_plugin() -> None:
    (plugin,) = metadata.distribution(DISTRIBUTION).entry_points.select(group="pytest11")

    assert plugin.name == "pgsignals"
    assert plugin.load().pgsignals_dsn


def test_command_prints_the_version() -> None:
    command = [sys.executable, "-m", "pgsignals", "--version"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert printed.split() == ["pgsignals", pgsignals.__version__]


def test_package_says_that_it_is_typed() -> None:
    assert (Path(pgsignals.__file__).parent / "py.typed").is_file()
