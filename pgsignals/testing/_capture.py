"""``capture``: collects notifications, or proves that there were none."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from pgsignals._pure.names import check_channels
from pgsignals._pure.values import Notification
from pgsignals.database import Database
from pgsignals.errors import ClosedError, ConnectionLostError
from pgsignals.reactor import Reactor
from pgsignals.testing._sessions import beside
from pgsignals.testing._waiting import TIMEOUT, deadline_in, seconds_until

_MOST_SHOWN = 5
_COMMIT = "a notification is sent when its transaction commits"


class Capture:
    """A listening session and what has arrived on it, made by :func:`capture`.

    Each notification is handed out once, in order of arrival.  Use it from one thread at a time.
    After the ``with`` block it holds what was committed before the end of the block.
    """

    def __init__(self, database: Database, channels: tuple[str, ...]) -> None:
        self._database = database
        self._channels = channels
        self._arrived: deque[Notification] = deque()
        self._mark = f"pgsignals.mark.{secrets.token_hex(8)}"
        self._marks_sent = self._marks_seen = 0
        self._over = False
        self._incomplete: AssertionError | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._where}: {len(self._arrived)} not handed out>"

    def __enter__(self) -> Self:
        self._database.open()._custody.clear_search_path()
        self._database.listen(*self._channels, self._mark)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._catch_up(TIMEOUT)
            else:
                self._incomplete = AssertionError(
                    "the capture is incomplete: an exception ended its block"
                )
        except AssertionError as exc:
            self._incomplete = exc  # raised when more is asked for
        finally:
            self._over = True
            self._database.close()

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that it listens to."""
        return self._channels

    @property
    def backend_id(self) -> int:
        """The server process id of its session."""
        return self._database.backend_id

    def wait(self, count: int = 1, timeout: float = TIMEOUT) -> list[Notification]:
        """Return the next *count* notifications; more may follow.  Blocks until they arrive.

        :param timeout: seconds for all of them.
        :raises AssertionError: fewer arrived in time; these are not handed out.
        """
        __tracebackhide__ = True
        deadline = deadline_in(timeout)
        if self._over and len(self._arrived) < count:
            raise self._failure(f"{self._few(count)} arrived before the capture ended")
        if not self._collect_until(lambda: len(self._arrived) >= count, deadline):
            raise self._failure(f"{self._few(count)} arrived within {timeout:g} s")
        return [self._arrived.popleft() for _ in range(count)]

    def one(self, timeout: float = TIMEOUT) -> Notification:
        """Return the next notification, and check that no other was committed before it arrived.

        :param timeout: seconds for it to arrive, and again for the mark that proves it was alone.
        :raises AssertionError: none arrived in time, or more than one.
        """
        __tracebackhide__ = True
        [notification] = self.wait(1, timeout)
        self._arrived.appendleft(notification)
        self._catch_up(timeout)
        if len(self._arrived) > 1:
            raise self._failure(f"expected one notification, not {len(self._arrived)}")
        return self._arrived.popleft()

    def none(self, timeout: float = TIMEOUT) -> None:
        """Check that everything committed before this call has been handed out.

        A mark proves it: a notification that is sent now, and arrives after all earlier ones.

        :param timeout: seconds for the mark to arrive.
        :raises AssertionError: there are notifications left.
        """
        __tracebackhide__ = True
        self._catch_up(timeout)
        if self._arrived:
            raise self._failure(f"expected no notification, not {len(self._arrived)}")

    def all(self, timeout: float = TIMEOUT) -> list[Notification]:
        """Return everything that was committed before this call and not handed out yet.

        The list may be empty.

        :param timeout: seconds for the mark to arrive: see :meth:`none`.
        """
        __tracebackhide__ = True
        self._catch_up(timeout)
        arrived = list(self._arrived)
        self._arrived.clear()
        return arrived

    # -- the session -----------------------------------------------------------------------------

    def _catch_up(self, timeout: float) -> None:
        """Collect what was committed before now: everything up to a mark."""
        __tracebackhide__ = True
        if self._incomplete is not None:
            raise AssertionError(str(self._incomplete)) from self._incomplete
        if self._over:
            return
        deadline = deadline_in(timeout)
        self._marks_sent += 1
        try:
            self._database.notify((self._mark, str(self._marks_sent)))
        except (ClosedError, ConnectionLostError) as error:
            raise AssertionError(f"the session of this capture has ended: {error}") from error
        if not self._collect_until(lambda: self._marks_seen == self._marks_sent, deadline):
            raise self._failure(f"the mark did not arrive within {timeout:g} s")

    def _collect_until(self, enough: Callable[[], bool], deadline: float) -> bool:
        """Collect arrivals until there is *enough*; return False if the time ran out."""
        __tracebackhide__ = True
        if enough():
            return True
        for notification in self._database.wait(seconds_until(deadline)):
            if notification is None:
                return False
            if notification.channel == self._mark:
                self._marks_seen = int(notification.payload)
            else:
                self._arrived.append(notification)
            if enough():
                return True
        if self._database.closed:
            raise self._failure("the session of this capture has ended")
        return False

    # -- messages --------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        noun = "channel" if len(self._channels) == 1 else "channels"
        return f"{noun} {', '.join(map(repr, self._channels))}"

    def _few(self, count: int) -> str:
        return f"{len(self._arrived)} of {count} notifications"

    def _failure(self, what: str) -> AssertionError:
        shown = [f"\n  {notification!r}" for notification in self._arrived][:_MOST_SHOWN]
        if more := len(self._arrived) - len(shown):
            shown.append(f"\n  and {more} more")
        if not shown:
            shown = [f"; {_COMMIT}"]
        error = AssertionError(f"{self._where}: {what}{''.join(shown)}")
        error.__cause__ = self._incomplete
        return error


def capture(*channels: str, database: str | Database | Reactor) -> Capture:
    """Collect notifications on *channels* in a ``with`` block, on a separate session.

    ::

        with capture("orders", database=dsn) as orders:
            shop.buy(42)
            assert orders.one().payload == "42"

    Notifications committed before the block are not collected.

    :param database: a connection string; or a Database or Reactor, whose own session is not used.
    :raises TypeError: no channels, or a *database* of another type.
    :raises ChannelNameError: a name that PostgreSQL would reject or truncate.
    :raises ValueError: a reactor with several databases.
    """
    if not channels:
        raise TypeError("capture() needs at least one channel: capture('orders', database=dsn)")
    return Capture(beside(database), check_channels(channels))


class CaptureFactory(Protocol):
    """The fixture ``pgsignals_capture``: :func:`capture`, by default on the tests' server, which
    begins at once and ends with the test."""

    def __call__(
        self, *channels: str, database: str | Database | Reactor | None = None
    ) -> Capture: ...
