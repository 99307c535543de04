"""``NotificationManager``: many connections, one iterator."""

from __future__ import annotations

import math
import numbers
import selectors
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, Protocol, TypeAlias

from pgsignals._pure.burst import Burst
from pgsignals._pure.values import Notification
from pgsignals._runtime.fork import Birth
from pgsignals._runtime.log import Log
from pgsignals._wire.waker import Waker
from pgsignals.errors import Error

logger = Log("pgsignals.manager")

# A selector rejects a timeout that its system call cannot hold; waking once a day is free.
_LONGEST_WAIT = 86_400.0

# Seconds between checks whether members shared with other code have ended: if that code notices
# the end first, or closes the member, the socket is closed, and a selector silently forgets it.
_LOOK = 1.0

# Seconds until a member is looked at again whose connection a thread is using: its socket may be
# readable all the time until then.
_REST = 0.01

# A zero-timeout poll drains what is there; with a sender faster than us it still ends after this
# many notifications.
_POLL_MOST = 1 << 20


#: Types, not their subclasses, whose ``calm`` says that the last ``drain()`` reached neither the
#: end nor its limit; other members are asked for ``closed`` and ``more`` each time.
calm_types: set[type[Any]] = set()


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
        self._birth = Birth()
        self._timeout = check_timeout(timeout)
        self._connections = _Members(self._members_changed, databases)
        self.garbage: set[Any] = set()
        """Connections that have ended.  Never emptied by the manager; adding one of them to
        :attr:`connections` again takes it out."""
        self._waker = Waker()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._watched: dict[Any, int] = {}
        self._silent: set[Any] = set()  # members that cannot report what a statement collected
        self._lent: set[Any] = set()  # members whose end other code may notice first
        self._look_at_lent = 0.0  # when
        self._resting: dict[Any, float] = {}  # members in use by a thread, and until when
        self._more: set[Any] = set()  # members whose last drain() has left something
        self._changed = True
        self._touched: deque[Any] = deque()
        self._pairs: OrderedDict[Any, list[Notification]] = OrderedDict()
        self._ending: set[Any] = set()  # those that go to garbage with their pair
        self._interrupted = False
        self._since: float | None = None  # start of the interval that an idle event ends
        self._looked = False  # at the wire, since an idle event is due or a poll began

    def __del__(self) -> None:
        if hasattr(self, "_selector"):
            self.close()

    def close(self) -> None:
        """Release the manager's own file descriptors; the connections are left alone.  It cannot
        be iterated afterwards.  A manager that is garbage-collected does this by itself."""
        self._selector.close()
        self._waker.close()

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
        self._birth.check("a NotificationManager")
        return self._timeout  # type: ignore[no-any-return] # whatever number the user gave

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout; it takes effect at once, counted from the start of the interval.

        :param seconds: as the constructor's ``timeout``.
        """
        self._timeout = check_timeout(seconds)
        self._wake()

    def interrupt(self) -> None:
        """Ask for one idle event, after what has been collected.

        May be called from any thread and from a signal handler; never blocks.  The request is kept
        while no thread iterates, and several that are still pending may become one.
        """
        self._interrupted = True
        self._wake()

    # -- what members report ---------------------------------------------------------------------

    def touched(self, member: Any) -> None:
        """*member* was closed or reopened, or has collected something besides the socket.

        Called by databases, from any thread.
        """
        self._touched.append(member)
        self._wake()

    def _members_changed(self) -> None:
        self._changed = True
        self._wake()

    def _wake(self) -> None:
        self._birth.check("a NotificationManager")  # a forked child shares the sockets
        self._waker.wake()

    # -- the iterator ----------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Pair | None]:
        return self

    def __next__(self) -> Pair | None:
        self._birth.check("a NotificationManager")
        if self._since is None:
            self._since = time.monotonic()
        while True:
            if self._pairs:
                return self.next_pair()
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
        self.collect(0 if due else seconds)
        self._looked = due
        return False

    def _poll(self) -> None:
        """Collect all that is there; a flood comes in shares."""
        self.collect(0)
        self._looked = True
        for member, notifications in self._pairs.items():
            before = 0
            while before < len(notifications) < _POLL_MOST and member not in self._ending:
                before = len(notifications)
                self._drain(member)

    @property
    def has_pairs(self) -> bool:
        """Whether :meth:`next_pair` has one."""
        return bool(self._pairs)

    def next_pair(self) -> Pair:
        """The oldest pair that :meth:`collect` has left.

        :raises IndexError: there is none.
        """
        if not self._pairs:
            raise IndexError("nothing has been collected")
        member, notifications = self._pairs.popitem(last=False)
        if member in self._ending:
            self._ending.remove(member)
            self._bury(member)
        return member, notifications

    # -- the loop's one turn ---------------------------------------------------------------------

    def collect(self, seconds: float | None) -> None:
        """Wait at most *seconds* for something to arrive or to change, and collect it.

        The turn of the loop that iterating is made of; it gives no idle events and does not end
        when no connection is left.  It may return early with nothing.

        :param seconds: None waits without limit, 0 looks without waiting.
        """
        before = len(self._connections)
        if self._changed:
            self._follow_members()
        if self._touched:
            for _ in range(len(self._touched)):  # not those that are touched by it
                self._follow(self._touched.popleft())
        if self._lent:
            seconds = self._look_at_those_lent(seconds)
        if self._resting:
            seconds = self._look_at_those_resting(seconds)
        again = self._silent | self._more if self._silent or self._more else ()
        for member in again:
            self._drain(member)
        if self._pairs or self._more or len(self._connections) < before:
            seconds = 0  # there is something to say already, or to read
        elif seconds is not None:
            seconds = min(seconds, _LONGEST_WAIT)
        began = time.monotonic() if seconds else 0.0
        ready = self._selector.select(seconds)
        if not ready and (seconds is None or (seconds and time.monotonic() - began < seconds)):
            self._renew_selector()
        for key, _ in ready:
            if key.data is None:
                self._waker.clear()
            elif not again or key.data not in again:
                self._drain(key.data)

    def _look_at_those_lent(self, seconds: float | None) -> float:
        """Check whether a member has ended behind our back, or another's statement has left data in
        libpq that no socket will show, and return how long to wait before the next check."""
        now = time.monotonic()
        if seconds == 0 or now >= self._look_at_lent:
            self._look_at_lent = now + _LOOK
            for member in tuple(self._lent):
                self._drain(member)
        left = self._look_at_lent - now
        return left if seconds is None else min(seconds, left)

    def _look_at_those_resting(self, seconds: float | None) -> float | None:
        """Watch again those that have rested, and return how long to wait for the others."""
        now = time.monotonic()
        for member in [member for member, until in self._resting.items() if now >= until]:
            del self._resting[member]
            self._follow(member)
        left = min((until - now for until in self._resting.values()), default=None)
        return seconds if left is None or (seconds is not None and seconds < left) else left

    def _drain(self, member: Any) -> None:
        notifications: list[Notification] = []
        calm, ended = False, True
        try:
            drained = member.drain()
            ready = type(drained) is list or isinstance(drained, Burst)
            notifications = drained if ready else list(drained)
            calm = type(member) in calm_types and member.calm
            ended = not calm and member.closed
        except Error as exc:
            logger.debug("%r cannot be drained: %s", member, exc)
        except Exception:
            logger.warning("%r cannot be drained; it is moved to garbage", member, exc_info=True)
        if notifications:
            before = self._pairs.setdefault(member, notifications)
            if before is not notifications:
                before += notifications
        if not calm:
            self._look_at(member, ended)
        elif self._more:
            self._more.discard(member)

    def _look_at(self, member: Any, ended: bool) -> None:
        """*member* has ended, or has more to read."""
        if getattr(member, "more", None) is True:
            self._more.add(member)
        else:
            self._more.discard(member)
        if not ended and getattr(member, "contended", None) is True:
            self._rest(member)
        if ended:
            self._unwatch(member)
            if member in self._pairs:
                self._ending.add(member)
            else:
                self._bury(member)

    def _rest(self, member: Any) -> None:
        """Do not watch a member whose connection a thread is using; it takes what arrives."""
        if member in self._watched:
            self._unregister(member)
            self._watched[member] = -1
            self._resting[member] = time.monotonic() + _REST

    def _bury(self, member: Any) -> None:
        if member in self._connections:
            set.discard(self._connections, member)  # without waking ourselves
            self.garbage.add(member)

    # -- what the selector watches ---------------------------------------------------------------

    def _follow_members(self) -> None:
        self._changed = False
        members = set(self._connections)  # a copy: other threads may change it
        for member in self._watched.keys() - members:
            self._unwatch(member)
        for member in members - self._watched.keys():
            self.garbage.discard(member)
            if callable(watch := getattr(member, "add_watcher", None)):
                watch(self)
            self._register(member)

    def _follow(self, member: Any) -> None:
        """Look again at a member whose socket may be another one now."""
        if member in self._watched:
            self._unregister(member)
            self._register(member)

    def _register(self, member: Any) -> None:
        self._watched[member] = -1
        handed_out = getattr(member, "handed_out", None)
        if handed_out is None:
            self._silent.add(member)
        elif handed_out:
            self._lent.add(member)
        self._drain(member)  # it may hold something already, or have ended
        if member not in self._watched or member in self._resting:
            return
        try:
            number = member.fileno()
            if number in self._selector.get_map():  # of a socket that was closed meanwhile
                self._selector.unregister(number)
            self._selector.register(number, selectors.EVENT_READ, member)
            self._watched[member] = number
        except (Error, OSError, ValueError):  # it ended between the two
            self._drain(member)
            self._unwatch(member)
            self._bury(member)

    def _renew_selector(self) -> None:
        """The kernel has woken us for a socket that we no longer watch.  It was closed before it
        could be taken out of the selector, and a forked child that inherited it keeps it alive:
        only a new selector ends that."""
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker, selectors.EVENT_READ)
        for member, number in self._watched.items():
            try:
                self._selector.register(number, selectors.EVENT_READ, member)
            except (OSError, ValueError, KeyError):  # look at it again
                self._touched.append(member)

    def _unregister(self, member: Any) -> None:
        number = self._watched.pop(member)
        key = self._selector.get_map().get(number) if number >= 0 else None
        if key is not None and key.data is member:
            self._selector.unregister(number)

    def _unwatch(self, member: Any) -> None:
        if member in self._watched:
            self._unregister(member)
        self._silent.discard(member)
        self._lent.discard(member)
        self._resting.pop(member, None)
        self._more.discard(member)
        if callable(unwatch := getattr(member, "remove_watcher", None)):
            unwatch(self)
