"""``pgsignals schema``: install, check, upgrade, adopt and drop the schema of durable channels."""

from __future__ import annotations

import argparse
import re

from pgsignals._durable import schema as durable
from pgsignals._durable.schema import Limits
from pgsignals._pure.publishing import check_schema
from pgsignals.cli.arguments import (
    WHERE,
    Commands,
    Parser,
    add_command,
    add_dsn,
    count,
    database_of,
)
from pgsignals.cli.terminal import say
from pgsignals.database import Database, connect

ABOUT = """\
Durable channels keep their events in a schema of the database, which nothing but these commands
installs or removes.

  pgsignals schema init                      install it, or change the limits that are given
  pgsignals schema init --keep 2d --grants publisher=web consumer=worker
  pgsignals schema init --print > 0007_pgsignals.sql       for migrations of your own
  pgsignals schema check                     see whether this release can work with it
  pgsignals schema adopt                     after a restore into another cluster
  pgsignals schema drop                      remove it, with all events
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 done, 1 failed or not as it should be, 2 usage error.
"""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add(commands: Commands) -> None:
    """Add the command with its five actions."""
    parser = add_command(
        commands, "schema", "install durable channels", ABOUT, ABOUT_STATUS, lambda _: 2
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, what, run in (
        ("init", "install it, or change the limits that are given", init),
        ("upgrade", "bring it to the version of this release", upgrade),
        ("check", "see whether this release can work with it", check),
        ("adopt", "make a restored one this cluster's", adopt),
        ("drop", "remove it, with all events", drop),
    ):
        action = add_command(actions, name, what, what, ABOUT_STATUS, run)
        add_schema(action)
        add_dsn(action)
        if name == "init":
            _add_limits(action)


def add_schema(parser: Parser) -> None:
    """Add ``--schema``."""
    parser.add_argument(
        "--schema",
        metavar="S",
        type=schema_name,
        default="pgsignals",
        help="the schema of the durable channels, pgsignals by default",
    )


def _add_limits(parser: Parser) -> None:
    parser.add_argument(
        "--keep",
        metavar="D",
        type=span,
        help="how long an event stays once every group has handled it, such as 12h; 1d by default",
    )
    parser.add_argument(
        "--max-age",
        metavar="D",
        type=span,
        help="how long an event stays that a group has not handled, such as 30d; 7d by default",
    )
    parser.add_argument(
        "--max-payload",
        metavar="BYTES",
        type=count,
        help="the largest payload, 1048576 by default",
    )
    parser.add_argument(
        "--grants",
        metavar="WHO=ROLE",
        nargs="+",
        action="extend",
        type=grant,
        default=[],
        help="let a role publish (publisher=ROLE) or consume (consumer=ROLE)",
    )
    parser.add_argument("--print", action="store_true", help="print the SQL instead of running it")


def init(args: argparse.Namespace) -> int:
    """Install the schema, or change its limits."""
    limits = Limits(args.keep, args.max_age, args.max_payload)
    roles = dict(args.grants)
    publisher, consumer = roles.get("publisher"), roles.get("consumer")
    if args.print:
        parts = (
            durable.install_sql(args.schema, limits),
            durable.grants_sql(args.schema, publisher, consumer),
        )
        print("\n".join(part.rstrip() for part in parts if part))
        return 0
    with _database(args) as db:
        fresh = durable.init(db, args.schema, limits, publisher=publisher, consumer=consumer)
        done = "installed" if fresh else "already installed"
        say(f"schema {args.schema} of {db.name}: {done}, version {durable.VERSION}")
    return 0


def upgrade(args: argparse.Namespace) -> int:
    """Bring the schema to the version of this release."""
    with _database(args) as db:
        changed = durable.upgrade(db, args.schema)
        done = "upgraded" if changed else "already up to date"
        say(f"schema {args.schema} of {db.name}: {done}, version {durable.VERSION}")
    return 0


def check(args: argparse.Namespace) -> int:
    """Refuse a schema that this release cannot work with."""
    with _database(args) as db:
        durable.check(db, args.schema)
        say(f"schema {args.schema} of {db.name}: ok, version {durable.VERSION}")
    return 0


def adopt(args: argparse.Namespace) -> int:
    """Make a restored schema this cluster's."""
    with _database(args) as db:
        adopted = durable.adopt(db, args.schema)
        done = "adopted" if adopted else "already this cluster's"
        say(f"schema {args.schema} of {db.name}: {done}")
    return 0


def drop(args: argparse.Namespace) -> int:
    """Remove the schema."""
    with _database(args) as db:
        durable.drop(db, args.schema)
        say(f"schema {args.schema} of {db.name}: dropped")
    return 0


def _database(args: argparse.Namespace) -> Database:
    return connect(database_of(args))


# -- what argparse calls to read a word ----------------------------------------------------------


def schema_name(text: str) -> str:
    """The name of a schema."""
    try:
        return check_schema(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def span(text: str) -> float:
    """A time such as ``2s``, ``30m``, ``12h`` or ``7d``, in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None or not (seconds := float(found[1]) * _UNITS[found[2]]):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a time above 0 such as 2s, 30m, 12h or 7d"
        )
    return seconds


def grant(text: str) -> tuple[str, str]:
    """What a role may do, and the role."""
    what, equals, role = text.partition("=")
    if what not in ("publisher", "consumer") or not equals or not role:
        raise argparse.ArgumentTypeError(f"{text!r} must be publisher=ROLE or consumer=ROLE")
    return what, role
