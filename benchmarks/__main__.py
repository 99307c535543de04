"""How fast the library is, against its peers and its goals.

::

    python -m benchmarks                                # everything, some ten minutes
    python -m benchmarks --only throughput --rounds 3
    python -m benchmarks --quick --contenders bare reactor asyncpg
    python -m benchmarks --json figures.json --plots plots

Every contender runs in a process of its own, against one server that this program starts, and the
rounds are interleaved.  Figures are medians of the rounds; ratios are medians of each round's
ratio.  Peers that are not installed are skipped by name.  Linux only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import sys
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

from benchmarks import goals, scale
from benchmarks.goals import PEERS, Options
from benchmarks.results import Table, Verdict
from benchmarks.rig import BenchmarkError, Rig, say
from pgsignals.embedded import EmbeddedError

BENCHMARKS = {**goals.BENCHMARKS, **scale.BENCHMARKS}

#: Whose versions are told.
DISTRIBUTIONS = (
    "pgsignals-reactor",
    "psycopg",
    "blinker",
    "psycopg2-binary",
    "asyncpg",
    "py-postgresql",
)


def about(rig: Rig, options: Options) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "postgresql": ".".join(map(str, rig.server.version)),
        "python": platform.python_version(),
        "machine": cpu(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "options": dataclasses.asdict(options),
    }


def cpu() -> str:
    """The processor's name, where the system tells."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.M)
    return found[1] if found else platform.machine()


def measure(rig: Rig, names: list[str], options: Options) -> dict[str, Table]:
    """Run the benchmarks of these names, and print what they measure."""
    tables = {}
    for name in names:
        began = time.monotonic()
        tables[name] = table = BENCHMARKS[name](rig, options)
        say(f"\n{name}: {table.title} ({time.monotonic() - began:.0f} s)\n\n{table.as_text()}")
    return tables


def report(verdicts: list[Verdict]) -> str:
    """The goals that were measured, as a Markdown table."""
    lines = ["| what | against | measured | goal | |", "|---|---|---|---|---|"]
    lines += [verdict.as_row() for verdict in verdicts]
    return "\n".join(lines)


def headline(facts: dict[str, Any]) -> str:
    """The versions and the machine, in a line."""
    peers = (f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"PostgreSQL {facts['postgresql']}, Python {facts['python']}, {', '.join(peers)}, "
        f"on {facts['cpus']} CPUs ({facts['machine']})"
    )


def write_docs(path: Path, sections: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end -->`` in a page."""
    page = path.read_text("utf-8")
    for name, text in sections.items():
        begin = f"<!-- {name} -->\n"
        before, found, rest = page.partition(begin)
        if found:
            page = f"{before}{begin}\n{text}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    path.write_text(page, "utf-8")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=BENCHMARKS, action="extend")
    parser.add_argument("--contenders", metavar="NAME", nargs="+", choices=Options.contenders)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="one small round of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw them there, as SVG")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="bring its tables up to date")
    return parser.parse_args(arguments)


def choose(arguments: argparse.Namespace) -> Options:
    """The options that the arguments ask for, without the peers that are not there."""
    options = goals.QUICK if arguments.quick else Options()
    if arguments.rounds:
        options = dataclasses.replace(options, rounds=arguments.rounds)
    wanted = arguments.contenders or options.contenders
    there = [name for name in wanted if util.find_spec(PEERS.get(name, "pgsignals"))]
    if missing := [name for name in wanted if name not in there]:
        say(f"not installed, and skipped: {', '.join(missing)}")
    return dataclasses.replace(options, contenders=tuple(there))


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    options = choose(asked)
    began = time.monotonic()
    with Rig(2 * options.connections) as rig:
        facts = about(rig, options)
        say(headline(facts))
        tables = measure(rig, asked.only or list(BENCHMARKS), options)
    verdicts = goals.verdicts(tables, options)
    say(f"\n{report(verdicts)}\n\n{time.monotonic() - began:.0f} s")
    if asked.json:
        figures = {
            "about": facts,
            "goals": [verdict.as_json() for verdict in verdicts],
            "benchmarks": {name: table.as_json() for name, table in tables.items()},
        }
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        asked.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    if asked.plots:
        from benchmarks.plots import draw  # needs matplotlib, which figures do without

        draw(tables, asked.plots)
    if asked.docs:
        sections = {name: table.as_text() for name, table in tables.items()}
        sections |= {"about": headline(facts) + ".", "goals": report(verdicts)}
        write_docs(asked.docs, sections)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, EmbeddedError) as error:
        sys.exit(str(error))
