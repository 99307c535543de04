"""The value that every other module passes on: a notification."""

from __future__ import annotations

from typing import NamedTuple


class Notification(NamedTuple):
    """One received notification: a plain triple with names.

    Its ``repr`` shows the size of the payload, not the payload: a notification may end up in a
    log or in a traceback with locals.
    """

    channel: str
    """The channel's name, exactly as it was notified."""

    payload: str
    """The text that was sent along; ``""`` when there was none."""

    pid: int
    """The backend process id of the session that sent it."""

    def __repr__(self) -> str:
        size = len(self.payload)
        return f"Notification(channel={self.channel!r}, payload=<{size} chars>, pid={self.pid})"
