"""Checks of ``pgsignals doctor`` that need a reactor: the server's role, a pooler, delivery."""

from __future__ import annotations

import queue
import secrets
import statistics
import threading
import time
from collections.abc import Iterator

from pgsignals._pure.values import Notification
from pgsignals.cli._findings import Finding, for_refusal
from pgsignals.database import Database
from pgsignals.errors import Error, PoolerError, StandbyError
from pgsignals.reactor import Reactor

#: Notifications whose round trips are measured.
ROUND_TRIPS = 20

#: What to say of a pooler whose mode could not be determined.
UNKNOWN = "transaction or statement"


class Delivery:
    """One attempt to get notifications through.

    :param timeout: seconds to wait for each answer.
    :param direct: False if a pooler has been noticed already.
    """

    def __init__(self, database: Database, timeout: float, *, direct: bool) -> None:
        self._database = database
        self._timeout = timeout
        self._direct = direct

    def findings(self, *, in_recovery: bool) -> Iterator[Finding]:
        """Check the role of the server, for a pooler, and LISTEN/NOTIFY itself.  Blocks."""
        channel = f"pgsignals_doctor_{secrets.token_hex(8)}"
        arrivals: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()

        def arrived(_: Database, *, notification: Notification) -> None:
            arrivals.put((notification.payload, time.perf_counter()))

        reactor = Reactor(self._database, probe_interval=self._timeout, probe_timeout=self._timeout)
        reactor.on_channel(channel)(arrived)
        error: Error | None = None
        try:
            reactor.start()
        except Error as exc:
            error = exc
        try:
            role = "standby" if in_recovery else "primary"
            if isinstance(error, StandbyError) or in_recovery:
                yield Finding("role", "failed", *split(error, role), {"role": role})
            else:
                yield Finding("role", "ok", role, facts={"role": role})
            yield self._pooler(error)
            if error is None:
                yield self._round_trips(reactor, channel, arrivals)
            elif isinstance(error, (PoolerError, StandbyError)):
                yield Finding("delivery", "skipped", "LISTEN/NOTIFY cannot work here")
            else:
                yield Finding("delivery", "failed", str(error), for_refusal(str(error)))
        finally:
            reactor.stop(0)

    def _pooler(self, error: Error | None) -> Finding:
        refused = isinstance(error, PoolerError)
        if self._direct and not refused:
            return Finding("pooler", "ok", "none", facts={"mode": None})
        if error is None:
            advice = (
                "bypass it if you can: each listener permanently occupies one of its server "
                "sessions, and its own timeouts (client_idle_timeout) apply"
            )
            text = "one in session mode, which lets notifications through"
            return Finding("pooler", "warning", text, advice, {"mode": "session"})
        if not refused:
            text = "one whose mode could not be determined"
            return Finding("pooler", "warning", text, None, {"mode": "unknown"})
        mode = self._mode()
        text = f"one in {mode} mode: LISTEN succeeds, but every notification is lost"
        advice = "connect to the server directly, or to a pool in session mode"
        return Finding("pooler", "failed", text, advice, {"mode": mode})

    def _mode(self) -> str:
        """The mode of a pooler that shares sessions: in statement mode it rejects BEGIN."""
        try:
            session = self._database._access.open(self._timeout)
        except Error:
            return UNKNOWN
        timer = threading.Timer(self._timeout, session.shutdown)
        timer.daemon = True
        timer.start()
        try:
            session.query("BEGIN")
            session.query("ROLLBACK")
        except Exception as exc:
            if not is_rejection(exc):
                raise
            return "statement" if "statement pooling" in str(exc) else UNKNOWN
        finally:
            timer.cancel()
            session.close()
        return "transaction"

    def _round_trips(
        self, reactor: Reactor, channel: str, arrivals: queue.SimpleQueue[tuple[str, float]]
    ) -> Finding:
        seconds = []
        try:
            for number in range(ROUND_TRIPS + 1):
                sent = time.perf_counter()
                reactor.notify((channel, str(number)))
                payload = ""
                while payload != str(number):
                    payload, at = arrivals.get(timeout=self._timeout)
                    seconds.append(at - sent)
        except queue.Empty:
            text = f"a notification did not arrive within {self._timeout:g} s"
            return Finding(
                "delivery", "failed", text, "check for a pooler between here and the server"
            )
        except Exception as exc:
            if not is_rejection(exc):
                raise
            text = f"NOTIFY fails: {' '.join(str(exc).split())}"
            return Finding("delivery", "failed", text, for_refusal(text))
        del seconds[0]  # it includes opening a connection
        median, slowest = statistics.median(seconds), max(seconds)
        facts = {"count": len(seconds), "median_seconds": median, "max_seconds": slowest}
        text = (
            f"{len(seconds)} of {len(seconds)} notifications arrived, from NOTIFY to the handler "
            f"in {1000 * median:.1f} ms (median), {1000 * slowest:.1f} ms (worst)"
        )
        if (trouble := reactor.status().databases[0].last_error) is not None:
            advice = "a Reactor needs a second connection now and then: check its role's limit"
            return Finding("delivery", "warning", f"{text}; {trouble}", advice, facts)
        return Finding("delivery", "ok", text, facts=facts)


def is_rejection(error: Exception) -> bool:
    """Whether it is one of ours, or psycopg's for a statement that the server rejected."""
    return isinstance(error, Error) or hasattr(error, "sqlstate")


def split(error: Error | None, role: str) -> tuple[str, str | None]:
    """Split an error into what happened and what to do, which follows a semicolon."""
    detail, _, advice = str(error or role).partition("; ")
    return detail, advice or None
