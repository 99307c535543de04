"""Durable events: the values that users hold, and what may be published."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from pgsignals._pure.names import check_channel, encode_text
from pgsignals.errors import PayloadError

#: Bytes of a key, and of a payload where ``schema init`` has not been given another limit.
MAX_KEY_BYTES = 1024
MAX_EVENT_BYTES = 1 << 20

_NONE: Mapping[str, str] = MappingProxyType({})


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
        first, longest = (_seconds(wait, "backoff") for wait in self.backoff)
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
        self.seconds = _seconds(seconds, "Later()")
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


@dataclass(frozen=True, slots=True)
class Publication:
    """What one call of ``publish`` sends, checked."""

    channel: str
    payload: str = field(repr=False)
    key: str | None
    headers: Mapping[str, str] | None
    delay: float | None
    dedup: str | None
    ordered: bool


def publication(
    channel: object,
    payload: object,
    *,
    key: object = None,
    headers: object = None,
    delay: object = None,
    dedup: object = None,
    ordered: object = False,
) -> Publication:
    """Check what ``publish`` was given.

    :raises TypeError: an argument of a wrong type.
    :raises ValueError: *ordered* without a key, a negative delay.
    :raises ChannelNameError: see :func:`.names.check_channel`.
    :raises PayloadError: a payload, key, header or dedup that the server would refuse.
    """
    name = check_channel(channel)
    if not isinstance(ordered, bool):
        raise TypeError(f"ordered must be a bool, not {type(ordered).__name__}")
    if ordered and key is None:
        raise ValueError("ordered=True needs a key, whose turn is taken")
    return Publication(
        name,
        check_event_payload(payload, name),
        check_key(key),
        _headers(headers),
        _delay(delay),
        None if dedup is None else _text(dedup, "dedup"),
        ordered,
    )


def publications(channel: object, items: object) -> tuple[str, list[str], list[str | None]]:
    """Check what ``publish_many`` was given: the channel, the payloads and the keys.

    :param items: payloads, or pairs ``(payload, key)``.
    """
    name = check_channel(channel)
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        raise TypeError(
            f"publish_many takes an iterable of payloads, or of pairs (payload, key), not "
            f"{type(items).__name__}"
        )
    payloads: list[str] = []
    keys: list[str | None] = []
    for item in items:
        payload, key = item, None
        if isinstance(item, tuple):
            if len(item) != 2:
                raise TypeError(
                    f"an item must be a pair (payload, key), not a tuple of {len(item)}"
                )
            payload, key = item
        payloads.append(check_event_payload(payload, name))
        keys.append(check_key(key))
    return name, payloads, keys


def check_event_payload(payload: object, channel: str) -> str:
    """Return *payload* if an event can hold it.

    :param channel: named in the message; the payload itself never is.
    """
    if not isinstance(payload, str):
        hint = "decode it" if isinstance(payload, (bytes, bytearray)) else "json.dumps() makes one"
        raise TypeError(
            f"the payload for channel {channel!r} must be a str, not {type(payload).__name__}; "
            f"{hint}"
        )
    text = str.__str__(payload)
    size = len(encode_text(text, f"the payload for channel {channel!r}", PayloadError))
    if size > MAX_EVENT_BYTES:
        raise PayloadError(
            f"the payload for channel {channel!r} has {size} bytes in UTF-8, over the limit of "
            f"{MAX_EVENT_BYTES}; store it elsewhere and publish where it is"
        )
    return text


def check_key(key: object) -> str | None:
    """Return *key* if an event can have it; None is none, ``""`` is one."""
    if key is None:
        return None
    text = _text(key, "key")
    size = len(text.encode())
    if size > MAX_KEY_BYTES:
        raise PayloadError(
            f"the key has {size} bytes in UTF-8, over the limit of {MAX_KEY_BYTES}; hash it"
        )
    return text


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


def _headers(headers: object) -> Mapping[str, str] | None:
    if headers is None:
        return None
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping, not {type(headers).__name__}")
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            wrong = name if not isinstance(name, str) else value
            raise TypeError(f"headers must be of str to str, not {type(wrong).__name__}")
    checked = {_text(name, "a header"): _text(value, "a header") for name, value in headers.items()}
    return checked or None


def _delay(delay: object) -> float | None:
    if delay is None:
        return None
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else _seconds(delay, "delay")
    if not 0 <= seconds < math.inf:
        raise ValueError(f"delay must be at least 0 seconds, and finite, not {seconds:g}")
    return seconds


def _seconds(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    return float(value)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    encode_text(value, f"the {name}" if not name.startswith("a ") else name, PayloadError)
    return str.__str__(value)
