"""The command ``pgsignals`` in processes of its own, in pipes and in terminals."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from tests.support.waiting import PATIENCE, wait_until

PGSIGNALS = [sys.executable, "-m", "pgsignals"]
ROOT = Path(__file__).parents[2]

#: Nobody listens there.
NOWHERE = "postgresql://app:hush@127.0.0.1:1/shop"

numbers = itertools.count(1)


class Command:
    """A running command, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._folder = folder

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text("utf-8")

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text("utf-8")

    def until(self, text: str, count: int = 1) -> None:
        """Return when *text* has been printed on standard error, *count* times."""
        wait_until(lambda: self.err.count(text) >= count, why=f"it never said {text!r}")

    def status(self, timeout: float = PATIENCE) -> int:
        """Wait for its end."""
        return self.process.wait(timeout)


Start: TypeAlias = Callable[..., Command]


def environment(dsn: str | None, **more: str) -> dict[str, str]:
    """Ours, with another DATABASE_URL, or none."""
    drop = ("DATABASE_URL", "PYTHONUNBUFFERED", "NO_COLOR", "COLUMNS", "LINES", "TERM", "LANG")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return kept | ({} if dsn is None else {"DATABASE_URL": dsn}) | more


@contextlib.contextmanager
def commands(default: str, folder: Path) -> Iterator[Start]:
    """Starts commands, by default with *default* as DATABASE_URL, and ends them afterwards.

    :param folder: for what they print.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(
        *arguments: str,
        url: str | None = default,
        stdin: bytes = b"",
        out: Path | None = None,
        cwd: Path | None = None,
        **env: str,
    ) -> Command:
        place = folder / f"command_{next(numbers)}"
        place.mkdir()
        (place / "in").write_bytes(stdin)
        with (
            (place / "in").open("rb") as source,
            (out or place / "out").open("wb") as target,
            (place / "err").open("wb") as err,
        ):
            process = subprocess.Popen(
                [*PGSIGNALS, *arguments],
                stdin=source,
                stdout=target,
                stderr=err,
                cwd=cwd,
                env=environment(url, PYTHONPATH=str(ROOT), **env),
            )
        started.append(process)
        return Command(process, place)

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def one_line(text: str) -> str:
    """*text*, which must be one line of ours."""
    assert text.startswith("pgsignals: "), text
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text


# -- terminals -----------------------------------------------------------------------------------

# A program of a new session takes standard input for its terminal, as a shell's do.
TAKING_THE_TERMINAL = [
    *(sys.executable, "-c"),
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execvp(sys.argv[1], sys.argv[1:])",
]

_SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class Screen:
    """What a terminal shows: as much of one as the tests need."""

    def __init__(self, columns: int, lines: int) -> None:
        self.scrolled = False  # something was written below the last line, or beyond the right edge
        self.columns = columns
        self.lines = lines
        self._row = 0
        self._rows = [""] * lines
        self._rest = ""

    @property
    def text(self) -> str:
        return "\n".join(self._rows)

    def feed(self, text: str) -> None:
        text = self._rest + text
        # A sequence that is cut off waits for the rest of it.
        cut = text.rfind("\x1b")
        complete = cut < 0 or _SEQUENCE.match(text, cut)
        text, self._rest = (text, "") if complete else (text[:cut], text[cut:])
        while text:
            if match := _SEQUENCE.match(text):
                self._obey(match[1] + match[2], match[3])
                text = text[match.end() :]
            elif text.startswith("\n"):
                self.scrolled |= self._row == self.lines - 1
                self._row = min(self._row + 1, self.lines - 1)
                text = text[1:]
            elif text.startswith("\r"):
                text = text[1:]
            else:
                match = re.match(r"[^\x1b\r\n]+", text)
                assert match, f"what does {text[:20]!r} do?"
                self._rows[self._row] += match[0]
                self.scrolled |= len(self._rows[self._row]) > self.columns
                text = text[match.end() :]

    def _obey(self, numbers: str, letter: str) -> None:
        match letter, numbers:
            case "H", "":
                self._row = 0
            case "K", "2":
                self._rows[self._row] = ""
            case "J", "2":
                self._rows = [""] * self.lines
            case "J", "":
                self._rows[self._row + 1 :] = [""] * (self.lines - self._row - 1)
            case "h" | "l", "?1049" | "?25":
                pass  # Terminal.is_restored looks at them
            case "m", _:
                pass
            case _:
                raise AssertionError(f"what does {numbers}{letter} do?")


class Terminal:
    """A terminal in which a command runs, as its controlling one."""

    def __init__(
        self, arguments: Sequence[str], env: dict[str, str], columns: int = 100, lines: int = 24
    ) -> None:
        self._main, self._side = pty.openpty()
        self.screen = Screen(columns, lines)
        self.raw = ""
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self._side)
        self.process = subprocess.Popen(
            [*TAKING_THE_TERMINAL, *arguments],
            stdin=self._side,
            stdout=self._side,
            stderr=self._side,
            start_new_session=True,
            env={"TERM": "xterm-256color", "LANG": "C.UTF-8"} | env,
        )
        self._reader = threading.Thread(target=self._read, name="test-terminal", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                data = rest + os.read(self._main, 65536)
            except OSError:
                return
            end = len(data)
            while end and data[end - 1] & 0xC0 == 0x80:  # a character may have been cut
                end -= 1
            if end and data[end - 1] >= 0xC0:
                end -= 1
            else:
                end = len(data)
            text, rest = data[:end].decode(errors="replace"), data[end:]
            self.raw += text
            self.screen.feed(text)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._side)
        self._reader.join(PATIENCE)
        os.close(self._main)

    def resize(self, columns: int, lines: int) -> None:
        """Give the window another size, of which the system tells the command by SIGWINCH."""
        self.screen = Screen(columns, lines)
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def fits(self) -> bool:
        """Whether the next two frames stay within the window."""
        self.screen = Screen(self.screen.columns, self.screen.lines)
        frames = self.raw.count("\x1b[H") + 2
        wait_until(lambda: self.raw.count("\x1b[H") >= frames, why="nothing was drawn")
        return not self.screen.scrolled

    def press(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def shows(self, *texts: str) -> None:
        """Return when the screen shows all of them."""
        wait_until(
            lambda: all(text in self.screen.text for text in texts), why=f"never showed {texts}"
        )

    def status(self, timeout: float = PATIENCE) -> int:
        """Wait for its end."""
        return self.process.wait(timeout)

    @property
    def is_restored(self) -> bool:
        """Whether it is as the command has found it."""
        shown = self.raw.rfind("\x1b[?25h") > self.raw.rfind("\x1b[?25l")
        left = self.raw.rfind("\x1b[?1049l") > self.raw.rfind("\x1b[?1049h")
        return shown and left and termios.tcgetattr(self._side) == self.modes


def stopped_by_the_terminal(pid: int) -> bool:
    """Whether the process stands still, as after Ctrl-Z."""
    status = Path(f"/proc/{pid}/stat").read_text("utf-8")
    return status.rpartition(")")[2].split()[0] == "T"


def go_on(pid: int) -> None:
    """As ``fg`` does."""
    os.kill(pid, signal.SIGCONT)
