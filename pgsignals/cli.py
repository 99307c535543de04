"""The command ``pgsignals``.

What is received is data of strangers: it reaches a terminal with its control characters escaped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from types import FrameType
from typing import NoReturn, TextIO

from pgsignals._channels import check_channel, check_payload
from pgsignals._types import Gap, Notification
from pgsignals._waker import Waker
from pgsignals.database import Database, connect
from pgsignals.errors import ChannelNameError, ConnectionLostError, Error, PayloadError
from pgsignals.reactor import Reactor

#: Status of a command that failed, and of one that was not understood.
FAILED, MISUSED = 1, 2

#: An OS signal that comes within so many seconds after another one is the same wish:
#: timeout(1) sends each of them twice.
SAME_WISH = 1.0

#: What a reader of our output that has stopped reading is given, in seconds, when we end.
PATIENCE = 1.0

WHERE = """\
The database: --dsn, else the environment variable DATABASE_URL, else libpq's own defaults (PGHOST,
PGSERVICE, PGPASSFILE, ...). A password in --dsn can be seen by everybody on this machine.
"""

NAME = "its name, in which upper and lower case differ"

ABOUT = """\
PostgreSQL LISTEN/NOTIFY at the command line.

  pgsignals demo                           see it work, on a PostgreSQL server of its own
  pgsignals listen orders stock            print what is notified, until Ctrl-C
  pgsignals notify orders '{"id": 42}'     notify, from another terminal
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 done, 1 failed, 2 not understood, 130 ended by Ctrl-C, 143 ended by SIGTERM.
Each command has examples: pgsignals listen --help
"""

ABOUT_LISTEN = """\
Print a line for each notification: the channel, a tab, the payload. What could control a terminal
is shown escaped, such as \\x1b; the exact text is in the objects of --json.

  pgsignals listen orders
  pgsignals listen orders stock --json | jq -r .payload
  pgsignals listen orders --count 1 --timeout 60 && echo "one has arrived"
  pgsignals listen orders --dsn postgresql://app@localhost/shop

On standard error it says when it listens, when the session is lost, when it listens again, and for
which time notifications may be missing (a gap). It goes on over restarts of the server.
"""

ABOUT_LISTEN_STATUS = f"""\
{WHERE}
Exit status: 0 after --count notifications, at the end of --timeout, or when nobody reads the output
any more; 1 when --timeout came before --count, or no connection could be made at the start; 130
after Ctrl-C, 143 after SIGTERM.
"""

ABOUT_NOTIFY = """\
Send one notification. The payload is text of at most 7,999 bytes, empty when not given.

  pgsignals notify orders
  pgsignals notify orders '{"id": 42}'
  date | pgsignals notify orders -         the payload is standard input, in UTF-8, save one
                                           newline at its end
  pgsignals notify orders -- --urgent      "--" ends the options
"""

ABOUT_DEMO = """\
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


# -- what is printed -----------------------------------------------------------------------------


