"""The types that a user's program sees."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REFUSED = ROOT / "tests" / "typing" / "refused.py"
OPTIONS = ["--strict", "--config-file=", "--explicit-package-bases", "--no-error-summary"]
IGNORE = re.compile(r" +# type: ignore\[([\w-]+)\]$")

# mypy without a cache reads all of psycopg.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed"),
]


def mypy(*arguments: str) -> str:
    """What mypy says."""
    command = [sys.executable, "-m", "mypy", *OPTIONS, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode < 2, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_typed_programs_pass_mypy_strict() -> None:
    assert mypy("tests/typing/api.py", "tests/typing/handlers.py") == ""


def test_mypy_refuses_what_cannot_work(tmp_path: Path) -> None:
    lines = REFUSED.read_text("utf-8").splitlines()
    wanted = {
        number: found[1] for number, line in enumerate(lines, 1) if (found := IGNORE.search(line))
    }
    bare = tmp_path / "refused.py"
    bare.write_text("\n".join(IGNORE.sub("", line) for line in lines), "utf-8")

    told = mypy("--shadow-file", str(REFUSED), str(bare), str(REFUSED))

    errors = re.findall(r"^.*?:(\d+): error: .*\[([\w-]+)\]$", told, re.MULTILINE)
    assert {int(number): code for number, code in errors} == wanted
    assert 'incompatible type "Callable[[Database, Notification, int], None]"' in told
    assert 'expected "ValueHandler[Order,' in told
