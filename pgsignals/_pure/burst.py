"""Notifications that were read together, on their way from one thread to another."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

from pgsignals._pure.values import Notification

#: ``new_tuple(Notification, triple)`` is what ``Notification()`` does, without a call into Python.
new_tuple = tuple.__new__


def to_notifications(rows: Iterable[tuple[str, str, int]]) -> Iterator[Notification]:
    """Make notifications of triples; the loop is C's."""
    return map(new_tuple, repeat(Notification), rows)


class Burst:
    """Notifications in columns.

    They wait for their handlers in this form: the garbage collector visits every tuple that is
    kept, most of them more than once, but never strings and numbers.
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
        return to_notifications(zip(self.channels, self.payloads, self.pids, strict=True))

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

    def split(self) -> dict[str, Burst | Part]:
        """A part for each channel."""
        first = self.channels[0]
        if self.channels.count(first) == len(self):
            return {first: self}
        payloads = _by_channel(self.channels, self.payloads)
        sender = self.pids[0] if self.pids.count(self.pids[0]) == len(self) else None
        pids = {} if sender is not None else _by_channel(self.channels, self.pids)
        return {
            channel: Part(channel, column, pids[channel] if sender is None else repeat(sender))
            for channel, column in payloads.items()
        }


class Part:
    """Notifications of one channel, separated from the others of a burst.

    :param pids: theirs, and possibly more.
    """

    __slots__ = ("_channel", "_payloads", "_pids")

    def __init__(self, channel: str, payloads: list[str], pids: Iterable[int]) -> None:
        self._channel = channel
        self._payloads = payloads
        self._pids = pids

    def __len__(self) -> int:
        return len(self._payloads)

    def __iter__(self) -> Iterator[Notification]:
        return to_notifications(zip(repeat(self._channel), self._payloads, self._pids))


def _by_channel(channels: list[str], values: list[Any]) -> dict[str, list[Any]]:
    """One column of :meth:`Burst.split`."""
    column: defaultdict[str, list[Any]] = defaultdict(list)
    deque(map(list.append, map(column.__getitem__, channels), values), maxlen=0)
    return column
