"""The checks of ``pgsignals doctor``, in the order in which they run.

Statements are sent one by one and without parameters, so that any pooler accepts them.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pgsignals._pure.statements import (
    GUARDS,
    IDENTIFY,
    QUEUE_HOLDERS,
    QUEUE_USAGE,
    ROUND_TRIP_BEGINS,
    describe_holder,
)
from pgsignals._sources.probing import QUEUE_ALARM
from pgsignals._sources.setup import OLDEST_SERVER
from pgsignals._wire.opening import versions
from pgsignals._wire.session import Session
from pgsignals.cli._delivery import Delivery
from pgsignals.cli._findings import Finding, for_refusal
from pgsignals.cli._notifiers import channel_findings
from pgsignals.database import Database
from pgsignals.errors import ConnectError, ConnectionLostError, EncodingError

T = TypeVar("T")

#: Queue usage from which the server itself warns.
QUEUE_FULL = 0.5

#: Seconds by which clocks may differ without affecting the times of gaps.
CLOCKS = 1.0

#: Seconds of silence after which TCP keepalives should begin.
LONG_SILENCE = 600

TIMEOUTS = (
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "statement_timeout",
    "client_connection_check_interval",
)
KEEPALIVES = tuple(name for name in GUARDS if name.startswith("tcp_"))

SETTINGS = (
    "SELECT name, setting FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) "
    f"ANY ('{{{','.join(('max_connections', *TIMEOUTS, *KEEPALIVES))}}}'::pg_catalog.text[])"
)
TLS = (
    "SELECT ssl, version FROM pg_catalog.pg_stat_ssl "
    "WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()"
)
QUEUE = f"SELECT {QUEUE_USAGE}"
CLOCK = "SELECT pg_catalog.date_part('epoch'::pg_catalog.text, pg_catalog.clock_timestamp())"

#: How the round trip of version 0.1.0 begins.
OLD_ROUND_TRIP_BEGINS = "SELECT pg_notification_queue_usage()"

# The server does not say who listens, but the last statement of a listener is usually one of these.
# For sessions of other roles it may hide even the kind of process.
ACTIVITY = (
    "SELECT CASE WHEN application_name OPERATOR(pg_catalog.<>) ''::pg_catalog.text "
    "THEN application_name ELSE 'no name'::pg_catalog.text END, "
    "datname OPERATOR(pg_catalog.=) pg_catalog.current_database(), "
    "query OPERATOR(pg_catalog.~*) '^[[:space:]]*listen[[:space:]]'::pg_catalog.text "
    f"OR pg_catalog.starts_with(query, '{ROUND_TRIP_BEGINS}'::pg_catalog.text) "
    f"OR pg_catalog.starts_with(query, '{OLD_ROUND_TRIP_BEGINS}'::pg_catalog.text), "
    "query OPERATOR(pg_catalog.=) '<insufficient privilege>'::pg_catalog.text "
    "FROM pg_catalog.pg_stat_activity "
    "WHERE pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() AND datid IS NOT NULL "
    "AND coalesce(backend_type, 'client backend'::pg_catalog.text) "
    "OPERATOR(pg_catalog.=) 'client backend'::pg_catalog.text"
)


def examine(database: Database, timeout: float, channels: Sequence[str] = ()) -> Iterator[Finding]:
    """Yield the findings as they are made.  Blocks.

    :param timeout: seconds to wait for each answer.
    :param channels: channels to look for in sessions, triggers, functions and rules.
    """
    try:
        session = database._access.open(timeout)
    except EncodingError as error:
        yield Finding("encoding", "failed", str(error))
        return
    except ConnectError as error:
        yield Finding("connection", "failed", str(error), for_refusal(str(error)))
        return
    examination = Examination(database, session, timeout, channels)
    try:
        yield from examination.findings()
    except ConnectionLostError as error:
        text = "no answer in time" if examination.late else str(error)
        advice = "the server hangs, or the network silently drops packets of open connections"
        yield Finding("connection", "failed", text, advice if examination.late else None)
    finally:
        session.close()


class Examination:
    """One run: a session to ask with, and what is known so far."""

    def __init__(
        self, database: Database, session: Session, timeout: float, channels: Sequence[str]
    ) -> None:
        self.late = False
        self._channels = channels
        self._database = database
        self._session = session
        self._timeout = timeout
        self._direct = True
        self._settings: dict[str, str] = {}

    def findings(self) -> Iterator[Finding]:
        """Run the checks, yielding each finding as it is made."""
        begun = time.monotonic()
        [[pid, in_recovery]] = self._ask(IDENTIFY)
        took = time.monotonic() - begun
        self._direct = pid == self._session.backend_id
        self._in_time(self._session.clear_search_path)
        self._settings = {name: value for name, value in self._ask(SETTINGS)}
        where = f"{self._session.name}, answers in {1000 * took:.1f} ms"
        yield Finding("connection", "ok", where, facts={"answer_seconds": took})
        yield self._server()
        yield self._tls()
        yield self._encoding()
        found = [self._clock(), self._queue(), self._sessions(), self._timeouts()]
        about_channels: list[Finding] = []
        if self._channels and self._session.connection.info.server_version >= OLDEST_SERVER:
            about_channels = list(channel_findings(self._ask, self._channels))
        delivery = Delivery(self._database, self._timeout, direct=self._direct)
        yield from delivery.findings(in_recovery=in_recovery)
        yield from found
        yield from self._keepalives()
        yield from about_channels

    def _ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of *sql*; end the session if they take too long."""
        return self._in_time(lambda: self._session.query_text(sql))

    def _in_time(self, run: Callable[[], T]) -> T:
        def give_up() -> None:
            self.late = True
            self._session.shutdown()

        timer = threading.Timer(self._timeout, give_up)
        timer.daemon = True
        timer.start()
        try:
            return run()
        finally:
            timer.cancel()

    # -- what answers ----------------------------------------------------------------------------

    def _server(self) -> Finding:
        info = self._session.connection.info
        version = info.parameter_status("server_version") or "of an unknown version"
        psycopg, libpq = versions()
        text = f"PostgreSQL {version}; here psycopg {psycopg} with libpq {libpq}"
        facts = {"server": version, "psycopg": psycopg, "libpq": libpq}
        if info.server_version < OLDEST_SERVER:
            advice = f"PostgreSQL {OLDEST_SERVER // 10000} is the oldest that is supported"
            return Finding("server", "failed", text, advice, facts)
        return Finding("server", "ok", text, facts=facts)

    def _tls(self) -> Finding:
        pgconn, info = self._session.pgconn, self._session.connection.info
        encrypted = bool(pgconn.ssl_in_use)
        facts: dict[str, Any] = {"encrypted": encrypted}
        if info.host.startswith("/"):
            return Finding("TLS", "ok", "none, over a Unix socket", facts=facts)
        if not encrypted:
            if re.match(r"127\.|::1$", info.hostaddr):
                return Finding("TLS", "ok", "none, within this machine", facts=facts)
            advice = "set sslmode=verify-full: anyone on the way can read and forge notifications"
            return Finding("TLS", "warning", "none", advice, facts)
        rows = self._ask(TLS) if self._direct else []
        protocol = rows[0][1] if rows and rows[0][0] else "encrypted"
        options = {option.keyword: option.val for option in pgconn.info}
        sslmode = (options.get(b"sslmode") or b"prefer").decode()
        facts |= {"protocol": protocol, "sslmode": sslmode}
        text = f"{protocol}, sslmode={sslmode}"
        if sslmode == "verify-full":
            return Finding("TLS", "ok", text, facts=facts)
        advice = "set sslmode=verify-full: anyone on the way can impersonate the server"
        return Finding("TLS", "note", text, advice, facts)

    def _encoding(self) -> Finding:
        status = self._session.connection.info.parameter_status
        server, client = status("server_encoding") or "", status("client_encoding") or ""
        facts = {"server": server, "client": client}
        text = f"{server} in the database, {client} on the wire"
        if server == "SQL_ASCII":
            advice = (
                "prefer a database with encoding UTF8: this one accepts any bytes, and those that "
                "are not UTF-8 arrive as surrogate escapes"
            )
            return Finding("encoding", "note", text, advice, facts)
        return Finding("encoding", "ok", text, facts=facts)

    def _clock(self) -> Finding:
        offset, doubt = 0.0, float("inf")
        for _ in range(5):
            before = datetime.now(UTC).timestamp()
            [[there]] = self._ask(CLOCK)
            after = datetime.now(UTC).timestamp()
            if after - before < doubt:
                offset, doubt = there - (before + after) / 2, after - before
        facts = {"offset_seconds": offset, "uncertainty_seconds": doubt / 2}
        ahead = "ahead of" if offset >= 0 else "behind"
        text = f"the server's clock is {1000 * abs(offset):.1f} ms {ahead} this machine's"
        text += f" (to within {500 * doubt:.1f} ms)"
        if abs(offset) - doubt / 2 > CLOCKS:
            advice = (
                "synchronize both with NTP: a Gap has the times of this machine, your tables have "
                "those of the server"
            )
            return Finding("clock", "warning", text, advice, facts)
        return Finding("clock", "ok", text, facts=facts)

    # -- the queue and the others ----------------------------------------------------------------

    def _queue(self) -> Finding:
        [[usage]] = self._ask(QUEUE)
        rows = self._ask(QUEUE_HOLDERS) if usage else []
        holders = [describe_holder(row) for row in rows]
        facts = {"usage": usage, "holders": holders}
        text = f"{100 * usage:.4g} % full"
        if holders:
            text += f"; may be held by {'; '.join(holders)}"
        elif usage and self._blind:
            text += "; this role cannot see which sessions hold it"
        if usage < QUEUE_ALARM:
            return Finding("queue", "ok", text, facts=facts)
        advice = (
            "end the session that holds it with pg_terminate_backend(pid); once the queue is full, "
            "every NOTIFY in the cluster fails"
        )
        return Finding("queue", "failed" if usage >= QUEUE_FULL else "warning", text, advice, facts)

    @property
    def _blind(self) -> bool:
        """Whether the server hides the activity of other sessions from this role."""
        return any(row[3] for row in self._ask(ACTIVITY))

    def _sessions(self) -> Finding:
        rows = self._ask(ACTIVITY)
        limit = int(self._settings.get("max_connections", 0))
        listeners = sorted({name for name, here, listens, _ in rows if here and listens})
        number = sum(1 for _, here, listens, _ in rows if here and listens)
        hidden = sum(1 for *_, hidden in rows if hidden)
        facts = {
            "sessions": len(rows) + 1,
            "max_connections": limit,
            "listeners": number,
            "hidden": hidden,
        }
        seem = "seems" if number == 1 else "seem"
        text = f"{len(rows) + 1} of {limit} in use; {number} {seem} to listen in this database"
        if listeners:
            text += f" ({', '.join(listeners[:5])}{', ...' if len(listeners) > 5 else ''})"
        if hidden:
            text += f"; this role cannot see what {hidden} of them do"
        if len(rows) + 1 >= 0.9 * limit > 0:
            advice = "raise max_connections, or find out what holds them: a reactor needs two"
            return Finding("sessions", "warning", text, advice, facts)
        if hidden:
            advice = (
                "GRANT pg_read_all_stats to this role to see who listens and who holds the queue"
            )
            return Finding("sessions", "note", text, advice, facts)
        return Finding("sessions", "ok", text, facts=facts)

    # -- what ends a listener --------------------------------------------------------------------

    def _timeouts(self) -> Finding:
        facts = {
            name: int(self._settings[name]) / 1000 for name in TIMEOUTS if name in self._settings
        }
        active = {name: seconds for name, seconds in facts.items() if seconds}
        text = ", ".join(f"{name} {seconds:g} s" for name, seconds in active.items()) or "none set"
        idle = facts.get("idle_session_timeout", 0)
        if not idle:
            return Finding("timeouts", "ok", text, facts=facts)
        if self._direct:
            advice = (
                "a Reactor sets idle_session_timeout to 0 on its own session; a loop over "
                "db.wait() must do so itself"
            )
            return Finding("timeouts", "note", text, advice, facts)
        advice = (
            "ALTER ROLE ... SET idle_session_timeout = 0, or keep probe_interval well below it: "
            "behind a pooler a Reactor changes no settings"
        )
        return Finding("timeouts", "warning", text, advice, facts)

    def _keepalives(self) -> Iterator[Finding]:
        facts: dict[str, Any] = {
            name: int(self._settings[name]) for name in KEEPALIVES if name in self._settings
        }
        ours = tcp_settings(self._session.fileno())
        if not ours:
            text = "none needed, over a Unix socket"
            yield Finding("keepalives", "ok", text, facts={"server": facts, "client": {}})
            return
        both = {"server": facts, "client": ours}
        text = f"server: {in_words(facts)}; here: {in_words(ours)}"
        if not self._direct:
            advice = (
                "set the pooler's tcp_keepalive and the server's tcp_keepalives_idle: behind a "
                "pooler a Reactor changes no settings"
            )
            yield Finding("keepalives", "note", text, advice, both)
        else:
            if ours.get("keepalives_idle", 0) > LONG_SILENCE or not ours.get("keepalives"):
                text += "; a Reactor sets its own on the server side, and probes"
            yield Finding("keepalives", "ok", text, facts=both)


def in_words(settings: dict[str, Any]) -> str:
    """Format settings, without the common prefix of their names."""
    return ", ".join(
        f"{name.removeprefix('tcp_').removeprefix('keepalives_')} {value}"
        for name, value in settings.items()
    )


def tcp_settings(number: int) -> dict[str, int]:
    """Return the TCP settings of the socket *number* that the operating system reports, under
    libpq's names; none for a Unix socket."""
    with socket.socket(fileno=os.dup(number)) as duplicate:
        if duplicate.family == socket.AF_UNIX:
            return {}
        settings = {"keepalives": duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)}
        for name, constant in (
            ("keepalives_idle", "TCP_KEEPIDLE"),
            ("keepalives_interval", "TCP_KEEPINTVL"),
            ("keepalives_count", "TCP_KEEPCNT"),
            ("tcp_user_timeout", "TCP_USER_TIMEOUT"),
        ):
            option = getattr(socket, constant, None)
            if option is not None:
                settings[name] = duplicate.getsockopt(socket.IPPROTO_TCP, option)
        return settings
