"""How one database is reached: what opens a connection, and a session on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import psycopg

from pgsignals._wire.opening import call_connect, describe, open_connection, open_like
from pgsignals._wire.session import Connection, Session
from pgsignals.errors import ConnectError, ConnectionStateError, Error

Cursor: TypeAlias = psycopg.Cursor[Any]
Transaction: TypeAlias = psycopg.Transaction
Params: TypeAlias = psycopg.abc.Params


class Access:
    """A connection string, or a user's ``connect=``, or the place of a wrapped connection.

    Any thread may use it.  Errors and :attr:`name` never hold a secret.

    :param params: libpq's keywords, which win over *conninfo*, or psycopg's own.
    :param connect: instead of *conninfo*, returns a fresh connection each time.
    :param wrapped: instead of both, a connection that belongs to its owner.
    """

    __slots__ = ("_connect", "_conninfo", "_name", "_params", "_wrapped", "errands", "losses")

    def __init__(
        self,
        conninfo: str = "",
        params: Mapping[str, Any] | None = None,
        *,
        connect: Callable[[], Any] | None = None,
        wrapped: Connection | None = None,
    ) -> None:
        self._conninfo = conninfo
        self._params = params or {}
        self._connect = connect
        self._wrapped = wrapped
        self._name: str | None = None
        self.losses = 0
        """How many listening sessions have ended, over all lives of reactors: each session beside
        them is renewed after a further one.  Written by the reader's thread."""
        self.errands: dict[str, dict[object, float]] = {}
        """When the running threads began, over all lives of reactors, that connect or use such a
        connection, each with its kind."""

    @property
    def name(self) -> str:
        """Host, port and database name of the latest session of its own, or what is known of them
        before there is one."""
        if self._name is not None:
            return self._name
        if self._connect is not None:
            return getattr(self._connect, "__qualname__", "connect()")
        return describe(self._conninfo, self._params)

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @property
    def wrapped(self) -> bool:
        """Whether there is only the one connection that belongs to its owner."""
        return self._wrapped is not None

    @property
    def _may_be_shared(self) -> bool:
        """Whether the user's code may keep what it has opened for us."""
        return self._connect is not None

    def connect(self, within: float | None = None, *, logged: bool = False) -> Connection:
        """A new connection.  Blocks.

        :param within: seconds for all hosts together, None for those of libpq; a user's
            ``connect=`` has its own.
        :param logged: see :func:`.opening.call_connect`.
        :raises ConnectError: with the reason in one line.
        :raises ConnectionStateError: a wrapped connection has no like.
        """
        if self.wrapped:
            raise ConnectionStateError(
                f"{self.name} wraps a connection and cannot be reopened; "
                "wrap a new connection, or use Database(connect=...)"
            )
        connect = self._connect
        if connect is not None:
            return call_connect(connect, self.name, logged=logged)
        return _without_frames(
            lambda: open_connection(self._conninfo, self._params, self.name, within)
        )

    def connect_beside(self) -> Connection:
        """A second connection, besides the one that listens.  Blocks.

        :raises ConnectError: with the reason in one line, whatever a user's ``connect=`` raises.
        """
        if (wrapped := self._wrapped) is not None and not wrapped.closed:
            return _without_frames(lambda: open_like(wrapped))
        try:
            return self.connect(logged=True)
        except Error:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a user's connect= raises, here unasked
            kind = type(exc).__name__
        raise ConnectError(f"connect= raised {kind}")

    def open(self, within: float | None = None) -> Session:
        """A session on a new connection.  Blocks, and raises as :meth:`connect`.

        :param within: given by those who log why it fails.
        """
        connection = self.connect(within, logged=within is not None)
        return _session_on(connection, shared=self._may_be_shared)

    def open_beside(self, *, alone: bool) -> Session:
        """A session on a second connection.  Blocks, and raises as :meth:`connect_beside`.

        :param alone: no other code is given its connection.
        """
        return _session_on(self.connect_beside(), shared=not alone or self._may_be_shared)


def _session_on(connection: Connection, *, shared: bool) -> Session:
    """A session on a connection of ours, which is closed if it is unsuitable."""
    try:
        return Session(connection, shared=shared)
    except BaseException:
        connection.close()
        raise


def _without_frames(connect: Callable[[], Connection]) -> Connection:
    """What *connect* returns.  An error leaves behind the frames whose locals hold a password:
    some programs send those to where they collect errors."""
    try:
        return connect()
    except Error as exc:
        error = exc.with_traceback(None)
    raise error
