"""As much of PostgreSQL's wire protocol as the tests forge."""

from __future__ import annotations

import struct


def messages(data: bytes) -> list[bytes]:
    """Split what a server sends, from the start of a message on; the last may be cut off."""
    found = []
    while data:
        size = 1 + int.from_bytes(data[1:5]) if len(data) >= 5 else len(data)
        found.append(data[:size])
        data = data[size:]
    return found


def notification_response(pid: int, channel: str, payload: str = "") -> bytes:
    """The message by which a server hands over a notification."""
    body = struct.pack("!i", pid) + channel.encode() + b"\0" + payload.encode() + b"\0"
    return b"A" + struct.pack("!i", 4 + len(body)) + body