def escape(text: str) -> str:
    """*text* in one line, with nothing in it that a terminal obeys or that cannot be seen."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def put(stream: TextIO | None, line: str) -> None:
    """Write *line* at once, from any thread.

    Python's own buffers have locks; a thread that is stuck in one must not keep us from ending.
    """
    if stream is None:  # closed from the start; its number may be a socket's by now
        raise BrokenPipeError
    rest = f"{line}\n".encode(stream.encoding, "backslashreplace")
    while rest:
        try:
            rest = rest[os.write(stream.fileno(), rest) :]
        except BlockingIOError:  # another program of the terminal has left it so
            select.select([], [stream], [])


def say(line: str) -> None:
    """Tell the user, who is not obliged to listen."""
    with contextlib.suppress(OSError):
        put(sys.stderr, f"pgsignals: {escape(line)}")


# -- listen --------------------------------------------------------------------------------------


class Listener:
    """One run of ``pgsignals listen``: what its reactor calls, on a worker, and how it ends."""

    def __init__(
        self, waker: Waker, channels: Sequence[str], *, as_json: bool, count: int | None
    ) -> None:
        self.status: int | None = None  # None: go on
        self._channels = ", ".join(dict.fromkeys(channels))
        self._as_json = as_json
        self._left = count
        self._waker = waker

    def end(self, status: int) -> None:
        """Print no more, and have :meth:`wait` return."""
        if self.status is None:
            self.status = status
            self._waker.wake()

    def wait(self, timeout: float) -> None:
        """Wait until it ends, or for *timeout* seconds."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        if sys.stdout is not None:
            poll.register(sys.stdout, 0)  # tells when nobody reads it any more
        while self.status is None and (left := deadline - time.monotonic()) > 0:
            for number, event in poll.poll(1000 * min(left, 86_400.0)):
                if event & (select.POLLERR | select.POLLHUP):
                    self.end(0)
                elif number != self._waker.fileno():
                    poll.unregister(number)  # a kind of file that this system cannot watch

    # -- what the reactor calls ------------------------------------------------------------------

    def notified(self, _: Database, *, notification: Notification) -> None:
        """Print one."""
        if self.status is not None:
            return
        channel, payload, _pid = notification
        if self._as_json:
            line = json.dumps(notification._asdict())  # ASCII: it escapes by itself
        else:
            line = f"{escape(channel)}\t{escape(payload)}"
        try:
            put(sys.stdout, line)
        except BrokenPipeError:
            self.end(0)
        except OSError as error:
            say(f"cannot write: {error.strerror}")
            self.end(FAILED)
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.end(0)

    def connected(self, db: Database, *, resumed: bool) -> None:
        """Say that it listens."""
        say(f"listening {'again ' if resumed else ''}to {self._channels} on {db.name}")

    def lost(self, _: Database, *, reason: str, error: ConnectionLostError) -> None:
        """Say that it does not listen."""
        say(f"lost ({reason}): {error}; reconnecting")

    def gap(self, _: Database, *, gap: Gap) -> None:
        """Say what may be missing."""
        count = "notifications" if gap.dropped is None else f"{gap.dropped} notifications"
        since, until = (
            moment.astimezone().isoformat(" ", "milliseconds") for moment in (gap.since, gap.until)
        )
        say(f"gap ({gap.reason}): {count} of {since} to {until} may be missing")

    def stopped(self, _: Reactor, *, error: Exception | None) -> None:
        """End when the reactor cannot go on."""
        if error is not None:
            say(str(error))
            self.end(FAILED)


def listen(args: argparse.Namespace) -> int:
    """``pgsignals listen``."""
    reactor = Reactor(database_of(args), channels=args.channels)
    with contextlib.closing(Waker()) as waker:
        listener = Listener(waker, args.channels, as_json=args.json, count=args.count)
        reactor.any_channel.connect(listener.notified)
        reactor.connected.connect(listener.connected)
        reactor.lost.connect(listener.lost)
        reactor.gap.connect(listener.gap)
        reactor.stopped.connect(listener.stopped)
        reactor.start()
        try:
            listener.wait(math.inf if args.timeout is None else args.timeout)
        except BaseException:
            listener.end(FAILED)
            raise
        finally:
            reactor.stop(PATIENCE)
    if listener.status is not None:
        return listener.status
    return 0 if args.count is None else FAILED


# -- notify and demo -----------------------------------------------------------------------------


def notify(args: argparse.Namespace) -> int:
    """``pgsignals notify``."""
    try:
        payload = read_payload() if args.payload == "-" else args.payload
        check_payload(payload, args.channel)
    except PayloadError as error:
        say(str(error))
        return MISUSED
    with connect(database_of(args)) as db:
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
        reason = f"no UTF-8 at byte {error.start}"
    raise PayloadError(f"the payload on standard input: {reason}")


