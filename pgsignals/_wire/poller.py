"""Many sessions, one selector, one loop: it collects what has arrived, and says which have ended.

``NotificationManager`` and the reader's thread are made of it.  One turn (:meth:`Poller.collect`)
waits until a socket is readable and drains what it belongs to; the selector alone would miss
five things, each of which has a set of its own:

- more: a read stopped before the end, and libpq holds the rest;
- silent: it may hold something that no socket shows;
- lent: other code has the connection, too; it may close the socket, which a selector forgets;
- resting: a thread runs a statement on the connection; the socket is readable all the time;
- touched: another thread says that the session is another one, or has collected something.
"""

from __future__ import annotations

import selectors
import time
from collections import OrderedDict, deque
from typing import Any, Generic, Protocol, TypeVar

from pgsignals._pure.burst import Burst
from pgsignals._pure.values import Notification
from pgsignals._runtime.fork import ForkGuard
from pgsignals._runtime.log import Log
from pgsignals._wire.waker import Waker
from pgsignals.errors import Error

logger = Log("pgsignals.manager")

# A selector rejects a timeout that its system call cannot hold; waking once a day is free.
_LONGEST_WAIT = 86_400.0

# Seconds between checks whether lent sessions have ended.
_LOOK = 1.0

# Seconds until a session is looked at again whose connection a thread is using.
_REST = 0.01


class Line(Protocol):
    """A session, as a poller sees it: :class:`.session.Session`, or anything of this shape."""

    @property
    def more(self) -> bool:
        """The last drain has left something that the socket need not show."""

    @property
    def contended(self) -> bool:
        """The last drain found the connection in use by a thread that runs a statement, and that
        reports what arrives."""

    @property
    def ended(self) -> bool:
        """The last drain has found its end."""

    @property
    def closed(self) -> bool:
        """It has ended, or other code has closed it."""

    @property
    def shared(self) -> bool:
        """Other code has the connection, too, and may notice its end before us."""

    def fileno(self) -> int:
        """The socket's file number."""


A_co = TypeVar("A_co", covariant=True)


class Watched(Protocol[A_co]):
    """What a poller watches: something that has one session after the other."""

    @property
    def session(self) -> Line | None:
        """The session, or None when there is none, which counts as ended."""

    def drain(self) -> A_co:
        """What has arrived, without waiting; what it raises counts as the session's end."""


#: What is watched, and what its drain() returns.
W = TypeVar("W", bound=Watched[Any])
A = TypeVar("A", list[Notification], Burst)


