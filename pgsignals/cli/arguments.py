"""What the commands' argument parsers have in common: options, types of values, errors."""

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

#: Exit status after a failure, and after a usage error.
FAILED, MISUSED = 1, 2

#: Grace period at exit, in seconds, for a stalled reader of our output.
PATIENCE = 1.0

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|inf|nan)(e\d+)?")

_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)

WHERE = """\
The database is --dsn, or the environment variable DATABASE_URL, or libpq's own variables and
defaults (PGHOST, PGSERVICE, PGPASSFILE, ...). Any user of this machine can see a password in --dsn.
"""

NOT_SET = (
    "neither --dsn nor DATABASE_URL is set, so libpq's own variables (PGHOST, ...) and defaults "
    "apply"
)

NAME = "channel name, case-sensitive"


class Parser(argparse.ArgumentParser):
    """Reports errors in one line, and suggests a correction."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.bare: dict[str, str] = {}
        """Options whose number may be left out, with the number used then: argparse would take the
        next word for it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Give :attr:`bare` options their number, then parse as argparse does."""
        words = list(sys.argv[1:] if args is None else args)
        for at, word in enumerate(words):
            if word in self.bare and not _NUMBER.fullmatch("".join(words[at + 1 : at + 2])):
                words[at] = f"{word}={self.bare[word]}"
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        if (found := _CHOICE.search(message)) is not None:
            word, choices = found.groups()
            near = difflib.get_close_matches(word, re.findall(r"[\w-]+", choices), 1)
            message += f"; did you mean {near[0]}?" if near else ""
        say(f"{message} (see {self.prog} --help)")
        raise SystemExit(MISUSED)


class Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print("pgsignals", metadata.version("pgsignals-reactor"))
        raise SystemExit(0)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
Run: TypeAlias = Callable[[argparse.Namespace], int]


def add_command(
    commands: Commands, name: str, short: str, about: str, after: str, run: Run
) -> Parser:
    """Add a command.

    :param short: its line in the list of commands.
    :param about: what its ``--help`` says before the options, with examples.
    :param after: what it says after them.
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
    parser.add_argument("--dsn", help="connection string or URI")


def add_dsns(parser: Parser) -> None:
    """Add ``--dsn``, which may be repeated."""
    parser.add_argument(
        "--dsn",
        action="append",
        help="connection string or URI; repeat it for several databases",
    )


def add_probes(parser: Parser, interval: float = 10.0) -> None:
    """Add the options that decide how soon a silent server is noticed.

    :param interval: the default, in seconds.
    """
    parser.add_argument(
        "--probe-interval",
        metavar="S",
        type=duration,
        default=interval,
        help=f"seconds between two probes of the connection, {interval:g} by default",
    )
    parser.add_argument(
        "--probe-timeout",
        metavar="S",
        type=duration,
        default=5.0,
        help="seconds to wait for the server's answer, 5 by default",
    )


def defaults_alone(args: argparse.Namespace) -> bool:
    """Whether neither ``--dsn`` nor ``DATABASE_URL`` says where the database is."""
    return getattr(args, "dsn", "") is None and not os.environ.get("DATABASE_URL")


def message_for(error: Exception, args: argparse.Namespace) -> str:
    """The message for *error*, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, ConnectError) and defaults_alone(args):
        text += f"; {NOT_SET}"
    return text


def database_of(args: argparse.Namespace) -> str:
    """The connection string; ``""`` leaves it to libpq."""
    dsn: str | None = args.dsn
    return os.environ.get("DATABASE_URL", "") if dsn is None else dsn


def databases_of(args: argparse.Namespace) -> list[str]:
    """The connection strings, at least one."""
    dsns: list[str] | None = args.dsn
    return dsns or [os.environ.get("DATABASE_URL", "")]


# -- types of arguments --------------------------------------------------------------------------


def channel_name(text: str) -> str:
    """Check the name of a channel."""
    try:
        return check_channel(text)
    except ChannelNameError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """Parse a positive integer."""
    with contextlib.suppress(ValueError):
        if (value := int(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}")


def seconds(text: str) -> float:
    """Parse a number of seconds, which may be 0 or ``inf``."""
    with contextlib.suppress(ValueError):
        if (value := float(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")


def duration(text: str) -> float:
    """Parse a finite number of seconds above 0."""
    if 0 < (value := seconds(text)) < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
