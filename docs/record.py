"""Makes the pictures of the documentation: of a terminal in which a command runs.

::

    python docs/record.py                # writes docs/demo.svg
    python docs/record.py --seconds 6 --at 'gap \\(' --output picture.svg
    python docs/record.py top            # writes docs/top.svg, of a busy server of its own

The command runs in a terminal that `tmux` provides; the last screen that shows what ``--at`` asks
for becomes the picture.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import NamedTuple

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from pgsignals.demo import ITEMS
from pgsignals.embedded import Postgres

CELL_WIDTH, CELL_HEIGHT, FONT_SIZE, MARGIN, BAR = 8.43, 17, 14, 16, 28
FONTS = "ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace"
FOREGROUND, BACKGROUND = "#d8dee9", "#12161d"
#: What a terminal calls 0 to 15.
COLOURS = [
    *("#1c2128", "#e06c75", "#7fb069", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#abb2bf"),
    *("#5c6370", "#ff7b85", "#98c379", "#f0d58c", "#82c0ff", "#d899ee", "#7fd1da", "#ffffff"),
]
SGR = re.compile(r"\x1b\[([\d;]*)m")
OTHER_SEQUENCES = re.compile(r"\x1b(?:\[[\d;?]*[A-Za-ln-z]|[()].|\].*?(?:\x07|\x1b\\))")


# -- the terminal ----------------------------------------------------------------------------------


class Size(NamedTuple):
    """Of a terminal."""

    columns: int
    rows: int


def screens(
    command: Sequence[str], environment: dict[str, str], directory: str, size: Size
) -> Iterator[str]:
    """What a terminal shows, with its colours, ten times a second and once at the end.

    :param directory: for the socket, which tmux leaves behind.
    """
    tmux = ["tmux", "-S", str(Path(directory, "socket")), "-f", os.devnull]
    script = f"{shlex.join(command)}; tmux wait-for -S ended; exec sleep 60"
    extent = ["-x", str(size.columns), "-y", str(size.rows)]
    settings = [["set", "-g", "status", "off"], ["set", "-g", "default-terminal", "tmux-256color"]]
    start = [*tmux, "new-session", "-d", *extent, "sh", "-c", "exec sleep 60"]
    subprocess.run(start, env=environment, check=True)
    try:
        for setting in settings:
            subprocess.run([*tmux, *setting], check=True)
        subprocess.run([*tmux, "respawn-pane", "-k", "sh", "-c", script], check=True)
        ended = subprocess.Popen([*tmux, "wait-for", "ended"])
        with ended:
            while ended.poll() is None:
                yield screen(tmux)
                time.sleep(0.1)
        yield screen(tmux)
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run([*tmux, "kill-server"], check=True)


def screen(tmux: Sequence[str]) -> str:
    """What it shows now."""
    capture = [*tmux, "capture-pane", "-p", "-e", "-N"]
    return subprocess.run(capture, capture_output=True, text=True, check=True).stdout


# -- the picture -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How a run of characters looks."""

    colour: str | None = None
    background: str | None = None
    bold: bool = False
    dim: bool = False
    italic: bool = False
    underlined: bool = False
    reversed: bool = False

    def after(self, codes: list[int]) -> Style:
        """The style that a sequence of codes leads to."""
        style, codes = self, codes[:]
        while codes:
            match codes.pop(0):
                case 0:
                    style = Style()
                case 1:
                    style = replace(style, bold=True)
                case 2:
                    style = replace(style, dim=True)
                case 3:
                    style = replace(style, italic=True)
                case 4:
                    style = replace(style, underlined=True)
                case 7:
                    style = replace(style, reversed=True)
                case 22:
                    style = replace(style, bold=False, dim=False)
                case 23:
                    style = replace(style, italic=False)
                case 24:
                    style = replace(style, underlined=False)
                case 27:
                    style = replace(style, reversed=False)
                case 38:
                    style = replace(style, colour=extended(codes))
                case 39:
                    style = replace(style, colour=None)
                case 48:
                    style = replace(style, background=extended(codes))
                case 49:
                    style = replace(style, background=None)
                case code if 30 <= code <= 37 or 90 <= code <= 97:
                    style = replace(style, colour=COLOURS[code % 10 + 8 * (code >= 90)])
                case code if 40 <= code <= 47 or 100 <= code <= 107:
                    style = replace(style, background=COLOURS[code % 10 + 8 * (code >= 100)])
        return style


