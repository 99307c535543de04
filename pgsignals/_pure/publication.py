"""What may be published: checked before the wire."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta

from pgsignals._pure.names import check_channel, check_size, encode_text, payload_text
from pgsignals.errors import PayloadError

#: Bytes of a key, and of a payload where ``schema init`` has not been given another limit.
MAX_KEY_BYTES = 1024
MAX_EVENT_BYTES = 1 << 20


class Publication:
    """What one call of ``publish`` sends, checked."""

    __slots__ = ("channel", "dedup", "delay", "headers", "key", "ordered", "payload")

    def __init__(
        self,
        channel: str,
        payload: str,
        key: str | None,
        headers: Mapping[str, str] | None,
        delay: float | None,
        dedup: str | None,
        ordered: bool,
    ) -> None:
        self.channel = channel
        self.payload = payload
        self.key = key
        self.headers = headers
        self.delay = delay
        self.dedup = dedup
        self.ordered = ordered


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
    what = f"the payload for channel {channel!r}"
    limit = f"the limit of {MAX_EVENT_BYTES}; store it elsewhere and publish where it is"
    return check_size(payload_text(payload, what, "a str"), MAX_EVENT_BYTES, what, limit)


def check_key(key: object) -> str | None:
    """Return *key* if an event can have it; None is none, ``""`` is one."""
    if key is None:
        return None
    limit = f"the limit of {MAX_KEY_BYTES}; hash it"
    return check_size(_text(key, "key"), MAX_KEY_BYTES, "the key", limit)


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
    seconds = (
        delay.total_seconds() if isinstance(delay, timedelta) else check_seconds(delay, "delay")
    )
    if not 0 <= seconds < math.inf:
        raise ValueError(f"delay must be at least 0 seconds, and finite, not {seconds:g}")
    return seconds


def check_seconds(value: object, name: str) -> float:
    """*value* as a float, if it is a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    return float(value)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    encode_text(value, f"the {name}" if not name.startswith("a ") else name, PayloadError)
    return str.__str__(value)
