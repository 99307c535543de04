"""``pgsignals demo``: a guided run of the whole library, on a throwaway server."""

from __future__ import annotations

import argparse

from pgsignals.cli.arguments import Commands, add_command, duration

ABOUT = """\
Watch a small shop: a second process makes sales, and handlers in this one keep a cache of the stock
correct. Halfway through, the listening session is killed. At the end the cache is compared with the
tables.

  pgsignals demo
  pgsignals demo --seconds 60
  pgsignals demo --dsn postgresql://app@localhost/shop
  NO_COLOR=1 pgsignals demo                no colours
  pgsignals demo | cat                     plain lines, as in a log

It starts a throwaway PostgreSQL server, ignoring DATABASE_URL, and removes it afterwards.
With --dsn it uses that database instead, in a schema that it creates and drops.

Exit status: 0 only if every check passed.
"""


def add(commands: Commands) -> None:
    """Define ``pgsignals demo`` and its options."""
    parser = add_command(commands, "demo", "see it work", ABOUT, "", demo)
    parser.add_argument(
        "--seconds", metavar="S", type=duration, default=10.0, help="how long, 10 by default"
    )
    parser.add_argument("--dsn", help="use this database instead of a throwaway server")


def demo(args: argparse.Namespace) -> int:
    """Run the demo, and return the exit status."""
    from pgsignals.demo import run

    return run(args.seconds, args.dsn)
