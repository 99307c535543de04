"""The screen of ``pgsignals top``: how it is drawn, and the terminal itself.

The terminal is restored however the command ends: each frame is one write, and the last write
restores it.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.table import Table
from rich.text import Text

from pgsignals._sources.reports import DatabaseStatus
from pgsignals._wire.waker import Waker
from pgsignals.cli._watch import Picture, Row, Watch
from pgsignals.cli.terminal import escape, write
from pgsignals.reactor import Reactor

# Switch to the alternate screen and hide the cursor; and back.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J", "\x1b[0m\x1b[?25h\x1b[?1049l"

STYLES = {"listening": "green", "connecting": "yellow", "lost": "bold red", "stopped": "red"}
SPARKS = " ▁▂▃▄▅▆▇█"
ASCII_SPARKS = " .:-=+*#@"
SEQUENCE = re.compile(r"\x1b(?:\[[\d;]*[A-Za-z~]|O.)")
KEYS = "p pause   f filter   s sort   ? keys   q quit"
HELP = (
    "p, space   pause the display; counting continues",
    "f, /       filter channels by name",
    "           Enter keeps the filter, Esc clears it",
    "s          change the order: as given, per second, total, name",
    "?          show or hide this help",
    "q          quit",
)

#: Orders of the channels, in the sequence in which the key s selects them.
ORDERS: dict[str, Callable[[Row], Any] | None] = {
    "": None,  # as given
    "per second": lambda row: -row.rates[-1],
    "total": lambda row: -row.total,
    "name": lambda row: row.channel,
}

#: Columns of a sparkline, and lines of events.
SPARKLINE, EVENTS = 20, 3

#: Columns below which headings and sparklines are shorter; below half of it, sparklines are left
#: out.
NARROW = 96

#: Columns that the name of a database gets at least.
NAME = 20

#: Columns between two columns of a table.
GAP = 2


@dataclass(frozen=True)
class View:
    """What the user has chosen to see.

    :param heading: the first line.
    :param word: only channels whose name contains it are shown.
    :param order: a key of :data:`ORDERS`.
    :param keys: whether to show the help on keys.
    """

    heading: str = ""
    word: str = ""
    order: str = ""
    keys: bool = False


# -- drawing -------------------------------------------------------------------------------------


def drawn(picture: Picture, width: int, height: int, view: View, *, ascii: bool) -> Group:
    """Lay out *picture* in *width* columns and *height* lines.

    :param ascii: draw with ASCII characters only.
    """
    rows = [row for row in picture.rows if view.word.lower() in row.channel.lower()]
    if (order := ORDERS[view.order]) is not None:
        rows.sort(key=order)
    several = len(picture.databases) > 1
    events = [] if view.keys else [escape(one) for one in picture.events[-EVENTS:]]
    below = [*events, *(HELP if view.keys else [KEYS])]
    room = height - len(picture.databases) - len(below) - 6  # the other lines, one by one
    if len(rows) > room:
        room = max(1, room - 1)
    hidden = len(rows) - room
    sparks = ASCII_SPARKS if ascii else SPARKS
    parts: list[RenderableType] = [
        Text(view.heading, style="bold", no_wrap=True, overflow="ellipsis"),
        Text(""),
        databases_table(picture.databases, width),
        Text(""),
        channels_table(rows[:room], width, several=several, sparks=sparks),
    ]
    if hidden > 0:
        parts.append(Text(f"{hidden} more channels: enlarge the window, or filter", style="dim"))
    parts.append(Text(""))
    parts += [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in below]
    return Group(*parts)


def databases_table(databases: tuple[DatabaseStatus, ...], width: int) -> Table:
    """A line for each database: its name, its state, and as much else as fits."""
    columns = {
        "STATE": [Text(one.state, style=STYLES[one.state]) for one in databases],
        "PROBE": [milliseconds(one.probe_seconds) for one in databases],
        "QUEUE": [percent(one.queue_usage) for one in databases],
        "RECEIVED": [Text(f"{one.received:,}") for one in databases],
        "DROPPED": [
            Text(f"{one.dropped:,}", style="bold red" if one.dropped else "") for one in databases
        ],
        "GAPS": [Text(f"{one.gaps:,}", style="yellow" if one.gaps else "") for one in databases],
        "RECONNECTS": [Text(f"{one.reconnects:,}") for one in databases],
    }
    names = [Text(escape(one.name)) for one in databases]
    widths = {name: width_of(name, cells) for name, cells in columns.items()}
    room = width - min(width_of("DATABASE", names), NAME) - GAP - widths["STATE"]
    shown = {"STATE"}
    for name in ("GAPS", "DROPPED", "QUEUE", "PROBE", "RECEIVED", "RECONNECTS"):
        room -= GAP + widths[name]
        if room < 0:
            break
        shown.add(name)
    table = a_table()
    table.add_column("DATABASE", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in columns:
        if name in shown:
            side: JustifyMethod = "left" if name == "STATE" else "right"
            table.add_column(name, justify=side, no_wrap=True, width=widths[name])
    for number, place in enumerate(names):
        table.add_row(place, *(columns[one][number] for one in columns if one in shown))
    return table


def channels_table(rows: list[Row], width: int, *, several: bool, sparks: str) -> Table:
    """A line for each channel."""
    narrow = width < NARROW
    rate, payload = ("/S", "PAYLOAD") if narrow else ("PER SECOND", "LAST PAYLOAD")
    line = SPARKLINE * 2 // 5 if narrow else SPARKLINE
    if width < NARROW // 2:
        line = 0
    names = [Text(escape(row.channel), style="bold" if row.rates[-1] else "") for row in rows]
    places = [Text(escape(row.database), style="dim") for row in rows]
    rates = [Text(f"{row.rates[-1]:,.1f}") for row in rows]
    totals = [Text(f"{row.total:,}") for row in rows]
    table = a_table()
    longest = min(width_of("CHANNEL", names), max(width // 3, 7))
    table.add_column("CHANNEL", no_wrap=True, overflow="ellipsis", width=longest)
    if several:
        longest = min(width_of("DATABASE", places), max(width // 4, 8))
        table.add_column("DATABASE", no_wrap=True, overflow="ellipsis", width=longest)
    table.add_column(rate, justify="right", no_wrap=True, width=width_of(rate, rates))
    if line:
        table.add_column("", no_wrap=True, style="cyan", width=line)
    table.add_column("TOTAL", justify="right", no_wrap=True, width=width_of("TOTAL", totals))
    table.add_column(payload, no_wrap=True, overflow="ellipsis", ratio=1)
    for number, row in enumerate(rows):
        last = Text("-", style="dim") if row.payload is None else Text(escape(row.payload))
        table.add_row(
            names[number],
            *([places[number]] if several else []),
            rates[number],
            *([sparkline(list(row.rates)[-line:], sparks, line)] if line else []),
            totals[number],
            last,
        )
    return table


def a_table() -> Table:
    """A table without lines."""
    return Table(box=None, expand=True, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")


def width_of(heading: str, cells: list[Text]) -> int:
    """The width that a column needs to show *cells* in full."""
    return max(map(cell_len, (heading, *(cell.plain for cell in cells))))


def milliseconds(seconds: float | None) -> Text:
    """Format *seconds* for a cell."""
    return Text("-" if seconds is None else f"{1000 * seconds:.1f} ms")


def percent(share: float | None) -> Text:
    """Format *share* for a cell."""
    return Text("-" if share is None else f"{100 * share:.2g} %")


def sparkline(rates: list[float], sparks: str, width: int) -> str:
    """Draw *rates* in *width* characters, the latest at the right."""
    most = max(rates)
    if not most:
        return ""
    steps = len(sparks) - 1
    # Any rate above zero is visible, however small.
    heights = (-(-rate * steps // most) if rate else 0 for rate in rates)
    return "".join(sparks[int(height)] for height in heights).rjust(width)


# -- the terminal --------------------------------------------------------------------------------


class Terminal:
    """Standard output as a screen, and standard input as a keyboard if it is a terminal."""

    def __init__(self) -> None:
        self._entered = False
        self._modes: list[Any] | None = None
        encoding = sys.stdout.encoding.lower().replace("-", "")
        self.ascii = encoding != "utf8"

    def enter(self) -> None:
        """Take over the screen and the keyboard."""
        if sys.stdin is not None and sys.stdin.isatty():
            self._modes = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # keys without Enter; Ctrl-C and Ctrl-Z still work
        self._entered = True
        write(sys.stdout, ENTER)

    def leave(self) -> None:
        """Restore both, if the terminal still exists."""
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
        return size.columns or 80, size.lines or 24  # a terminal of unknown size reports 0

    def draw(self, what: RenderableType) -> None:
        """Draw *what* from the first line on."""
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
        """Read what was typed; ``""`` if the terminal is gone."""
        try:
            return os.read(sys.stdin.fileno(), 1024).decode(errors="ignore")
        except OSError:
            return ""


class Keyboard:
    """The state that the keys pressed so far have led to."""

    def __init__(self) -> None:
        self.quit = self.paused = self.typing = self.helping = False
        self.word = self.order = ""

    def press(self, typed: str) -> None:
        """Handle the keys in *typed*, ignoring those that send a sequence, such as arrows."""
        for key in SEQUENCE.sub("", typed):
            if self.typing:
                self._type(key)
            elif key in "qQ\x04":
                self.quit = True
            elif key in "pP ":
                self.paused = not self.paused
            elif key in "fF/":
                self.typing, self.helping = True, False
            elif key in "sS":
                orders = list(ORDERS)
                self.order = orders[(orders.index(self.order) + 1) % len(orders)]
            elif key in "?hH":
                self.helping = not self.helping

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
        """The part of the state that the first line shows."""
        shown = ["PAUSED"] if self.paused else []
        if self.order:
            shown.append(f"by {self.order}")
        if self.typing:
            shown.append(f"filter: {self.word}_")
        elif self.word:
            shown.append(f"filter: {self.word}")
        return "   ".join(shown)


@contextlib.contextmanager
def woken_by_signals(waker: Waker) -> Iterator[list[int]]:
    """Wake on a resized window and on Ctrl-Z; the list holds the OS signals that came."""
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
    """Draw until q is pressed, the time is up, or the reactor has stopped."""
    terminal, keyboard = Terminal(), Keyboard()
    with contextlib.closing(Waker()) as waker, woken_by_signals(waker) as came:
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
                view = View(title, keyboard.word, keyboard.order, keyboard.helping)
                terminal.draw(drawn(picture, *terminal.size, view, ascii=terminal.ascii))
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
    """Stop the process on Ctrl-Z, and continue when the shell resumes it."""
    terminal.leave()
    os.kill(os.getpid(), signal.SIGSTOP)
    terminal.enter()
