"""``pgsignals demo``: a guided run of the whole library, on a server of its own."""

from __future__ import annotations

import argparse

from pgsignals.cli.arguments import Commands, add_command, duration

ABOUT = """\
Watch a small shop: a second process sells, and every sale is notified to handlers here, which keep
a cache of the stock right. Half way the listening session is killed. At the end the cache is
compared with the tables.

  pgsignals demo
  pgsignals demo --seconds 60
  pgsignals demo --dsn postgresql://app@localhost/shop
  NO_COLOR=1 pgsignals demo                no colours
  pgsignals demo | cat                     plain lines, as in a log

It starts a PostgreSQL server of its own, whatever DATABASE_URL says, and removes it afterwards.
With --dsn it uses that database, in a schema of its own that it drops.

Exit status: 0 only when everything was as it should be.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "demo", "see it work", ABOUT, "", demo)
    parser.add_argument("--seconds", metavar="S", type=duration, default=10.0, help="10 by default")
    parser.add_argument("--dsn", help="a database to use instead of a server of its own")


def demo(args: argparse.Namespace) -> int:
    """Run it."""
    from pgsignals.demo import run

    return run(args.seconds, args.dsn)
