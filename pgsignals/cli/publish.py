"""``pgsignals publish``: publish one event, its payload an argument or standard input."""

from __future__ import annotations

import argparse

from pgsignals._pure.publication import publication
from pgsignals.cli.arguments import MISUSED, WHERE, Commands, add_command, add_dsn, database_of
from pgsignals.cli.notify import add_message, payload_of
from pgsignals.cli.schema import add_schema
from pgsignals.cli.terminal import say
from pgsignals.database import connect
from pgsignals.errors import PayloadError

ABOUT = """\
Publish one event on a durable channel, and print its id.

  pgsignals publish orders '{"id": 42}'
  pgsignals publish orders '{"id": 42}' --key 42
  pgsignals publish orders - < order.json      read the payload from standard input, in UTF-8,
                                               without a final newline
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 published, 1 not published, 2 usage error, or an event that the server would reject.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "publish", "publish an event", ABOUT, ABOUT_STATUS, publish)
    add_message(parser)
    parser.add_argument("--key", metavar="K", help="events of one key keep their order")
    add_schema(parser)
    add_dsn(parser)


def publish(args: argparse.Namespace) -> int:
    """Publish it, and print the id."""
    try:
        event = publication(args.channel, payload_of(args), key=args.key)
    except PayloadError as error:
        say(str(error))
        return MISUSED
    with connect(database_of(args)) as db:
        db._custody.clear_search_path()
        print(db.publish(event.channel, event.payload, key=event.key, schema=args.schema))
    return 0
