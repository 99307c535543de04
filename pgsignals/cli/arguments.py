"""The command line as argparse knows it: what the commands have in common."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import math
import os
import re
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any, NoReturn, TypeAlias

from pgsignals._pure.names import check_channel
from pgsignals.cli.terminal import say
from pgsignals.errors import ChannelNameError, ConnectError

#: Status of a command that failed, and of one that was not understood.
FAILED, MISUSED = 1, 2

#: How long, in seconds, we wait at our end for a reader of our output that has stopped reading.
PATIENCE = 1.0

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|inf|nan)(e\d+)?")

_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)

WHERE = """\
The database: --dsn, else the environment variable DATABASE_URL, else libpq's own defaults (PGHOST,
PGSERVICE, PGPASSFILE, ...). A password in --dsn can be seen by everyone on this machine.
"""

NOT_SET = (
    "neither --dsn nor DATABASE_URL is set, so libpq's own variables (PGHOST, ...) and defaults "
    "count"
)

NAME = "its name, in which upper and lower case differ"


class Parser(argparse.ArgumentParser):
    """Complains in one line, and suggests what may have been meant."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.lonely: dict[str, str] = {}
        """Options that may stand without a number behind them, with the value that they have then:
        argparse would take the next word for it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See :class:`argparse.ArgumentParser`."""
        words = list(sys.argv[1:] if args is None else args)
        for at, word in enumerate(words):
            if word in self.lonely and not _NUMBER.fullmatch("".join(words[at + 1 : at + 2])):
                words[at] = f"{word}={self.lonely[word]}"
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        if (found := _CHOICE.search(message)) is not None:
            word, choices = found.groups()
            near = difflib.get_close_matches(word, re.findall(r"[\w-]+", choices), 1)
            message += f"; did you mean {near[0]}?" if near else ""
        say(f"{message} (see {self.prog} --help)")
        raise SystemExit(MISUSED)


class Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print("pgsignals", metadata.version("pgsignals-reactor"))
        raise SystemExit(0)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
Run: TypeAlias = Callable[[argparse.Namespace], int]


def add_command(
    commands: Commands, name: str, short: str, about: str, after: str, run: Run
) -> Parser:
    """Add a command.

    :param short: for the list of commands.
    :param about: what its ``--help`` says before the options, with examples.
    :param after: and after them.
    :param run: returns the exit status.
    """
    parser = commands.add_parser(
        name,
        help=short,
        description=about,
        epilog=after,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


# -- options of several commands -----------------------------------------------------------------


def add_dsn(parser: Parser) -> None:
    """Add ``--dsn``."""
    parser.add_argument("--dsn", help="a connection string or URI")


def add_dsns(parser: Parser) -> None:
    """Add ``--dsn``, for several databases."""
    parser.add_argument(
        "--dsn",
        action="append",
        help="a connection string or URI; again for each further database",
    )


def add_probes(parser: Parser, interval: float = 10.0) -> None:
    """Add what decides how soon silence is noticed.

    :param interval: the default, in seconds.
    """
    parser.add_argument(
        "--probe-interval",
        metavar="S",
        type=duration,
        default=interval,
        help=f"seconds between two proofs that a database is heard, {interval:g} by default",
    )
    parser.add_argument(
        "--probe-timeout",
        metavar="S",
        type=duration,
        default=5.0,
        help="seconds a server has to answer, 5 by default",
    )


def defaults_alone(args: argparse.Namespace) -> bool:
    """Whether nothing says where the database is, so that libpq's own defaults do."""
    return getattr(args, "dsn", "") is None and not os.environ.get("DATABASE_URL")


def told_of(error: Exception, args: argparse.Namespace) -> str:
    """What to say of an error, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ConnectError) and defaults_alone(args):
        text += f"; {NOT_SET}"
    return text


def database_of(args: argparse.Namespace) -> str:
    """The connection string; ``""`` leaves it to libpq."""
    dsn: str | None = args.dsn
    return os.environ.get("DATABASE_URL", "") if dsn is None else dsn


def databases_of(args: argparse.Namespace) -> list[str]:
    """The connection strings, one at least."""
    dsns: list[str] | None = args.dsn
    return dsns or [os.environ.get("DATABASE_URL", "")]


# -- what argparse calls to read a word ----------------------------------------------------------


def channel_name(text: str) -> str:
    """The name of a channel."""
    try:
        return check_channel(text)
    except ChannelNameError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """A whole number above 0."""
    with contextlib.suppress(ValueError):
        if (value := int(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")


def seconds(text: str) -> float:
    """A number of seconds."""
    with contextlib.suppress(ValueError):
        if (value := float(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds")


def duration(text: str) -> float:
    """A finite number of seconds above 0."""
    if 0 < (value := seconds(text)) < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds above 0")