class Poller(Generic[W, A]):
    """See the module.  One thread collects; :meth:`touched` and :meth:`wake` are for all threads.

    :param owner: what an error in a forked child calls it.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._fork_guard = ForkGuard()
        # Any thread.
        self._waker = Waker()
        self._touched: deque[W] = deque()
        # The thread that collects.
        self.ended: deque[W] = deque()
        """Those that are no longer watched, as they have ended, and whose arrivals have been
        taken; the owner empties it."""
        self.pairs: OrderedDict[W, A] = OrderedDict()
        """What has been collected and not been taken, the oldest first."""
        self._ending: set[W] = set()  # those that have ended, and whose pair has not been taken
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker, selectors.EVENT_READ)
        self._new: deque[W] = deque()
        self._watched: dict[W, int] = {}  # with the number in the selector, -1 for none
        self._silent: set[W] = set()
        self._more: set[W] = set()
        self._lent: set[W] = set()
        self._look_at_lent = 0.0  # when
        self._resting: dict[W, float] = {}  # until when

    def __del__(self) -> None:
        if hasattr(self, "_selector"):
            self.close()

    def close(self) -> None:
        """Release its own file numbers; the sessions are left alone."""
        self._selector.close()
        self._waker.close()

    # -- from any thread -------------------------------------------------------------------------

    def touched(self, watched: W) -> None:
        """*watched* has another session, or none, or has collected something besides the socket."""
        self._touched.append(watched)
        self.wake()

    def wake(self) -> None:
        """Have :meth:`collect` return soon, or the next one.  Never blocks.

        :raises ForkedError: in a forked child, which shares the sockets.
        """
        self._fork_guard.check(self._owner)
        self._waker.wake()

    # -- the thread that collects ----------------------------------------------------------------

    def watch(self, watched: W, *, silent: bool = False) -> None:
        """Watch the session of *watched* from the next :meth:`collect` on, which drains it first.

        :param silent: it may hold something that no socket shows: drain it in each turn.
        """
        self._new.append(watched)
        if silent:
            self._silent.add(watched)

    def unwatch(self, watched: W) -> None:
        """Undo :meth:`watch`.  What was collected can still be taken."""
        if watched in self._watched:
            self._unregister(watched)
        if watched in self._new:
            self._new.remove(watched)
        self._silent.discard(watched)
        self._lent.discard(watched)
        self._resting.pop(watched, None)
        self._more.discard(watched)

    def take(self) -> tuple[W, A]:
        """The oldest that has been collected: what was watched, and what arrived there.

        :raises KeyError: there is none.
        """
        watched, arrivals = self.pairs.popitem(last=False)
        if watched in self._ending:
            self._ending.remove(watched)
            self.ended.append(watched)
        return watched, arrivals

    def collect(self, seconds: float | None) -> None:
        """Wait at most *seconds* for something to arrive or to change, and collect it.

        It may return early with nothing.

        :param seconds: None waits without limit, 0 looks without waiting.
        """
        while self._new:
            if (watched := self._new.popleft()) in self._watched:
                self._unregister(watched)
            self._register(watched)
        for _ in range(len(self._touched)):  # not those that are touched by it
            self._follow(self._touched.popleft())
        if self._lent:
            seconds = self._look_at_those_lent(seconds)
        if self._resting:
            seconds = self._look_at_those_resting(seconds)
        again = self._silent | self._more if self._silent or self._more else ()
        for watched in again:
            self._drain(watched)
        if self.pairs or self._more or self.ended:
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

    def collect_all(self, most: int) -> None:
        """Collect all that is there, without waiting; a flood comes in shares.

        :param most: notifications of one session; a sender may be faster than we are.
        """
        self.collect(0)
        for watched, arrivals in self.pairs.items():
            before = 0
            while before < len(arrivals) < most and watched in self._watched:
                before = len(arrivals)
                self._drain(watched)

    def _look_at_those_lent(self, seconds: float | None) -> float:
        """Check whether a session has ended behind our back, or another's statement has left data
        in libpq that no socket will show, and return how long to wait before the next check."""
        now = time.monotonic()
        if seconds == 0 or now >= self._look_at_lent:
            self._look_at_lent = now + _LOOK
            for watched in tuple(self._lent):
                self._drain(watched)
        left = self._look_at_lent - now
        return left if seconds is None else min(seconds, left)

    def _look_at_those_resting(self, seconds: float | None) -> float | None:
        """Watch again those that have rested, and return how long to wait for the others."""
        now = time.monotonic()
        for watched in [watched for watched, until in self._resting.items() if now >= until]:
            del self._resting[watched]
            self._follow(watched)
        left = min((until - now for until in self._resting.values()), default=None)
        return seconds if left is None or (seconds is not None and seconds < left) else left

    def _drain(self, watched: W) -> None:
        arrivals: A | None = None
        calm, ended = False, True
        try:
            arrivals = watched.drain()
            session = watched.session
            if session is not None:
                calm = not (session.more or session.ended or session.contended)
                ended = not calm and session.closed
        except Error as exc:
            logger.debug("%r cannot be drained: %s", watched, exc)
        except Exception:
            logger.warning("%r cannot be drained and is no longer watched", watched, exc_info=True)
        if arrivals:
            before = self.pairs.setdefault(watched, arrivals)
            if before is not arrivals:
                before += arrivals
        if not calm:
            self._look_at(watched, ended)
        elif self._more:
            self._more.discard(watched)

    def _look_at(self, watched: W, ended: bool) -> None:
        """*watched* has ended, or has more to read, or its connection is in use."""
        session = watched.session
        if ended or session is None:
            self.unwatch(watched)
            if watched in self.pairs:
                self._ending.add(watched)
            else:
                self.ended.append(watched)
            return
        if session.more:
            self._more.add(watched)
        else:
            self._more.discard(watched)
        if session.contended and watched in self._watched:
            self._unregister(watched)
            self._watched[watched] = -1
            self._resting[watched] = time.monotonic() + _REST

    # -- what the selector watches ---------------------------------------------------------------

    def _follow(self, watched: W) -> None:
        """Look again at what may have another session now."""
        if watched in self._watched:
            self._unregister(watched)
            self._register(watched)

    def _register(self, watched: W) -> None:
        self._watched[watched] = -1
        session = watched.session
        if session is not None and session.shared:
            self._lent.add(watched)
        self._drain(watched)  # it may hold something already, or have ended
        if watched not in self._watched or watched in self._resting:
            return
        try:
            number = -1 if (session := watched.session) is None else session.fileno()
            if number in self._selector.get_map():  # of a socket that was closed meanwhile
                self._selector.unregister(number)
            self._selector.register(number, selectors.EVENT_READ, watched)
            self._watched[watched] = number
        except (Error, OSError, ValueError):  # it ended between the two
            self._drain(watched)
            if watched in self._watched:
                self._look_at(watched, ended=True)

    def _unregister(self, watched: W) -> None:
        number = self._watched.pop(watched)
        key = self._selector.get_map().get(number) if number >= 0 else None
        if key is not None and key.data is watched:
            self._selector.unregister(number)

    def _renew_selector(self) -> None:
        """The kernel has woken us for a socket that we no longer watch.  It was closed before it
        could be taken out of the selector, and a forked child that inherited it keeps it alive:
        only a new selector ends that."""
        self._selector.close()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker, selectors.EVENT_READ)
        for watched, number in self._watched.items():
            try:
                self._selector.register(number, selectors.EVENT_READ, watched)
            except (OSError, ValueError, KeyError):  # look at it again
                self._touched.append(watched)
