"""A session of the tests' own, beside the library that is tested."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import psycopg

from tests.support.waiting import wait_until

NOTIFY = "SELECT pg_catalog.pg_notify(%s::pg_catalog.text, %s::pg_catalog.text)"


class Admin:
    """Looks and acts from outside, over plain psycopg."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg.connect(dsn, autocommit=True, application_name="tests")

    @property
    def pid(self) -> int:
        """The backend of this session, which sends what :meth:`notify` sends."""
        return self._connection.info.backend_pid

    def execute(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def notify(self, channel: str, *payloads: str) -> None:
        """Send notifications, each in a transaction of its own; without payloads, one."""
        for payload in payloads or ("",):
            self.execute(NOTIFY, channel, payload)

    def flood(self, channel: str, count: int, size: int = 0) -> None:
        """Send *count* notifications in one transaction: 1, 2, 3, each padded to *size*."""
        self.execute(
            "SELECT pg_catalog.count(pg_catalog.pg_notify(%s::pg_catalog.text, pg_catalog.rpad("
            "i::pg_catalog.text, CASE WHEN pg_catalog.length(i::pg_catalog.text) "
            "OPERATOR(pg_catalog.>) %s::pg_catalog.int4 THEN pg_catalog.length(i::pg_catalog.text) "
            "ELSE %s::pg_catalog.int4 END, '.'::pg_catalog.text)))"
            " FROM pg_catalog.generate_series(1, %s::pg_catalog.int4) AS i",
            channel,
            size,
            size,
            count,
        )

    def sessions(self) -> dict[int, str]:
        """The backends of all other clients, with what they call themselves."""
        rows = self.execute(
            "SELECT pid, application_name FROM pg_catalog.pg_stat_activity"
            " WHERE backend_type OPERATOR(pg_catalog.=) 'client backend'::pg_catalog.text"
            " AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid()"
        )
        return dict(rows)

    def kill(self, pid: int) -> None:
        """End a session, as an administrator does, and return when its socket is closed."""
        self.execute("SELECT pg_catalog.pg_terminate_backend(%s::pg_catalog.int4)", pid)
        wait_until(lambda: not exists(pid), why=f"backend {pid} did not end")

    def close(self) -> None:
        self._connection.close()


def exists(pid: int) -> bool:
    """Whether there is such a process.  One that ends closes its sockets first."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process *pid* stands still in this block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