def demo(args: argparse.Namespace) -> int:
    """``pgsignals demo``."""
    from pgsignals.demo import run

    return run(args.seconds, args.dsn)


def database_of(args: argparse.Namespace) -> str:
    """The connection string; ``""`` leaves it to libpq."""
    dsn: str | None = args.dsn
    return os.environ.get("DATABASE_URL", "") if dsn is None else dsn


# -- the command line ----------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        say(f"{message} (see {self.prog} --help)")
        raise SystemExit(MISUSED)


class Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print("pgsignals", metadata.version("pgsignals-reactor"))
        raise SystemExit(0)


def channel_name(text: str) -> str:
    try:
        return check_channel(text)
    except ChannelNameError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    with contextlib.suppress(ValueError):
        if (value := int(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")


def seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (value := float(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")


def duration(text: str) -> float:
    if 0 < (value := seconds(text)) < math.inf:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def parser() -> Parser:
    """The command line as argparse knows it."""
    style = argparse.RawDescriptionHelpFormatter
    top = Parser(
        "pgsignals",
        description=ABOUT,
        epilog=ABOUT_STATUS,
        formatter_class=style,
        allow_abbrev=False,
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version and end")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, short: str, about: str, after: str) -> Parser:
        return commands.add_parser(
            name,
            help=short,
            description=about,
            epilog=after,
            formatter_class=style,
            allow_abbrev=False,
        )

    sub = add("demo", "see it work", ABOUT_DEMO, "")
    sub.add_argument("--seconds", metavar="S", type=duration, default=10.0, help="10 by default")
    sub.add_argument("--dsn", help="a database to use instead of a server of its own")
    sub.set_defaults(run=demo)

    sub = add("listen", "print what is notified", ABOUT_LISTEN, ABOUT_LISTEN_STATUS)
    sub.add_argument("channels", metavar="CHANNEL", nargs="+", type=channel_name, help=NAME)
    sub.add_argument("--dsn", help="a connection string or URI")
    sub.add_argument("--json", action="store_true", help="print JSON, an object a line")
    sub.add_argument("--count", metavar="N", type=count, help="end after N notifications")
    sub.add_argument(
        "--timeout", metavar="S", type=seconds, help="end after S seconds of listening"
    )
    sub.set_defaults(run=listen)

    sub = add("notify", "send a notification", ABOUT_NOTIFY, WHERE)
    sub.add_argument("channel", metavar="CHANNEL", type=channel_name, help=NAME)
    sub.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", default="", help='text, or "-" for standard input'
    )
    sub.add_argument("--dsn", help="a connection string or URI")
    sub.set_defaults(run=notify)
    return top


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """OS signals end the block with the status that shells give them: 128 + number.

    What follows cleans up; another signal, when that takes too long, ends the program at once.
    """
    first: list[float] = []

    def end(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not first:
            first.append(now)
            if number == signal.SIGINT and sys.stderr is not None and sys.stderr.isatty():
                os.write(sys.stderr.fileno(), b"\n")  # the terminal has written ^C
            raise SystemExit(128 + number)
        if now - first[0] > SAME_WISH:
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
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    # What its warnings say of a link, we say ourselves.
    logging.getLogger("pgsignals").setLevel(logging.ERROR)
    try:
        with ended_by_signals():
            try:
                args = parser().parse_args(argv)
                status: int = args.run(args)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
    except (Error, OSError) as error:
        return failed(error)
    except Exception as error:
        if not hasattr(error, "sqlstate"):
            raise
        return failed(error)  # psycopg's: the server has refused a statement
    return status


def failed(error: Exception) -> int:
    """Say why, and return the exit status."""
    if isinstance(error, OSError) and not isinstance(error, Error):
        _forget_output()
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    say(" ".join(str(error).split()))
    return FAILED


def _forget_output() -> None:
    """What could not be written, the interpreter would try to write again at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
