"""``pgsignals listen``: print each notification, or run a command for it."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime

from pgsignals._pure.values import Notification
from pgsignals._sources.reports import Gap
from pgsignals._wire.waker import Waker
from pgsignals.cli.arguments import (
    FAILED,
    MISUSED,
    NAME,
    PATIENCE,
    WHERE,
    Commands,
    add_command,
    add_dsns,
    channel_name,
    count,
    databases_of,
    seconds,
)
from pgsignals.cli.terminal import CYAN, DIM, escape, paint, put, say
from pgsignals.database import Database
from pgsignals.errors import ConnectionLostError
from pgsignals.reactor import Reactor

ABOUT = """\
Print a line for each notification: the channel, a tab, the payload. Control characters are escaped,
such as \\x1b; --json prints the exact text.

  pgsignals listen orders
  pgsignals listen orders stock --json | jq -r .payload
  pgsignals listen orders --count 1 --timeout 60 && echo "one has arrived"
  pgsignals listen orders --dsn postgresql://app@localhost/shop
  pgsignals listen orders --dsn service=shop --dsn service=warehouse --timestamps
  pgsignals listen orders --exec 'python import_order.py'
  pgsignals listen orders --shell --exec 'echo "$PGSIGNALS_CHANNEL: $(cat)" >> orders.log'

With several databases each line begins with the name of its database and a tab.

--exec runs a command for each notification instead of printing it, one at a time and in order. It
reads the payload from standard input, and finds PGSIGNALS_CHANNEL, PGSIGNALS_DATABASE (host, port
and name) and PGSIGNALS_PID (the server process that notified) in its environment. Payloads are
untrusted: a shell sees one only with --shell, and only if the command itself expands it.

Standard error reports when it is listening, when the session is lost, when it is listening again,
and the period in which notifications may be missing (a gap). It survives restarts of the server.
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 after --count notifications, at the end of --timeout, or when the output is closed;
1 if --timeout came before --count, a command of --exec failed, or the first connection failed;
130 after Ctrl-C, 143 after SIGTERM.
"""


def add(commands: Commands) -> None:
    """Define ``pgsignals listen`` and its options."""
    parser = add_command(commands, "listen", "print notifications", ABOUT, ABOUT_STATUS, listen)
    parser.add_argument("channels", metavar="CHANNEL", nargs="+", type=channel_name, help=NAME)
    add_dsns(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument(
        "--timestamps",
        action="store_true",
        help="print the time of arrival, by this machine's clock",
    )
    parser.add_argument("--count", metavar="N", type=count, help="exit after N notifications")
    parser.add_argument(
        "--timeout", metavar="S", type=seconds, help="exit after S seconds of listening"
    )
    parser.add_argument("--exec", metavar="COMMAND", help="run this command for each notification")
    parser.add_argument("--shell", action="store_true", help="run the command with /bin/sh -c")


class Printer:
    """Prints notifications, one per line."""

    def __init__(self, *, as_json: bool, timestamps: bool, names: bool) -> None:
        self._as_json = as_json
        self._timestamps = timestamps
        self._names = names

    def handle(self, db: Database, notification: Notification) -> None:
        """Print *notification*.

        :raises OSError: standard output cannot be written to.
        """
        put(
            sys.stdout,
            self._object(db, notification) if self._as_json else self._line(db, notification),
        )

    def _object(self, db: Database, notification: Notification) -> str:
        value: dict[str, object] = {"time": now()} if self._timestamps else {}
        if self._names:
            value["database"] = db.name
        return json.dumps(value | notification._asdict())  # ASCII, so nothing is left to escape

    def _line(self, db: Database, notification: Notification) -> str:
        channel, payload, _pid = notification
        words = [paint(DIM, now())] if self._timestamps else []
        if self._names:
            words.append(paint(DIM, escape(db.name)))
        return "\t".join([*words, paint(CYAN, escape(channel)), escape(payload)])

    def end(self) -> None:
        """Do nothing: every line has been written."""


class Runner:
    """Runs a command for each notification.

    :param command: its words, or text for a shell.
    """

    def __init__(self, command: str | list[str]) -> None:
        self.failed = False
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False

    def handle(self, db: Database, notification: Notification) -> None:
        """Run the command for *notification*, and wait until it has ended.

        :raises OSError: it cannot be started.
        """
        channel, payload, pid = notification
        variables = {
            "PGSIGNALS_CHANNEL": channel,
            "PGSIGNALS_DATABASE": db.name,
            "PGSIGNALS_PID": str(pid),
        }
        self._process = process = subprocess.Popen(
            self._command,
            shell=isinstance(self._command, str),
            stdin=subprocess.PIPE,
            env=os.environ | variables,
        )
        if self._over:  # end() was called before it could see the process
            process.terminate()
        process.communicate(payload.encode("utf-8", "surrogateescape"))
        if process.returncode:
            self.failed = True
            end = f"status {process.returncode}"
            if process.returncode < 0:
                end = f"OS signal {-process.returncode}"
            say(f"the --exec command ended with {end} for a notification on {channel}")

    def end(self) -> None:
        """Terminate the command that is running or being started, if any."""
        self._over = True
        if (process := self._process) is not None:
            process.terminate()


class Listener:
    """One run of ``listen``: receives what the reactor reports, and decides when to exit."""

    def __init__(
        self, waker: Waker, channels: Sequence[str], what: Printer | Runner, *, count: int | None
    ) -> None:
        self.status: int | None = None  # None while it runs
        self._channels = ", ".join(dict.fromkeys(channels))
        self._what = what
        self._left = count
        self._waker = waker

    def end(self, status: int) -> None:
        """Stop handling, and make :meth:`wait` return."""
        if self.status is None:
            self.status = status
            self._waker.wake()

    def wait(self, timeout: float) -> None:
        """Wait until it ends, or for *timeout* seconds."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._waker, select.POLLIN)
        if sys.stdout is not None:
            poll.register(sys.stdout, 0)  # reports when its reader is gone
        while self.status is None and (left := deadline - time.monotonic()) > 0:
            for number, event in poll.poll(1000 * min(left, 86_400.0)):
                if event & (select.POLLERR | select.POLLHUP):
                    self.end(0)
                elif number != self._waker.fileno():
                    poll.unregister(number)  # a kind of file that poll() cannot watch

    # -- called by the reactor, on a worker ------------------------------------------------------

    def notified(self, db: Database, *, notification: Notification) -> None:
        """Handle *notification*."""
        if self.status is not None:
            return
        try:
            self._what.handle(db, notification)
        except BrokenPipeError:
            self.end(0)
        except OSError as error:
            what = "write" if isinstance(self._what, Printer) else "run the --exec command"
            say(f"cannot {what}: {error.strerror}")
            self.end(FAILED)
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                self.end(0)

    def connected(self, db: Database, *, resumed: bool) -> None:
        """Report that it is listening."""
        say(f"listening {'again ' if resumed else ''}to {self._channels} on {db.name}")

    def lost(self, _: Database, *, reason: str, error: ConnectionLostError) -> None:
        """Report that the session is lost."""
        say(f"lost ({reason}): {error}; reconnecting")

    def gap(self, db: Database, *, gap: Gap) -> None:
        """Report what may be missing."""
        say(f"gap ({gap.reason}) on {db.name}: {missing(gap)}")

    def stopped(self, _: Reactor, *, error: Exception | None) -> None:
        """Exit if the reactor failed."""
        if error is not None:
            say(str(error))
            self.end(FAILED)


