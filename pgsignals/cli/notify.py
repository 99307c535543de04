"""``pgsignals notify``: send one notification, its payload an argument or standard input."""

from __future__ import annotations

import argparse

from pgsignals._pure.names import check_payload
from pgsignals.cli.arguments import (
    MISUSED,
    NAME,
    WHERE,
    Commands,
    Parser,
    add_command,
    add_dsn,
    channel_name,
    database_of,
)
from pgsignals.cli.terminal import say
from pgsignals.database import connect
from pgsignals.errors import PayloadError

ABOUT = """\
Send one notification. The payload is text of up to 7,999 bytes, empty by default.

  pgsignals notify orders
  pgsignals notify orders '{"id": 42}'
  date | pgsignals notify orders -         read the payload from standard input, in UTF-8,
                                           without a final newline
  pgsignals notify orders -- --urgent      "--" ends the options
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 sent, 1 not sent, 2 usage error, or a payload that the server would reject.
"""


def add(commands: Commands) -> None:
    """Define ``pgsignals notify`` and its options."""
    parser = add_command(commands, "notify", "send a notification", ABOUT, ABOUT_STATUS, notify)
    add_message(parser)
    add_dsn(parser)


def add_message(parser: Parser) -> None:
    """Add a channel and a payload."""
    parser.add_argument("channel", metavar="CHANNEL", type=channel_name, help=NAME)
    parser.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", default="", help='text, or "-" for standard input'
    )


def notify(args: argparse.Namespace) -> int:
    """Send the notification, and return the exit status."""
    try:
        payload = payload_of(args)
        check_payload(payload, args.channel)
    except PayloadError as error:
        say(str(error))
        return MISUSED
    with connect(database_of(args)) as db:
        db._custody.clear_search_path()
        db.notify((args.channel, payload))
    return 0


def payload_of(args: argparse.Namespace) -> str:
    """The payload, which ``-`` reads from standard input, without a final newline.

    :raises PayloadError: standard input cannot be read, or is not UTF-8.
    """
    payload: str = args.payload
    if payload != "-":
        return payload
    try:
        with open(0, "rb", closefd=False) as stdin:
            return stdin.read().decode().removesuffix("\n")
    except OSError as error:
        reason = error.strerror or "unknown error"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    raise PayloadError(f"cannot read the payload from standard input: {reason}")
