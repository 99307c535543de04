"""What ``pgsignals top`` draws, and the terminal that it draws on.

The terminal is given back as it was however the command ends: every frame is one write, and
leaving is another, which comes last.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pgsignals._types import DatabaseStatus
from pgsignals._waker import Waker
from pgsignals.cli._watch import Picture, Row, Watch
from pgsignals.cli.terminal import escape, write
from pgsignals.reactor import Reactor

# The alternate screen, without a cursor; and back.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J", "\x1b[0m\x1b[?25h\x1b[?1049l"

STYLES = {"listening": "green", "connecting": "yellow", "lost": "bold red", "stopped": "red"}
SPARKS = " ▁▂▃▄▅▆▇█"
ASCII_SPARKS = " .:-=+*#@"
SEQUENCE = re.compile(r"\x1b(?:\[[\d;]*[A-Za-z~]|O.)")
KEYS = "p pause   f filter   q quit"

#: Columns of a sparkline, and lines of events.
SPARKLINE, EVENTS = 20, 3


# -- drawing -------------------------------------------------------------------------------------


def drawn(picture: Picture, height: int, heading: str, word: str, *, ascii: bool) -> Group:
    """The picture, in so many lines.

    :param heading: stands in the first line.
    :param word: only channels whose name contains it are shown.
    :param ascii: use no other characters of our own.
    """
    rows = [row for row in picture.rows if word.lower() in row.channel.lower()]
    several = len(picture.databases) > 1
    events = picture.events[-EVENTS:]
    room = height - len(picture.databases) - len(events) - 7  # the lines below, one by one
    if len(rows) > room:
        room = max(1, room - 1)
    hidden = len(rows) - room
    parts: list[RenderableType] = [
        Text(heading, style="bold", no_wrap=True, overflow="ellipsis"),
        Text(""),
        databases_table(picture.databases),
        Text(""),
        channels_table(rows[:room], several=several, sparks=ASCII_SPARKS if ascii else SPARKS),
    ]
    if hidden > 0:
        parts.append(Text(f"{hidden} more channels: enlarge the window, or filter", style="dim"))
    parts.append(Text(""))
    parts += [Text(escape(one), style="dim", no_wrap=True, overflow="ellipsis") for one in events]
    parts.append(Text(KEYS, style="dim"))
    return Group(*parts)


def databases_table(databases: tuple[DatabaseStatus, ...]) -> Table:
    """A line for each database."""
    table = a_table("DATABASE", "STATE")
    for name in ("PROBE", "QUEUE", "RECEIVED", "DROPPED", "GAPS", "RECONNECTS"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in databases:
        table.add_row(
            Text(escape(one.name)),
            Text(one.state, style=STYLES[one.state]),
            "-" if one.probe_seconds is None else f"{1000 * one.probe_seconds:.1f} ms",
            "-" if one.queue_usage is None else f"{100 * one.queue_usage:.2g} %",
            f"{one.received:,}",
            Text(f"{one.dropped:,}", style="bold red" if one.dropped else ""),
            Text(f"{one.gaps:,}", style="yellow" if one.gaps else ""),
            f"{one.reconnects:,}",
        )
    return table


def channels_table(rows: list[Row], *, several: bool, sparks: str) -> Table:
    """A line for each channel."""
    table = a_table("CHANNEL", *(["DATABASE"] if several else []))
    table.add_column("PER SECOND", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, style="cyan", width=SPARKLINE)
    table.add_column("TOTAL", justify="right", no_wrap=True)
    table.add_column("LAST PAYLOAD", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        payload = Text("-", style="dim") if row.payload is None else Text(escape(row.payload))
        table.add_row(
            Text(escape(row.channel), style="bold" if row.rates[-1] else ""),
            *([Text(escape(row.database), style="dim")] if several else []),
            f"{row.rates[-1]:,.1f}",
            sparkline(list(row.rates)[-SPARKLINE:], sparks),
            f"{row.total:,}",
            payload,
        )
    return table


def a_table(*names: str) -> Table:
    """A table without lines, whose first columns are called so."""
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def sparkline(rates: list[float], sparks: str) -> str:
    """The rates as characters, the latest at the right."""
    most = max(rates)
    if not most:
        return ""
    steps = len(sparks) - 1
    # What is above zero is seen, however small it is.
    heights = (-(-rate * steps // most) if rate else 0 for rate in rates)
    return "".join(sparks[int(height)] for height in heights).rjust(SPARKLINE)


# -- the terminal --------------------------------------------------------------------------------


class Terminal:
    """Standard output as a screen, and standard input as keys, where it is a terminal, too."""

    def __init__(self) -> None:
        self._entered = False
        self._modes: list[Any] | None = None
        encoding = sys.stdout.encoding.lower().replace("-", "")
        self.ascii = encoding != "utf8"

    def enter(self) -> None:
        """Take the screen and the keys."""
        if sys.stdin is not None and sys.stdin.isatty():
            self._modes = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # no Enter is needed; Ctrl-C and Ctrl-Z stay what they are
        self._entered = True
        write(sys.stdout, ENTER)

    def leave(self) -> None:
        """Give both back as they were, if the terminal is still there."""
        with contextlib.suppress(OSError):
            if self._entered:
                self._entered = False
                write(sys.stdout, LEAVE)
        with contextlib.suppress(OSError, termios.error):
            if self._modes is not None:
                modes, self._modes = self._modes, None
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        size = os.get_terminal_size(sys.stdout.fileno())
        return size.columns or 80, size.lines or 24  # a terminal that nobody has measured says 0

    def draw(self, what: RenderableType) -> None:
        """Show it, from the first line on."""
        columns, height = self.size
        console = Console(
            file=io.StringIO(),
            force_terminal=True,
            legacy_windows=False,
            width=columns,
            height=height,
        )
        with console.capture() as capture:
            console.print(what, crop=True)
        lines = capture.get().rstrip("\n").split("\n")[:height]
        frame = "\r\n".join(f"\x1b[2K{line}" for line in lines)
        write(sys.stdout, f"\x1b[H{frame}\x1b[J" if len(lines) < height else f"\x1b[H{frame}")

    def has_keys(self) -> bool:
        """Whether keys can be read."""
        return self._modes is not None

    def keys(self) -> str:
        """What has been typed; ``""`` when the terminal is gone."""
        try:
            return os.read(sys.stdin.fileno(), 1024).decode(errors="ignore")
        except OSError:
            return ""


class Keyboard:
    """What the keys that were pressed so far mean."""

    def __init__(self) -> None:
        self.quit = self.paused = self.typing = False
        self.word = ""

    def press(self, typed: str) -> None:
        """Obey.  Keys that send a sequence, such as arrows, mean nothing."""
        for key in SEQUENCE.sub("", typed):
            if self.typing:
                self._type(key)
            elif key in "qQ\x04":
                self.quit = True
            elif key in "pP ":
                self.paused = not self.paused
            elif key in "fF/":
                self.typing = True

    def _type(self, key: str) -> None:
        if key in "\r\n":
            self.typing = False
        elif key == "\x1b":
            self.typing, self.word = False, ""
        elif key in "\x7f\b":
            self.word = self.word[:-1]
        elif key.isprintable():
            self.word += key

    @property
    def heading(self) -> str:
        """What of it is shown."""
        shown = ["PAUSED"] if self.paused else []
        if self.typing:
            shown.append(f"filter: {self.word}_")
        elif self.word:
            shown.append(f"filter: {self.word}")
        return "   ".join(shown)


@contextlib.contextmanager
def told_by_signals(waker: Waker) -> Iterator[list[int]]:
    """In this block a new size of the window, and Ctrl-Z, wake; the list tells which came."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        waker.wake()

    numbers = (signal.SIGWINCH, signal.SIGTSTP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(watch: Watch, reactor: Reactor, interval: float, until: float) -> None:
    """Draw until q is pressed, the time is over, or the reactor has ended."""
    terminal, keyboard = Terminal(), Keyboard()
    with contextlib.closing(Waker()) as waker, told_by_signals(waker) as came:
        try:
            terminal.enter()
            poll = select.poll()
            poll.register(waker, select.POLLIN)
            if terminal.has_keys():
                poll.register(sys.stdin, select.POLLIN)
            due, picture = time.monotonic() + interval, watch.picture()
            while not keyboard.quit and reactor.running and time.monotonic() < until:
                if signal.SIGTSTP in came:
                    suspend(terminal)
                came.clear()
                title = f"pgsignals top   {picture.at:%H:%M:%S}   {keyboard.heading}"
                _, height = terminal.size
                word = keyboard.word
                terminal.draw(drawn(picture, height, title, word, ascii=terminal.ascii))
                left = max(0.0, min(due, until) - time.monotonic())
                for number, _ in poll.poll(min(1000 * left, 86_400_000)):
                    if number == waker.fileno():
                        waker.clear()
                    elif typed := terminal.keys():
                        keyboard.press(typed)
                    else:
                        return  # the terminal is gone
                if time.monotonic() >= due:
                    due = max(due + interval, time.monotonic())
                    watch.turn()
                    if not keyboard.paused:
                        picture = watch.picture()
        finally:
            terminal.leave()


def suspend(terminal: Terminal) -> None:
    """Stop as Ctrl-Z asks, and go on when the shell says so."""
    terminal.leave()
    os.kill(os.getpid(), signal.SIGSTOP)
    terminal.enter()
