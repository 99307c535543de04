"""The file number of a session's socket.

libpq closes the socket whenever it finds it broken, and its number is soon reused.  So the number
is either asked of libpq under the connection's lock, or is that of a spare, a duplicate that is
ours.  A spare is only kept while other code can hold the lock for long: a manager may have
thousands of sessions, and no process has that many file numbers to spare.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from threading import Lock

import psycopg
from psycopg import pq

# epoll and kqueue would need a file of their own for one look.
_Poll: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Descriptor:
    """See the module.

    :param lock: the connection's.
    """

    __slots__ = ("_identity", "_lock", "_pgconn", "_spares")

    def __init__(self, pgconn: pq.abc.PGconn, lock: Lock) -> None:
        self._pgconn = pgconn
        self._lock = lock
        self._identity = _identity(pgconn.socket)
        self._spares: list[int] = []  # at most one; the thread that takes it out owns it

    def __del__(self) -> None:
        if hasattr(self, "_spares"):
            self.drop_spare()  # may run anywhere, so it takes no lock

    def keep_spare(self) -> bool:
        """Have a spare from now on; called with the lock held.  False if it has one already, or
        can have none."""
        if self._spares:
            return False
        try:
            spare = os.dup(self._pgconn.socket)
        except (psycopg.OperationalError, OSError):  # it has ended, or no number is left
            return False
        self._spares.append(spare)
        return True

    def drop_spare(self) -> None:
        """Close the spare, if there is one."""
        with contextlib.suppress(IndexError):
            self._close_copy(self._spares.pop())

    def _close_copy(self, number: int) -> None:
        # In a forked child, which may have closed all that it inherited, our number may have been
        # reused, too.
        with contextlib.suppress(OSError):
            if _identity(number) == self._identity:
                os.close(number)

    def is_readable(self) -> bool:
        """Whether a byte has come, or the end of the stream; with the lock held."""
        try:
            with _Poll() as poll:
                poll.register(self._pgconn.socket, selectors.EVENT_READ)
                return bool(poll.select(0))
        except (psycopg.OperationalError, OSError, ValueError):  # libpq has closed it
            return True

    def shutdown(self) -> None:
        """Make every thread that waits on the socket wake up and find the session ended."""
        if (number := self._own_number()) is not None:
            with contextlib.suppress(OSError), socket.socket(fileno=number) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    def _own_number(self) -> int | None:
        """A number of the socket that is the caller's to close, or None."""
        for _ in range(100):  # a thread with the lock and no spare only reads or makes one
            if self._lock.acquire(blocking=False):
                try:
                    return os.dup(self._pgconn.socket)
                except (psycopg.OperationalError, OSError):
                    return None
                finally:
                    self._lock.release()
            with contextlib.suppress(IndexError):
                return self._spares.pop()
            time.sleep(0.001)
        return None

    def close_inherited(self) -> None:
        """In a forked child: close its copies, of which the parent notices nothing."""
        self.drop_spare()
        with contextlib.suppress(psycopg.OperationalError):
            self._close_copy(self._pgconn.socket)


def _identity(number: int) -> tuple[int, int]:
    """What distinguishes a socket from every other one, whatever their numbers."""
    status = os.fstat(number)
    return status.st_dev, status.st_ino
