"""``pgsignals schema``: install, check, upgrade, adopt and drop the schema of durable channels."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

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
    for name, (what, _) in ACTIONS.items():
        action = add_command(actions, name, what, what, ABOUT_STATUS, act)
        action.set_defaults(action=name)
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


def act(args: argparse.Namespace) -> int:
    """Do it, and say what has become of the schema."""
    if args.action == "init" and args.print:
        print(_sql(args))
        return 0
    _, run = ACTIONS[args.action]
    with connect(database_of(args)) as db:
        db._custody.clear_search_path()
        say(f"schema {args.schema} of {db.name}: {run(db, args)}")
    return 0


def _init(db: Database, args: argparse.Namespace) -> str:
    fresh = durable.init(db, args.schema, _limits(args), **dict(args.grants))
    return f"{'installed' if fresh else 'already installed'}, version {durable.VERSION}"


def _upgrade(db: Database, args: argparse.Namespace) -> str:
    changed = durable.upgrade(db, args.schema)
    return f"{'upgraded' if changed else 'already up to date'}, version {durable.VERSION}"


def _check(db: Database, args: argparse.Namespace) -> str:
    durable.check(db, args.schema)
    return f"ok, version {durable.VERSION}"


def _adopt(db: Database, args: argparse.Namespace) -> str:
    return "adopted" if durable.adopt(db, args.schema) else "already this cluster's"


def _drop(db: Database, args: argparse.Namespace) -> str:
    durable.drop(db, args.schema)
    return "dropped"


#: Each with its help, and what does it and returns what to say.
ACTIONS: dict[str, tuple[str, Callable[[Database, argparse.Namespace], str]]] = {
    "init": ("install it, or change the limits that are given", _init),
    "upgrade": ("bring it to the version of this release", _upgrade),
    "check": ("see whether this release can work with it", _check),
    "adopt": ("make a restored one this cluster's", _adopt),
    "drop": ("remove it, with all events", _drop),
}


def _limits(args: argparse.Namespace) -> Limits:
    return Limits(args.keep, args.max_age, args.max_payload)


def _sql(args: argparse.Namespace) -> str:
    """What ``init`` would run."""
    install = durable.install_sql(args.schema, _limits(args))
    grants = durable.grants_sql(args.schema, **dict(args.grants))
    return "\n".join(part.rstrip() for part in (install, grants) if part)


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
