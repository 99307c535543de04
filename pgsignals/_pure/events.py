"""Durable events: the values that users hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pgsignals._pure.publication import check_seconds


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a durable channel.

    Its ``repr`` shows the size of the payload, not the payload.
    """

    id: int
    """Unique in its schema, and never used again: an idempotency key to pass on.  Not an order."""

    channel: str
    """The channel that it was published on."""

    key: str | None
    """What its order is kept by; None for none."""

    payload: str = field(repr=False)
    """The text that was published."""

    headers: Mapping[str, str]
    """What was published beside the payload; empty for none."""

    published_at: datetime
    """When it was published, by the server's clock; aware, in UTC."""

    attempt: int
    """Which call of the handler this is, from 1."""

    group: str
    """The group that it is handed to."""


@dataclass(frozen=True, slots=True)
class Retry:
    """When a handler that has failed is called again.

    :raises TypeError: values of a wrong type.
    :raises ValueError: values out of range.
    """

    attempts: int = 25
    """Calls in all; after the last one the event is among the dead letters."""

    backoff: tuple[float, float] = (1.0, 3600.0)
    """The first and the longest wait between two calls, in seconds; it doubles, with a tenth of
    chance."""

    hold: bool = False
    """Whether the key waits for an operator after the last attempt, instead of going on."""

    def __post_init__(self) -> None:
        attempts: object = self.attempts
        if isinstance(attempts, bool) or not isinstance(attempts, int):
            raise TypeError(f"attempts must be an int, not {type(attempts).__name__}")
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, not {self.attempts}")
        backoff: Any = self.backoff
        if not isinstance(backoff, tuple) or len(backoff) != 2:
            raise TypeError("backoff must be a pair: the first and the longest wait, in seconds")
        first, longest = (check_seconds(wait, "backoff") for wait in self.backoff)
        if not 0 < first <= longest or math.isinf(longest):
            raise ValueError(
                f"backoff must be above 0 and not shrink, not ({first:g}, {longest:g})"
            )
        hold: object = self.hold
        if not isinstance(hold, bool):
            raise TypeError(f"hold must be a bool, not {type(hold).__name__}")


class Later(Exception):
    """Raised by a handler to be called again with this event, which is not counted as an attempt.

    :param seconds: until then; the events of its key wait behind it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = check_seconds(seconds, "Later()")
        if self.seconds < 0 or math.isinf(self.seconds):
            raise ValueError(f"Later() needs seconds of at least 0, not {seconds}")
        super().__init__(seconds)


class Reject(Exception):
    """Raised by a handler to put this event among the dead letters at once.

    :param reason: shown with the dead letter.
    """

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


def check_group(name: object) -> str:
    """Return *name* if a group can have it.

    :raises TypeError: not a ``str``.
    :raises ValueError: empty, with NUL or a lone surrogate, or over 63 bytes.
    """
    if not isinstance(name, str):
        raise TypeError(f"group must be a str, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        raise ValueError("the group's name has a lone surrogate, which no text can hold") from None
    if not 1 <= len(encoded) <= 63 or b"\0" in encoded:
        raise ValueError(
            f"the group's name must have 1 to 63 bytes and no NUL, not {len(encoded)} bytes"
        )
    return str.__str__(name)