def extended(codes: list[int]) -> str:
    """A colour by number or by its parts; takes what describes it off *codes*."""
    if codes.pop(0) == 5:
        number = codes.pop(0)
        if number < 16:
            return COLOURS[number]
        if number >= 232:
            return "#" + f"{8 + 10 * (number - 232):02x}" * 3
        steps = (0, 95, 135, 175, 215, 255)
        number -= 16
        parts = (steps[number // 36], steps[number // 6 % 6], steps[number % 6])
    else:
        red, green, blue = codes.pop(0), codes.pop(0), codes.pop(0)
        parts = (red, green, blue)
    return "#{:02x}{:02x}{:02x}".format(*parts)


def runs(line: str, style: Style) -> tuple[list[tuple[int, str, Style]], Style]:
    """The runs of one line as column, text and style; and the style that the next begins with."""
    found = []
    column = 0
    for index, part in enumerate(SGR.split(OTHER_SEQUENCES.sub("", line))):
        if index % 2:
            style = style.after([int(code or 0) for code in part.split(";")])
        elif part:
            found.append((column, part, style))
            column += len(part)
    return found, style


def svg(text: str, title: str, size: Size) -> str:
    """A screen as a picture."""
    width = round(size.columns * CELL_WIDTH + 2 * MARGIN)
    height = BAR + size.rows * CELL_HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="{FONTS}" font-size="{FONT_SIZE}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>',
    ]
    for index, colour in enumerate(("#e06c75", "#e5c07b", "#7fb069")):
        parts.append(f'<circle cx="{18 + 18 * index}" cy="15" r="5" fill="{colour}"/>')
    style = Style()
    for row, line in enumerate(text.split("\n")[: size.rows]):
        found, style = runs(line, style)
        for column, run, look in found:
            parts += drawn(row, column, run, look)
    return "\n".join([*parts, "</svg>", ""])


def drawn(row: int, column: int, text: str, style: Style) -> Iterator[str]:
    """The elements for one run."""
    colour, background = style.colour or FOREGROUND, style.background
    if style.reversed:
        colour, background = background or BACKGROUND, colour
    left, top = MARGIN + column * CELL_WIDTH, BAR + row * CELL_HEIGHT
    if background is not None:
        yield (
            f'<rect x="{left:.2f}" y="{top}" width="{len(text) * CELL_WIDTH:.2f}" '
            f'height="{CELL_HEIGHT}" fill="{background}" shape-rendering="crispEdges"/>'
        )
    words = text.strip(" ")
    if not words:
        return
    left += (len(text) - len(text.lstrip(" "))) * CELL_WIDTH
    looks = [f'fill="{colour}"']
    looks += ['font-weight="bold"'] * style.bold + ['fill-opacity="0.6"'] * style.dim
    looks += ['font-style="italic"'] * style.italic
    looks += ['text-decoration="underline"'] * style.underlined
    yield (
        f'<text x="{left:.2f}" y="{top + 13}" textLength="{len(words) * CELL_WIDTH:.2f}" '
        f'lengthAdjust="spacingAndGlyphs" xml:space="preserve" {" ".join(looks)}>'
        f"{escape(words, quote=False)}</text>"
    )


# -- what is to be seen ----------------------------------------------------------------------------


class Scene(NamedTuple):
    """A command, and what it needs."""

    command: list[str]
    variables: dict[str, str]
    size: Size
    at: str  # what the screen must show, at least


@contextlib.contextmanager
def demo(seconds: float) -> Iterator[Scene]:
    """The demo, in a terminal that is high enough for all of it; what is left empty is cut off."""
    yield Scene(["demo", "--seconds", str(seconds)], {}, Size(80, 40), "")


@contextlib.contextmanager
def top(seconds: float) -> Iterator[Scene]:
    """A shop that is busy; half way the listening session is killed."""
    channels = ["orders", "stock", "prices", "sessions.ended", "errors"]
    with Postgres(tcp=True) as server, psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE shop")
        over = threading.Event()
        work = threading.Thread(target=be_busy, args=(server.dsn_for("shop"), seconds, over))
        work.start()
        try:
            command = ["top", *channels, "--interval", "0.5", "--timeout", str(seconds)]
            variables = {"DATABASE_URL": server.dsn_for("shop")}
            yield Scene(command, variables, Size(100, 18), "q quit")
        finally:
            over.set()
            work.join()


def be_busy(dsn: str, seconds: float, over: threading.Event) -> None:
    """Notify as a shop does, until *over* is set."""
    chance = random.Random(1)
    begun = time.monotonic()
    killed = False
    with psycopg.connect(dsn, autocommit=True) as connection:

        def notify(channel: str, **value: object) -> None:
            connection.execute("SELECT pg_notify(%s, %s)", (channel, json.dumps(value)))

        while not over.wait(chance.expovariate(60)):
            now = time.monotonic() - begun
            number = round(1000 * now)
            if chance.random() < 0.6 + 0.4 * math.sin(now):
                notify("orders", id=number, item=chance.choice(ITEMS), quantity=1)
                notify("stock", item=chance.choice(ITEMS), left=chance.randint(0, 50))
            if chance.random() < 0.05:
                notify("prices", item=chance.choice(ITEMS), eur=chance.randint(1, 99))
            if chance.random() < 0.2:
                notify("sessions.ended", user=chance.randint(1, 500), seconds=number)
            if now > seconds / 2 and not killed:
                killed = True
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'pgsignals'"
                )


SCENES = {"demo": demo, "top": top}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the picture; 0 when there is one."""
    here = Path(__file__).parent
    about, _, usage = (__doc__ or "").partition("\n\n")
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=usage, formatter_class=style)
    parser.add_argument("scene", nargs="?", choices=SCENES, default="demo", help="demo or top")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the command runs")
    parser.add_argument("--at", default="", help="a regular expression that the screen must match")
    parser.add_argument("--output", type=Path, help="docs/<scene>.svg by default")
    args = parser.parse_args(argv)

    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    path = os.pathsep.join([str(here.parent), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment |= {"PYTHONPATH": path, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    chosen = None
    with (
        tempfile.TemporaryDirectory(prefix="record-") as directory,
        SCENES[args.scene](args.seconds) as scene,
    ):
        command = [sys.executable, "-m", "pgsignals", *scene.command]
        for text in screens(command, environment | scene.variables, directory, scene.size):
            plain = SGR.sub("", text)
            if re.search(args.at, plain) and scene.at in plain:
                chosen = text
    if chosen is None:
        sys.stderr.write(f"no screen of {args.scene} shows {args.at!r}\n")
        return 1
    output = args.output or here / f"{args.scene}.svg"
    used = scene.size._replace(rows=len(SGR.sub("", chosen).rstrip().split("\n")))
    output.write_text(svg(chosen, f"pgsignals {args.scene}", used), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
