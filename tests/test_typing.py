"""The types that a user's program sees."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.timeout(300)  # mypy without a cache reads all of psycopg
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_typed_program_passes_mypy_strict() -> None:
    options = ["--strict", "--config-file=", "--explicit-package-bases", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, "tests/typing/api.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert result.stdout + result.stderr == ""
