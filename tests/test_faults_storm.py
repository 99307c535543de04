"""Many links that lose their server, or their login, at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def storm(folder: Path, *options: object, timeout: float) -> dict[str, Any]:
    """The figures of ``benchmarks/storm.py``."""
    file = folder / "storm.json"
    command = [sys.executable, "-m", "benchmarks.storm", *map(str, options), "--json", str(file)]
    program = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert file.exists(), program.stdout + program.stderr
    figures: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return figures


def is_spread(phase: dict[str, Any]) -> bool:
    """Whether no tenth of a second has more than a fifth of the attempts."""
    tenths = [int(at * 10) for at in phase["attempts"]]
    return max(map(tenths.count, tenths)) <= len(tenths) / 5


@pytest.mark.timeout(120)
def test_links_come_back_one_by_one_after_a_restart(tmp_path: Path) -> None:
    options = ("--links", 40, "--processes", 2, "--down", 3, "--refused", 0, "--backoff", 0.1, 4)

    def came_back_one_by_one() -> bool:
        [phase] = storm(tmp_path, *options, timeout=50)["phases"]
        assert len(phase["attempts"]) >= 40
        return is_spread(phase)

    # A machine that stands still bunches them up, but not each time.
    assert any(came_back_one_by_one() for _ in range(3))


def test_refused_logins_are_few_whether_sessions_have_ended_or_not(tmp_path: Path) -> None:
    options = ("--links", 20, "--processes", 2, "--down", 0, "--refused", 2.2)
    settings = ("--backoff", 0.1, 1.5, "--probe", 0.3, 2)

    figures = storm(tmp_path, *options, *settings, timeout=50)

    for name in ("refused", "rotated"):
        refusals, limit = figures["checks"][name]["refused logins per link"]
        assert 0 < refusals <= 1.5 * limit  # one more where a canary met the change


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "sslmode=prefer"])
def test_hundred_links_make_no_herd_and_lock_no_account(tmp_path: Path, tls: bool) -> None:
    options = ("--tls", "--down", 0) if tls else ()

    figures = storm(tmp_path, *options, timeout=500)

    for phase in figures["phases"]:
        assert len(phase["attempts"]) < 100 or is_spread(phase)
    for phase, checks in figures["checks"].items():
        for name, (value, limit) in checks.items():
            assert value <= limit or "100 ms" in name, f"{phase}: {name}"
