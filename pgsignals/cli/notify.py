"""``pgsignals notify``: send one notification, its payload an argument or standard input."""

from __future__ import annotations

import argparse

from pgsignals._pure.names import check_payload
from pgsignals.cli.arguments import (
    MISUSED,
    NAME,
    WHERE,
    Commands,
    add_command,
    add_dsn,
    channel_name,
    database_of,
)
from pgsignals.cli.terminal import say
from pgsignals.database import connect
from pgsignals.errors import PayloadError

ABOUT = """\
Send one notification. The payload is text of at most 7,999 bytes, empty when not given.

  pgsignals notify orders
  pgsignals notify orders '{"id": 42}'
  date | pgsignals notify orders -         the payload is standard input, in UTF-8, without
                                           one newline at its end
  pgsignals notify orders -- --urgent      "--" ends the options
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 sent, 1 not sent, 2 not understood, or a payload that the server would refuse.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "notify", "send a notification", ABOUT, ABOUT_STATUS, notify)
    parser.add_argument("channel", metavar="CHANNEL", type=channel_name, help=NAME)
    parser.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", default="", help='text, or "-" for standard input'
    )
    add_dsn(parser)


def notify(args: argparse.Namespace) -> int:
    """Run it."""
    try:
        payload = read_payload() if args.payload == "-" else args.payload
        check_payload(payload, args.channel)
    except PayloadError as error:
        say(str(error))
        return MISUSED
    with connect(database_of(args)) as db:
        db.clear_search_path()
        db.notify((args.channel, payload))
    return 0


def read_payload() -> str:
    """Standard input, without one newline at its end."""
    try:
        with open(0, "rb", closefd=False) as stdin:
            return stdin.read().decode().removesuffix("\n")
    except OSError as error:
        reason = error.strerror or "it cannot be read"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    raise PayloadError(f"the payload on standard input: {reason}")