def listen(args: argparse.Namespace) -> int:
    """Listen until the end of the command, and return the exit status."""
    databases = databases_of(args)
    what: Printer | Runner
    if args.exec is None:
        if args.shell:
            say("--shell needs --exec (see pgsignals listen --help)")
            return MISUSED
        what = Printer(as_json=args.json, timestamps=args.timestamps, names=len(databases) > 1)
    else:
        command = args.exec if args.shell else words_of(args.exec)
        if not command:
            return MISUSED
        what = Runner(command)
    reactor = Reactor(*databases, channels=args.channels)
    with contextlib.closing(Waker()) as waker:
        listener = Listener(waker, args.channels, what, count=args.count)
        reactor.any_channel.connect(listener.notified)
        reactor.connected.connect(listener.connected)
        reactor.lost.connect(listener.lost)
        reactor.gap.connect(listener.gap)
        reactor.stopped.connect(listener.stopped)
        try:
            reactor.start()  # a command may run before every database is listened to
            listener.wait(math.inf if args.timeout is None else args.timeout)
        except BaseException:
            listener.end(FAILED)
            what.end()
            raise
        finally:
            if not reactor.stop(PATIENCE):
                what.end()
    if isinstance(what, Runner) and what.failed:
        return FAILED
    if listener.status is not None:
        return listener.status
    return 0 if args.count is None else FAILED


def words_of(command: str) -> list[str] | None:
    """Split *command* into words; report what is wrong and return None if it cannot run."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        say(f"cannot parse the --exec command: {str(error).lower()}")
        return None
    if not words or shutil.which(words[0]) is None:
        name = words[0] if words else ""
        say(f"no program {name!r} for --exec; use --shell for shell syntax")
        return None
    return words


def missing(gap: Gap) -> str:
    """Describe what a gap may have lost."""
    what = "notifications" if gap.dropped is None else f"{gap.dropped} notifications"
    since, until = (
        moment.astimezone().isoformat(" ", "milliseconds") for moment in (gap.since, gap.until)
    )
    return f"{what} from {since} to {until} may be missing"


def now() -> str:
    """This machine's time with its offset from UTC."""
    return datetime.now().astimezone().isoformat("T", "milliseconds")
