"""``NotificationManager``: many connections, one iterator."""

from __future__ import annotations

import math
import numbers
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, Protocol, TypeAlias

from pgsignals._pure.values import Notification
from pgsignals._runtime.fork import ForkGuard
from pgsignals._wire.custody import Watcher
from pgsignals._wire.entries import DatabaseEntry, Entry, entry_of
from pgsignals._wire.poller import Poller

# A zero-timeout poll drains what is there; with a sender faster than us it still ends after this
# many notifications.
_POLL_MOST = 1 << 20


class Member(Protocol):
    """What a manager can watch: a :class:`~pgsignals.Database`, or anything of this shape."""

    def fileno(self) -> int:
        """The file number that becomes readable when there is something to drain."""

    @property
    def closed(self) -> bool:
        """True once the connection has ended for any reason."""

    def drain(self) -> list[Notification]:
        """What has arrived, without waiting."""


Pair: TypeAlias = tuple[Any, list[Notification]]


def check_timeout(value: object, name: str = "timeout") -> Any:
    """Return *value* as it is when it is None or a number of seconds >= 0.

    :param name: what the message calls it.

    :raises TypeError: not a number, or a bool.
    :raises ValueError: negative or NaN.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (numbers.Real, Decimal)):
        raise TypeError(f"{name} must be None or a number of seconds, not {type(value).__name__}")
    seconds = as_seconds(value)
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"{name} must be None or at least 0 seconds, not {value}")
    return value


def as_seconds(timeout: Any) -> float:
    """A number of any kind as a float; one that is too large for it is infinite."""
    try:
        return float(timeout)
    except OverflowError:
        return math.inf if timeout > 0 else -math.inf


class _Members(set[Any]):
    """A real set that notifies its manager of every change, from any thread."""

    def __init__(self, changed: Callable[[], None], members: Iterable[object]) -> None:
        self._changed = weakref.WeakMethod(changed)  # no cycle: files are given back at once
        super().__init__(_check_member(member) for member in members)

    def _then(self, result: Any = None) -> Any:
        if (changed := self._changed()) is not None:
            changed()
        return result

    def add(self, member: Any) -> None:
        self._then(super().add(_check_member(member)))

    def update(self, *others: Iterable[Any]) -> None:
        members = [_check_member(member) for other in others for member in other]
        self._then(super().update(members))

    def discard(self, member: Any) -> None:
        self._then(super().discard(member))

    def remove(self, member: Any) -> None:
        self._then(super().remove(member))

    def pop(self) -> Any:
        return self._then(super().pop())

    def clear(self) -> None:
        self._then(super().clear())

    def difference_update(self, *others: Iterable[Any]) -> None:
        self._then(super().difference_update(*others))

    def intersection_update(self, *others: Iterable[Any]) -> None:
        self._then(super().intersection_update(*others))

    def symmetric_difference_update(self, other: Iterable[Any]) -> None:
        members = [_check_member(member) for member in other]
        self._then(super().symmetric_difference_update(members))

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc] # set's own overloads
        self.update(other)
        return self

    def __iand__(self, other: Any) -> Any:  # type: ignore[misc] # set's own overloads
        return self._then(super().__iand__(other))

    def __isub__(self, other: Any) -> Any:  # type: ignore[misc] # set's own overloads
        return self._then(super().__isub__(other))

    def __ixor__(self, other: Any) -> Any:  # type: ignore[misc] # set's own overloads
        self.symmetric_difference_update(other)
        return self


def _check_member(member: object) -> object:
    shaped = callable(getattr(member, "fileno", None)) and callable(getattr(member, "drain", None))
    if isinstance(member, type) or not (shaped and hasattr(member, "closed")):
        raise TypeError(
            f"cannot watch {type(member).__name__}: a manager takes a Database or anything else "
            "with fileno(), closed and drain(), and its timeout as a keyword"
        )
    return member


class NotificationManager:
    """Waits on many connections and yields what arrives.

    Iterating yields a pair ``(database, [Notification, ...])`` for a database that received
    something, and None for an idle event.  The loop ends when no connection is left, or, with a
    timeout of zero, when everything that was there has been yielded; the same manager may be used
    again.  Break out anywhere without losing notifications: the manager goes on with the rest.

    One thread iterates.  From any other thread, :attr:`connections` may be changed,
    :meth:`settimeout` and :meth:`interrupt` called and a database closed: all of it takes effect
    at once.

    :param databases: a :class:`Database` each, or anything with ``fileno()``, ``closed`` and
        ``drain()``.
    :param timeout: seconds between idle events; None for no idle events, 0 for a poll that does
        not wait.
    :raises TypeError: something that cannot be watched, or a timeout that is not a number.
    :raises ValueError: a negative timeout, or NaN.
    """

    def __init__(self, *databases: Any, timeout: float | None = None) -> None:
        self._fork_guard = ForkGuard()
        self._timeout = check_timeout(timeout)
        self._connections = _Members(self._members_changed, databases)
        self.garbage: set[Any] = set()
        """Connections that have ended.  Never emptied by the manager; adding one of them to
        :attr:`connections` again takes it out."""
        self._poller: Poller[Entry, list[Notification]] = Poller("a NotificationManager")
        self._entries: dict[Any, Entry] = {}  # what the poller watches, by member
        self._changed = True
        self._interrupted = False
        self._since: float | None = None  # start of the interval that an idle event ends
        self._looked = False  # at the wire, since an idle event is due or a poll began

    def close(self) -> None:
        """Release the manager's own file descriptors; the connections are left alone.  It cannot
        be iterated afterwards.  A manager that is garbage-collected does this by itself."""
        self._poller.close()

    # -- what users change -----------------------------------------------------------------------

    @property
    def connections(self) -> set[Any]:
        """The connections that are watched: a real set, to be changed at any time, from any
        thread.  Pairs that were collected before a removal are still yielded."""
        return self._connections

    @connections.setter
    def connections(self, members: Iterable[Any]) -> None:
        if members is not self._connections:
            self._connections = _Members(self._members_changed, members)
        self._members_changed()

    def gettimeout(self) -> float | None:
        """The timeout in seconds, the very object that was set."""
        self._fork_guard.check("a NotificationManager")
        return self._timeout  # type: ignore[no-any-return] # whatever number the user gave

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout; it takes effect at once, counted from the start of the interval.

        :param seconds: as the constructor's ``timeout``.
        """
        self._timeout = check_timeout(seconds)
        self._poller.wake()

    def interrupt(self) -> None:
        """Ask for one idle event, after what has been collected.

        May be called from any thread and from a signal handler; never blocks.  The request is kept
        while no thread iterates, and several that are still pending may become one.
        """
        self._interrupted = True
        self._poller.wake()

    def _members_changed(self) -> None:
        self._changed = True
        self._poller.wake()

    # -- the iterator ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Pair | None]:
        return self

    def __next__(self) -> Pair | None:
        self._fork_guard.check("a NotificationManager")
        if self._since is None:
            self._since = time.monotonic()
        while True:
            if self._poller.pairs:
                return self._next_pair()
            timeout = self._timeout
            polling = timeout is not None and timeout == 0
            if not self._connections or (polling and self._looked):
                self._since, self._looked = None, False
                raise StopIteration
            if polling:
                self._poll()
            elif self._wait(timeout):
                self._since, self._looked = None, False
                return None

    def _wait(self, timeout: float | None) -> bool:
        """Wait until something is collected, and return False, or until an idle event is due,
        which is after one more look at the wire: what is there comes first."""
        due = self._interrupted
        seconds = None
        if not due and timeout is not None and self._since is not None:
            seconds = as_seconds(timeout) - (time.monotonic() - self._since)
            due = seconds <= 0
        if due and self._looked:
            self._interrupted = False
            return True
        self._collect(0 if due else seconds)
        self._looked = due
        return False

    def _poll(self) -> None:
        """Collect all that is there."""
        if self._changed:
            self._follow_members()
        self._poller.collect_all(_POLL_MOST)
        self._looked = True
        self._bury_ended()

    def _collect(self, seconds: float | None) -> None:
        if self._changed:
            self._follow_members()
        self._poller.collect(seconds)
        if self._poller.ended:
            self._bury_ended()

    def _next_pair(self) -> Pair:
        entry, notifications = self._poller.take()
        if self._poller.ended:
            self._bury_ended()
        return entry.member, notifications

    # -- members and what the poller watches -----------------------------------------------------

    def _follow_members(self) -> None:
        self._changed = False
        members = set(self._connections)  # a copy: other threads may change it
        for member in self._entries.keys() - members:
            self._poller.unwatch(entry := self._entries.pop(member))
            entry.leave()
        for member in members - self._entries.keys():
            self.garbage.discard(member)
            entry = self._entries[member] = entry_of(member, self._poller)
            self._poller.watch(entry, silent=entry.silent)

    def _bury_ended(self) -> None:
        while self._poller.ended:
            entry = self._poller.ended.popleft()
            entry.leave()
            if self._entries.get(entry.member) is not entry:
                continue  # removed
            del self._entries[entry.member]
            # Else it may have been opened and added again before its last pair was taken.
            if entry.member in self._connections and not self._changed:
                set.discard(self._connections, entry.member)  # without waking ourselves
                self.garbage.add(entry.member)

    def _watcher_of(self, member: Any) -> Watcher | None:
        """What hears of a :class:`Database` that is watched."""
        entry = self._entries.get(member)
        return entry if isinstance(entry, DatabaseEntry) else None
