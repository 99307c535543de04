"""What psycopg calls for a session: with each notification that comes along with an answer, and
with the server's notices."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import pq

from pgsignals._wire.borrowed import notify_handler, set_notify_handler


class _Collector:
    """What psycopg keeps.  It must not hold the session: a cycle would outlive ``close()``."""

    __slots__ = ("_collect", "_notice")

    def __init__(
        self,
        collect: Callable[[pq.PGnotify], None],
        notice: Callable[[psycopg.errors.Diagnostic], None],
    ) -> None:
        self._collect = weakref.WeakMethod(collect)
        self._notice = weakref.WeakMethod(notice)

    def __call__(self, notify: pq.PGnotify) -> None:
        if (collect := self._collect()) is not None:
            collect(notify)

    def notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if (notice := self._notice()) is not None:
            notice(diagnostic)


class Hooks:
    """Installed from now until :meth:`remove`.

    :param collect: a bound method, held weakly; called in the thread that runs the statement.
    :param notice: likewise.
    """

    __slots__ = ("_before", "_collector", "_connection")

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        collect: Callable[[pq.PGnotify], None],
        notice: Callable[[psycopg.errors.Diagnostic], None],
    ) -> None:
        self._connection = connection
        self._before = notify_handler(connection)
        self._collector = _Collector(collect, notice)
        set_notify_handler(connection, self._collector)
        connection.add_notice_handler(self._collector.notice)

    def remove(self) -> None:
        """Leave the connection as it was."""
        set_notify_handler(self._connection, self._before)
        with contextlib.suppress(ValueError):  # its owner has taken it away
            self._connection.remove_notice_handler(self._collector.notice)


def are_installed(connection: psycopg.Connection[Any]) -> bool:
    """Whether some session has a connection's hooks."""
    return isinstance(notify_handler(connection), _Collector)
