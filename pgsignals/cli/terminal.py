"""How commands print to a terminal or a pipe.

What is received is untrusted: it reaches a terminal with its control characters escaped.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from typing import TextIO

#: How colours begin, as ECMA-48 numbers them.
BOLD, DIM, RED, GREEN, YELLOW, CYAN = "1", "2", "1;31", "32", "33", "36"


def escape(text: str) -> str:
    """*text* in one line, with nothing in it that a terminal obeys or that cannot be seen."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write(stream: TextIO | None, text: str) -> None:
    """Write *text* at once, from any thread.

    Python's own buffers have locks; a thread that is stuck in one must not keep us from ending.

    :raises BrokenPipeError: the reader of *stream* is gone, or it was closed from the start.
    """
    if stream is None:  # its number may be a socket's by now
        raise BrokenPipeError
    rest = text.encode(stream.encoding, "backslashreplace")
    while rest:
        try:
            rest = rest[os.write(stream.fileno(), rest) :]
        except BlockingIOError:  # another program of the terminal has left it so
            select.select([], [stream], [])


def put(stream: TextIO | None, line: str) -> None:
    """:func:`write` a line."""
    write(stream, f"{line}\n")


def say(line: str) -> None:
    """Tell the user, on standard error; failures to write are ignored."""
    with contextlib.suppress(OSError):
        put(sys.stderr, f"pgsignals: {escape(line)}")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether it is a terminal."""
    return stream is not None and stream.isatty()


def can_draw(stream: TextIO | None) -> bool:
    """Whether it is a terminal that can position the cursor."""
    return is_terminal(stream) and os.environ.get("TERM", "dumb") != "dumb"


def likes_colours(stream: TextIO | None) -> bool:
    """Whether it is a terminal that can show colours, and its user wants them."""
    return can_draw(stream) and not os.environ.get("NO_COLOR")


def paint(colour: str, text: str) -> str:
    """*text*, which has been escaped, in a colour, where standard output shows any."""
    return f"\x1b[{colour}m{text}\x1b[0m" if likes_colours(sys.stdout) else text


def bar(share: float, width: int) -> str:
    """A bar of so many characters, or of a part of them."""
    blocks = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    return ("█" if blocks else "#") * round(share * width)
