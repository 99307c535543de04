"""How commands print to a terminal or a pipe.

What is received is untrusted: it reaches a terminal with its control characters escaped.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TextIO

#: Styles, as ECMA-48 numbers them.
BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "1;31", "32", "33", "36"


def escape(text: str) -> str:
    """Put *text* on one line, with control and invisible characters escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write(stream: TextIO | None, text: str) -> None:
    """Write *text* unbuffered, from any thread.

    Python's buffers have locks, and a thread stuck in one must not keep the program from exiting.

    :raises BrokenPipeError: the reader of *stream* is gone, or it was closed from the start.
    """
    if stream is None:  # closed before we started: its descriptor may be a socket by now
        raise BrokenPipeError
    rest = text.encode(stream.encoding, "backslashreplace")
    while rest:
        try:
            rest = rest[os.write(stream.fileno(), rest) :]
        except BlockingIOError:  # another program left the terminal non-blocking
            select.select([], [stream], [])


def put(stream: TextIO | None, line: str) -> None:
    """:func:`write` a line."""
    write(stream, f"{line}\n")


def say(line: str) -> None:
    """Print a message for the user on standard error, ignoring write errors."""
    with contextlib.suppress(OSError):
        put(sys.stderr, f"pgsignals: {escape(line)}")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether it is a terminal."""
    return stream is not None and stream.isatty()


def can_draw(stream: TextIO | None) -> bool:
    """Whether it is a terminal that can position the cursor."""
    return is_terminal(stream) and os.environ.get("TERM", "dumb") != "dumb"


def likes_colours(stream: TextIO | None) -> bool:
    """Whether it is a terminal that can show colours, and NO_COLOR is not set."""
    return can_draw(stream) and not os.environ.get("NO_COLOR")


def paint(colour: str, text: str) -> str:
    """Colour *text*, which must be escaped already, if standard output shows colours."""
    return f"\x1b[{colour}m{text}\x1b[0m" if likes_colours(sys.stdout) else text


def bar(share: float, width: int) -> str:
    """Draw a bar: *share* of *width* characters."""
    blocks = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    return ("█" if blocks else "#") * round(share * width)
