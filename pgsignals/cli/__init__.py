"""The command ``pgsignals``, with a module for each of its commands."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from pgsignals.cli import (
    bench,
    completion,
    demo,
    doctor,
    listen,
    notify,
    publish,
    run,
    schema,
    top,
)
from pgsignals.cli.arguments import FAILED, MISUSED, WHERE, Parser, Version, message_for
from pgsignals.cli.terminal import say
from pgsignals.errors import Error

#: Seconds within which a second OS signal only repeats the first: timeout(1) sends each twice.
REPEAT = 1.0

ABOUT = """\
PostgreSQL LISTEN/NOTIFY at the command line.

  pgsignals demo                           see it work, on a throwaway PostgreSQL server
  pgsignals listen orders stock            print notifications until Ctrl-C
  pgsignals notify orders '{"id": 42}'     send one, from another terminal
  pgsignals schema init                    install durable channels, once per database
  pgsignals publish orders '{"id": 42}'    publish an event that survives
  pgsignals doctor                         find out why nothing arrives
  pgsignals run shop.handlers              run your handlers as a service
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 success, 1 failure, 2 usage error, 130 ended by Ctrl-C, 143 ended by SIGTERM.
The help of each command has examples: pgsignals listen --help
"""


def parser() -> Parser:
    """The command line as argparse knows it."""
    top_level = Parser(
        "pgsignals",
        description=ABOUT,
        epilog=ABOUT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top_level.add_argument("--version", action=Version, nargs=0, help="print the version and exit")
    commands = top_level.add_subparsers(metavar="COMMAND", required=True)
    for command in (demo, listen, notify, publish, schema, doctor, top, run, bench):
        command.add(commands)
    completion.add(commands, top_level)
    return top_level


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Turn OS signals into SystemExit with the status that shells use: 128 + number.

    ``finally`` blocks then clean up; another signal meanwhile ends the program at once.
    """
    first: list[float] = []

    def end(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            if number == signal.SIGINT and sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\n")  # the terminal has written ^C
            raise SystemExit(128 + number)
        if now - first[0] > REPEAT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else nohup(1) has started us
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if first:  # on the way out: a repeated signal must not change the status
                handler = signal.SIG_IGN
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    # The commands report what happens to a link themselves.
    logging.getLogger("pgsignals").setLevel(logging.ERROR)
    args = argparse.Namespace()
    try:
        with ended_by_signals():
            try:
                if not (sys.argv[1:] if argv is None else argv):
                    parser().print_help(sys.stderr)
                    return MISUSED
                args = parser().parse_args(argv)
                status: int = args.run(args)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
    except (Error, OSError) as error:
        return failed(error, args)
    except Exception as error:
        if not hasattr(error, "sqlstate"):
            raise
        return failed(error, args)  # psycopg's: the server rejected a statement
    return status


def failed(error: Exception, args: argparse.Namespace) -> int:
    """Report *error*, and return the exit status."""
    if isinstance(error, OSError) and not isinstance(error, Error):
        _forget_output()
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    say(message_for(error, args))
    return FAILED


def _forget_output() -> None:
    """Discard unwritten output, or the interpreter would try to write it again at exit."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
