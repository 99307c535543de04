"""Statements on a session that no thread waits for: sent now, answered when the answer comes.

There is one at a time, and each says what follows its answer; that is never changed while the
statement is under way.  Only the end of a link overrides it: see :meth:`Asker.end_with`.

A session of our own is asked by the reader, without blocking.  On a connection that other code uses
too, question and answer must be one unit under psycopg's lock, so that each statement gets its own
answer; a thread beside the reader asks there, and waits until the connection is free.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pgsignals._sources.upkeep import Upkeep
from pgsignals._wire.results import Result
from pgsignals._wire.session import Session
from pgsignals.errors import ConnectError, ConnectionStateError, StandbyError

#: How long a statement of ours waits for another's on a shared connection at a time, in seconds.
OTHERS_PATIENCE = 1.0

#: How soon to try again to send what a full socket did not take, in seconds.
UNSENT = 0.02

#: SQLSTATEs with which a server refuses for good: no permission (42501), no such function, type,
#: setting or syntax (42883, 42704, 42P01, 42601 ...), no such feature (0A000), a name that has no
#: text in the encoding that is asked for (22021, 22P05).
FOR_GOOD = ("42", "0A", "22021", "22P05")


@dataclass(frozen=True, eq=False)
class Statement:
    """A statement of ours, and what follows."""

    sql: str
    then: Callable[[list[Result]], None]
    """Is called with the answer."""
    refused: Callable[[Result], None] | None
    """Is called with a permanent error; None to give the session up, as for any other error."""


class Asker:
    """See the module.  The reader's thread runs its methods.

    :param look: have the session drained in the next turn, whatever its socket says.
    """

    def __init__(self, upkeep: Upkeep, look: Callable[[], None]) -> None:
        self._upkeep = upkeep
        self._exchange = upkeep.condition.exchange
        self._look = look
        self._statement: Statement | None = None  # under way, or waits for other code's
        self._last: Callable[[], object] | None = None  # follows it at the end, in place of `then`
        self._warned_of_others = False

    def begin(self) -> None:
        """A new session."""
        self._statement, self._warned_of_others = None, False

    def submit(
        self,
        sql: str,
        then: Callable[[list[Result]], None],
        *,
        refused: Callable[[Result], None] | None = None,
        share: float = 1.0,
    ) -> None:
        """Send *sql*; nothing else may be under way.

        :param share: of the time that a server has for an answer.
        """
        self._statement = Statement(sql, then, refused)
        self._exchange.ask(share)
        self._send(self._statement)

    def end_with(self, run: Callable[[], object]) -> None:
        """At the end of a link: what follows the statement under way, in place of its own."""
        self._last = run

    def _send(self, statement: Statement) -> None:
        session = self._upkeep.session
        if session is None:
            return
        now = time.monotonic()
        if session.shared:
            self._exchange.hand_over(now)
            self._ask_beside(session, statement)
        else:
            self._upkeep.condition.sent(now)
            session.submit(statement.sql)
            self._see_broken(session)

    def send_again(self) -> None:
        """Try again to send what has to wait for a statement of others."""
        if self._statement is not None:
            self._send(self._statement)

    def flush(self) -> bool:
        """Send what the socket did not take; returns whether there is more."""
        session = self._upkeep.session
        if session is None or not session.unsent:
            return False
        session.flush()
        self._see_broken(session)
        return session.unsent

    def _see_broken(self, session: Session) -> None:
        if session.broken:  # libpq has closed the socket, which will not become readable any more
            self._look()

    # -- on a connection in others' hands --------------------------------------------------------

    def _ask_beside(self, session: Session, statement: Statement) -> None:
        upkeep = self._upkeep

        def is_asked() -> bool:
            return upkeep.session is session and self._statement is statement

        def sends(now: float) -> None:
            if is_asked():
                upkeep.condition.sent(now)

        def asked(sent: bool) -> None:
            if not is_asked():
                return
            if sent:
                self._look()
            else:
                self._wait_for_others(time.monotonic())

        def begins() -> None:
            upkeep.command(partial(sends, time.monotonic()))

        def run() -> None:
            done = False
            try:
                done = session.ask(statement.sql, OTHERS_PATIENCE, begins)
            except Exception as exc:  # noqa: BLE001 - ours, to be reported by the reader
                error = exc
                upkeep.command(lambda: upkeep.misfortune(error))
            upkeep.command(lambda: asked(done))

        upkeep.spawn("statement", run, lambda _: asked(False))

    def _wait_for_others(self, now: float) -> None:
        """Other code runs a statement, or is in a transaction: nothing can be asked, and nothing
        arrives, until that has ended."""
        waited = self._exchange.wait_for_others(now)
        if waited < self._upkeep.condition.timing.connect or self._warned_of_others:
            return
        self._warned_of_others = True
        text = (
            f"the connection has been in use for {waited:.0f} s by a statement or a "
            "transaction of its owner, and nothing arrives meanwhile"
        )
        self._upkeep.warn(text)
        if self._upkeep.reader.starting:
            name = self._upkeep.access.name
            self._upkeep.error = ConnectionStateError(f"{name}: {text}")

    # -- answers ---------------------------------------------------------------------------------

    def answered(self, results: list[Result]) -> None:
        """The answer has been read; go on with what follows it."""
        statement, self._statement = self._statement, None
        self._exchange.answered()
        self._warned_of_others = False
        if statement is None:
            return
        refused = next((result for result in results if result.sqlstate), None)
        if self._last is not None:
            run, self._last = self._last, None
            run()
        elif refused is None:
            statement.then(results)
        elif statement.refused is not None and (refused.sqlstate or "").startswith(FOR_GOOD):
            statement.refused(refused)
        else:
            self._give_up(refused)

    def _give_up(self, result: Result) -> None:
        """The server refuses what we cannot do without."""
        upkeep, name = self._upkeep, self._upkeep.access.name
        text = f"{result.message} ({result.sqlstate})"
        standby = result.sqlstate == "25006"
        upkeep.refuse_start(is_standby(name) if standby else ConnectError(f"{name}: {text}"))
        upkeep.fail("ended", text)


def is_standby(name: str) -> StandbyError:
    """The error of a server on which LISTEN is not possible."""
    return StandbyError(
        f"{name} is a standby, where LISTEN is not possible; connect to the "
        "primary, or give a list of hosts and target_session_attrs=primary"
    )
