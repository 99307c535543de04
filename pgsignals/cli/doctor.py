"""``pgsignals doctor``: how it looks to its user.  What it looks at is in ``_checks``."""

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
Connect, look at everything that LISTEN/NOTIFY depends on, and say for each what to change.

  pgsignals doctor
  pgsignals doctor --dsn postgresql://app@localhost/shop
  pgsignals doctor --json | jq '.checks[] | select(.outcome != "ok")'
  pgsignals doctor --channel orders        who listens to it, and what notifies it
  pgsignals doctor --timeout 2 || echo "notifications do not get through"

It asks with sessions of its own, on a channel of its own, and changes nothing. On a channel that
--channel names it notifies nothing, as listeners would take that for real. What it says:

  ok        as it should be
  note      good to know
  warning   works now, and may not always
  FAILED    notifications do not get through, or soon will not
  skipped   could not be looked at, because of what failed before
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 when nothing failed, warnings or not; 1 when something did; 2 not understood.
"""

COLOURS: dict[Outcome, str] = {
    "ok": GREEN,
    "note": CYAN,
    "warning": YELLOW,
    "failed": RED,
    "skipped": DIM,
}

#: Where the second and the third column begin.
NAME, TEXT = 11, 23


def add(commands: Commands) -> None:
    """Add the command."""
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
        help="look who listens to it, and what notifies it; again for each further channel",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=duration,
        default=5.0,
        help="seconds that the server has for each answer, 5 by default",
    )


def doctor(args: argparse.Namespace) -> int:
    """Run it."""
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
    """Of the terminal; None for lines of any length."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def lines(finding: Finding, width: int | None) -> Iterator[str]:
    """A finding in words, and below it what to do."""
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
    """The lines of the third column."""
    if width is None:
        return [text]
    return textwrap.wrap(text, max(20, width - TEXT), break_on_hyphens=False)
