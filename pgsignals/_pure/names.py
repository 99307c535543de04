"""What a channel name and a payload may be, and what one ``notify`` call issues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pgsignals.errors import ChannelNameError, PayloadError

#: NAMEDATALEN - 1.  LISTEN cuts longer names silently, pg_notify() refuses them (22023).
MAX_CHANNEL_BYTES = 63

#: NOTIFY requires fewer than 8000 bytes (PostgreSQL manual, NOTIFY).
MAX_PAYLOAD_BYTES = 7999

#: What UNLISTEN understands as "all channels", and therefore not a channel name.
ALL = "*"

#: Canaries of all reactors go here; one NOTIFY on it proves delivery to each of them.
PROBE_CHANNEL = "pgsignals.probe"


def check_channel(name: object) -> str:
    """Return *name* if every server command takes it unchanged.

    :raises TypeError: not a ``str``.
    :raises ChannelNameError: empty, ``"*"``, with NUL or a lone surrogate, or over 63 bytes.
    """
    if not isinstance(name, str):
        raise TypeError(f"a channel name must be a str, not {type(name).__name__}")
    name = str.__str__(name)  # of an enumeration's member, its characters
    if not name:
        raise ChannelNameError(
            f"a channel name must not be empty (0 bytes; 1 to {MAX_CHANNEL_BYTES} are allowed)"
        )
    if name == ALL:
        raise ChannelNameError(
            "'*' means all channels in unlisten('*') and cannot name one; choose another name"
        )
    limit = f"PostgreSQL's limit of {MAX_CHANNEL_BYTES}; shorten it, or hash its tail"
    return check_size(
        name, MAX_CHANNEL_BYTES, f"channel name {name!r}", limit, error=ChannelNameError
    )


def check_payload(payload: object, channel: str) -> str:
    """Return *payload* as text the server accepts; None means no payload, which is ``""``.

    :param channel: named in the message; the payload itself never is.
    :raises TypeError: neither ``str`` nor None.
    :raises PayloadError: NUL, a lone surrogate, or over 7,999 bytes in UTF-8.
    """
    if payload is None:
        return ""
    what = f"the payload for channel {channel!r}"
    limit = f"PostgreSQL's limit of {MAX_PAYLOAD_BYTES}; store it in a table and notify its key"
    return check_size(payload_text(payload, what, "a str or None"), MAX_PAYLOAD_BYTES, what, limit)


def payload_text(payload: object, what: str, kinds: str) -> str:
    """The characters of a payload.

    :param kinds: what it may be, for the message.
    :raises TypeError: not a ``str``.
    """
    if not isinstance(payload, str):
        hint = "decode it" if isinstance(payload, (bytes, bytearray)) else "json.dumps() makes one"
        raise TypeError(f"{what} must be {kinds}, not {type(payload).__name__}; {hint}")
    return str.__str__(payload)


def check_size(
    text: str,
    most: int,
    what: str,
    limit: str,
    error: type[ChannelNameError | PayloadError] = PayloadError,
) -> str:
    """Return *text* if PostgreSQL can hold it in at most this many bytes of UTF-8.

    :param limit: names the limit, and the way out.
    :raises ChannelNameError: *error*, with *what* and never the text itself.
    :raises PayloadError: likewise.
    """
    if (size := len(encode_text(text, what, error))) > most:
        raise error(f"{what} has {size} bytes in UTF-8, over {limit}")
    return text


def encode_text(text: str, what: str, error: type[ChannelNameError | PayloadError]) -> bytes:
    """*text* in UTF-8, if PostgreSQL can hold it; raises as :func:`check_size`."""
    problem = None
    try:
        encoded = text.encode()
    except UnicodeEncodeError as exc:
        # Raised outside this block: the exception holds the whole text, which may be a payload.
        problem, encoded = f"a lone surrogate at position {exc.start}", b""
    if problem is None and b"\0" in encoded:
        problem = f"a NUL at byte {encoded.index(0)} of {len(encoded)}"
    if problem is not None:
        raise error(f"{what} has {problem}, which PostgreSQL text cannot hold; encode it")
    return encoded


def check_channels(names: Iterable[object]) -> tuple[str, ...]:
    """Each of *names* checked as by :func:`check_channel`."""
    return tuple(check_channel(name) for name in names)


def check_handled(name: object) -> str:
    """As :func:`check_channel`, for a channel whose notifications a reactor hands out.

    :raises ChannelNameError: also for the channel of the reactors' own probes.
    """
    if (name := check_channel(name)) == PROBE_CHANNEL:
        raise ChannelNameError(
            f"{PROBE_CHANNEL!r} is the channel for the reactors' own probes, which no handler "
            "receives; choose another name, or watch it with a Database of your own"
        )
    return name


def check_unlisten(names: Iterable[object]) -> tuple[str, ...]:
    """As :func:`check_channels`, but ``"*"`` is allowed and means all channels."""
    return tuple(ALL if name == ALL else check_channel(name) for name in names)


def notify_items(channels: Iterable[object], pairs: Mapping[str, object]) -> list[tuple[str, str]]:
    """What one ``notify`` call should issue, in order: positional items, then keywords.

    :param channels: each a channel name, or a pair ``(channel, payload)``.
    """
    items = [_notify_item(item) for item in channels]
    for name, payload in pairs.items():
        items.append((channel := check_channel(name), check_payload(payload, channel)))
    return items


def _notify_item(item: object) -> tuple[str, str]:
    if not isinstance(item, tuple):
        return check_channel(item), ""
    if len(item) != 2:
        raise TypeError(
            f"notify takes names and pairs (channel, payload), not a tuple of {len(item)}; "
            "forward a Notification n as (n.channel, n.payload)"
        )
    channel = check_channel(item[0])
    return channel, check_payload(item[1], channel)
