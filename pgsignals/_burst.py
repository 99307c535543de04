"""Notifications that were read at once, on their way from one thread to another."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from itertools import islice, repeat
from typing import Any

from pgsignals._types import Notification

#: ``make(Notification, triple)`` is what ``Notification()`` does, without a call into Python.
make = tuple.__new__


def named(rows: Iterable[tuple[str, str, int]]) -> Iterator[Notification]:
    """Make notifications of triples; the loop is C's."""
    return map(make, repeat(Notification), rows)


class Burst:
    """Notifications in columns.

    So they wait for their handlers: the garbage collector looks at every tuple that is kept, at
    most of them more than once, and at strings and numbers never.
    """

    __slots__ = ("channels", "payloads", "pids")

    def __init__(self, notifications: Iterable[Notification] = ()) -> None:
        self.channels: list[str] = []
        self.payloads: list[str] = []
        self.pids: list[int] = []
        for notification in notifications:
            self.append(notification)

    def __len__(self) -> int:
        return len(self.pids)

    def __iter__(self) -> Iterator[Notification]:
        return named(zip(self.channels, self.payloads, self.pids, strict=True))

    def __iadd__(self, other: Burst) -> Burst:
        self.extend(other.channels, other.payloads, other.pids)
        return self

    def append(self, notification: Notification) -> None:
        """Add one."""
        channel, payload, pid = notification
        self.channels.append(channel)
        self.payloads.append(payload)
        self.pids.append(pid)

    def extend(self, channels: Iterable[str], payloads: Iterable[str], pids: Iterable[int]) -> None:
        """Add columns of equal length."""
        self.channels += channels
        self.payloads += payloads
        self.pids += pids

    def part(self, start: int, stop: int) -> Burst:
        """Those from *start* up to *stop*."""
        part = Burst()
        part.extend(self.channels[start:stop], self.payloads[start:stop], self.pids[start:stop])
        return part

    def split(self, apart: Collection[str] | None) -> dict[str | None, Burst | Part]:
        """A part for each channel of *apart*, and a burst of the rest, whose key is None.

        :param apart: None for every channel.
        """
        first = self.channels[0]
        if self.channels.count(first) == len(self):
            return {first if apart is None or first in apart else None: self}
        payloads = _by_lane(self.channels, self.payloads, apart)
        sender = self.pids[0] if self.pids.count(self.pids[0]) == len(self) else None
        pids = {} if sender is not None else _by_lane(self.channels, self.pids, apart)
        parts: dict[str | None, Burst | Part] = {}
        for lane, column in payloads.items():
            senders = repeat(sender) if sender is not None else pids[lane]
            if lane is not None:
                parts[lane] = Part(lane, column, senders)
                continue
            rest = parts[lane] = Burst()
            channels = (name for name in self.channels if name not in (apart or ()))
            rest.extend(channels, column, islice(senders, len(column)))
        return parts


class Part:
    """Notifications of one channel, parted from the others of a burst.

    :param pids: theirs, or more.
    """

    __slots__ = ("_channel", "_payloads", "_pids")

    def __init__(self, channel: str, payloads: list[str], pids: Iterable[int]) -> None:
        self._channel = channel
        self._payloads = payloads
        self._pids = pids

    def __len__(self) -> int:
        return len(self._payloads)

    def __iter__(self) -> Iterator[Notification]:
        return named(zip(repeat(self._channel), self._payloads, self._pids))


class _Column(dict[str, list[Any]]):
    """A column of :meth:`Burst.split`, by channel."""

    def __init__(self, apart: Collection[str] | None) -> None:
        self.by_lane: dict[str | None, list[Any]] = {}
        self._apart = apart

    def __missing__(self, channel: str) -> list[Any]:
        apart = self._apart is None or channel in self._apart
        part = self[channel] = self.by_lane.setdefault(channel if apart else None, [])
        return part


def _by_lane(
    channels: list[str], values: list[Any], apart: Collection[str] | None
) -> dict[str | None, list[Any]]:
    """One column of :meth:`Burst.split`."""
    column = _Column(apart)
    deque(map(list.append, map(column.__getitem__, channels), values), maxlen=0)
    return column.by_lane
