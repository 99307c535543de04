"""``pgsignals doctor``: its options and its output.  The checks are in ``_checks``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator

from pgsignals.cli._checks import examine
from pgsignals.cli._findings import Finding, Outcome
from pgsignals.cli.arguments import (
    FAILED,
    NOT_SET,
    WHERE,
    Commands,
    add_command,
    add_dsn,
    channel_name,
    database_of,
    defaults_alone,
    duration,
)
from pgsignals.cli.terminal import CYAN, DIM, GREEN, RED, YELLOW, escape, is_terminal, paint, put
from pgsignals.database import Database

ABOUT = """\
Connect, check everything that LISTEN/NOTIFY depends on, and say what to change.

  pgsignals doctor
  pgsignals doctor --dsn postgresql://app@localhost/shop
  pgsignals doctor --json | jq '.checks[] | select(.outcome != "ok")'
  pgsignals doctor --channel orders        who listens to it, and what notifies it
  pgsignals doctor --timeout 2 || echo "notifications do not get through"

It uses its own sessions and its own channel, and changes nothing. It never notifies a channel that
--channel names, as listeners would act on that. Outcomes:

  ok        nothing to do
  note      good to know
  warning   works now, but may fail later
  FAILED    notifications do not get through, or soon will not
  skipped   could not be checked, because an earlier check failed
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 if no check failed, even with warnings; 1 if one did; 2 usage error.
"""

COLOURS: dict[Outcome, str] = {
    "ok": GREEN,
    "note": CYAN,
    "warning": YELLOW,
    "failed": RED,
    "skipped": DIM,
}

#: Columns at which the name and the text of a finding begin.
NAME, TEXT = 11, 23


def add(commands: Commands) -> None:
    """Define ``pgsignals doctor`` and its options."""
    parser = add_command(
        commands, "doctor", "find out why nothing arrives", ABOUT, ABOUT_STATUS, doctor
    )
    add_dsn(parser)
    parser.add_argument(
        "--channel",
        metavar="CHANNEL",
        action="append",
        type=channel_name,
        default=[],
        help="find who listens to it and what notifies it; repeat it for several",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=duration,
        default=5.0,
        help="seconds to wait for each answer of the server, 5 by default",
    )


def doctor(args: argparse.Namespace) -> int:
    """Examine the database, and return the exit status."""
    database = Database(database_of(args))
    name = database.name
    findings = []
    if not args.json:
        put(sys.stdout, escape(name))
    for finding in examine(database, args.timeout, args.channel):
        if finding.check == "connection" and finding.outcome == "failed" and defaults_alone(args):
            finding = dataclasses.replace(finding, detail=f"{finding.detail}; {NOT_SET}")
        findings.append(finding)
        if not args.json:
            for line in lines(finding, width()):
                put(sys.stdout, line)
    healthy = all(finding.outcome != "failed" for finding in findings)
    if args.json:
        checks = [dataclasses.asdict(finding) for finding in findings]
        report = {"database": name, "healthy": healthy, "checks": checks}
        put(sys.stdout, json.dumps(report, indent=2))
    return 0 if healthy else FAILED


def width() -> int | None:
    """Columns of the terminal; None where lines may have any length."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def lines(finding: Finding, width: int | None) -> Iterator[str]:
    """Format a finding, followed by its advice."""
    word = finding.outcome.upper() if finding.outcome == "failed" else finding.outcome
    head = (
        paint(COLOURS[finding.outcome], f"  {word:{NAME - 2}}") + f"{finding.check:{TEXT - NAME}}"
    )
    for line in wrapped(escape(finding.detail), width):
        yield head + line
        head = " " * TEXT
    if finding.advice is not None:
        for line in wrapped(f"-> {escape(finding.advice)}", width):
            yield head + line


def wrapped(text: str, width: int | None) -> list[str]:
    """Wrap *text* to the column of texts."""
    if width is None:
        return [text]
    return textwrap.wrap(text, max(20, width - TEXT), break_on_hyphens=False)
