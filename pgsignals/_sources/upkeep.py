"""Keeping one long-lived session up: connecting, backing off, losing it, and beginning again.

What is said on the session is its user's affair: a source.  It is handed each session that opens
(*adopt*), and each loss (*lost*), and reports what it finds out with :meth:`Upkeep.fail`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from pgsignals._pure.states import Condition, Event, State
from pgsignals._runtime.log import Log
from pgsignals._sources.errands import Errands
from pgsignals._wire.access import Access
from pgsignals._wire.opening import needs_care
from pgsignals._wire.session import Session
from pgsignals.errors import ConnectError, ConnectionLostError, Error

logger = Log("pgsignals.reactor")

Reason: TypeAlias = Literal["ended", "silent", "deaf"]


class Host(Protocol):
    """The reader, as its sources see it."""

    rng: random.Random

    @property
    def starting(self) -> bool:
        """While a failure is an error of ``start()``, and not a reason to try again."""

    @property
    def stopping(self) -> bool:
        """No further attempts are made."""

    def command(self, run: Callable[[], None]) -> None:
        """Run it on the reader's thread; from any thread."""

    def spawn(
        self, what: str, run: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """Run it on a thread of its own; *failed* is called if none can be started."""


class Upkeep:
    """See the module.  The reader's thread runs its methods, unless said otherwise.

    :param adopt: called with a session that has been opened.
    :param lost: called when a session has ended, with whether it had been announced, and why.
    :param readable: called when the session has something to find that its socket does not show.
    """

    def __init__(
        self,
        access: Access,
        reader: Host,
        condition: Condition,
        *,
        adopt: Callable[[Session], None],
        lost: Callable[[bool, Reason, ConnectionLostError], None],
        readable: Callable[[], None],
    ) -> None:
        self.access = access
        self.reader = reader
        self.condition = condition
        # Written by the reader's thread, read by any.
        self.session: Session | None = None
        self.error: Exception | None = None  # why it cannot go on
        self.last_error: str | None = None
        # The reader's thread alone.
        self.errands = Errands(
            access.errands,
            reader.spawn,
            condition.timing.connect,
            self.warn,
            lambda: reader.command(condition.resume),
        )
        self._adopt = adopt
        self._lost = lost
        self._readable = readable
        self._why: tuple[Reason, str] | None = None  # the session is given up, unless it has ended

    @property
    def closed(self) -> bool:
        """Whether there is no session, or it has ended."""
        return self.session is None or self.session.closed

    # -- on the reader's thread, and on others ---------------------------------------------------

    def guarded(self, run: Callable[[], None]) -> None:
        """Run a step; an exception costs this session, and no other one."""
        try:
            run()
        except Exception as exc:  # noqa: BLE001 - see above
            self.misfortune(exc)

    def command(self, run: Callable[[], None]) -> None:
        """Run a step on the reader's thread; from any thread."""
        self.reader.command(lambda: self.guarded(run))

    def spawn(
        self, what: str, run: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """Run what may hang on a thread of its own: see :meth:`Errands.run`."""
        self.errands.run(what, run, lambda error: self.guarded(lambda: failed(error)))

    # -- what is said of it ----------------------------------------------------------------------

    def warn(self, text: str, level: int = logging.WARNING) -> None:
        """Make *text* the last error, and log it."""
        self.last_error = text
        logger.log(level, "%s: %s", self.access.name, text)

    def refuse_start(self, error: Exception) -> None:
        """While it starts, this is why it cannot; the first error counts."""
        if self.reader.starting:
            self.error = self.error or error

    # -- up --------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Begin an attempt."""
        now = time.monotonic()
        if self.reader.starting and self.errands.hang("connect", now):
            self._refused(ConnectError(self.last_error or ""))
            return
        attempts = self.condition.attempts
        number = attempts.begin(now)

        def run() -> None:
            error: Exception | None = None
            session = None
            try:
                session = self.access.open(attempts.limit)
            except BaseException as exc:  # noqa: BLE001 - whatever a user's connect= raises
                error = as_exception(exc, self.access.name)
            self.command(lambda: self._opened(number, session, error))

        self.spawn("connect", run, lambda exc: self._opened(number, None, exc))

    def reconnect(self, now: float) -> None:
        """Begin another attempt, unless it would only hang."""
        if self.errands.hang("connect", now):
            self.condition.attempts.put_off(now)
        else:
            self.condition.happen(Event.DUE)
            self.connect()

    def _opened(self, number: int, session: Session | None, error: Exception | None) -> None:
        """The outcome of an attempt."""
        condition = self.condition
        if number != condition.attempts.current or condition.state is not State.CONNECTING:
            if session is not None:
                session.close()
        elif session is None:
            self._refused(error or ConnectError(f"{self.access.name}: no reason given"))
        else:
            self.adopt(session)

    def adopt(self, session: Session) -> None:
        """Make *session* ours."""
        self.condition.begin_session()
        self.session = session
        self._why = None
        self._adopt(session)

    def give_up_attempt(self) -> None:
        """It takes too long."""
        limit = self.condition.attempts.limit
        self._refused(ConnectError(f"{self.access.name}: no connection within {limit:.0f} s"))

    def _refused(self, error: Exception) -> None:
        """An attempt has failed."""
        self.condition.attempts.end()
        self.condition.happen(Event.REFUSED)
        # What a user's connect= raises may hold a secret in its text: ours do not.
        ours = isinstance(error, Error)
        self.last_error = str(error) if ours else f"connect= raised {type(error).__name__}"
        if self.reader.starting or self.access.wrapped:
            if not ours:
                error.add_note(f"raised while pgsignals connected {self.access.name}")
            self.error = error
            return
        self._retry_later(self.last_error, slowly=needs_care(error))

    def _retry_later(self, why: str, *, slowly: bool = False) -> None:
        attempts = self.condition.attempts
        delay = attempts.retry(time.monotonic(), self.reader.rng, slowly=slowly)
        logger.warning(
            "%s: %s; attempt %d in %.1f s",
            self.access.name,
            bare(why, self.access.name),
            attempts.backoff.failures,
            delay,
        )

    # -- down ------------------------------------------------------------------------------------

    def fail(self, reason: Reason, why: str) -> None:
        """Give the session up: its socket is shut down, and :meth:`ended` follows at once."""
        if self.session is not None and self._why is None:
            self._why = reason, why
            self.session.shutdown()

    def ended(self) -> None:
        """The session has ended, and what it had received has been queued."""
        session, self.session = self.session, None
        if session is None:
            return
        self.access.losses += 1
        session.close()
        error = session.lost()
        reason, why = self._why or ("ended", session.farewell.why)
        if self._why is not None:
            error = ConnectionLostError(
                f"the session with {self.access.name} is given up: {why}",
                sqlstate=session.farewell.sqlstate,
            )
        self.last_error = str(error)
        self._leave(reason, error)
        if self.reader.starting or self.access.wrapped or self.error is not None:
            self.error = self.error or error
        elif not self.reader.stopping:
            self._retry_later(f"lost ({reason}): {why}")

    def _leave(self, reason: Reason, error: ConnectionLostError) -> None:
        condition = self.condition
        announced = condition.state is State.LISTENING
        condition.happen(Event.LOST)
        condition.expect_nothing()
        if announced:
            condition.past.lost(condition.proof.since)
            condition.attempts.backoff.ended_after(time.monotonic() - condition.past.up_since)
        self._lost(announced, reason, error)

    def misfortune(self, error: Exception) -> None:
        """A step of ours has raised: give the session up, and begin with another one."""
        self.last_error = f"bug in pgsignals: {type(error).__name__}"
        logger.critical("%s: %s", self.access.name, self.last_error, exc_info=error)
        if self.reader.starting or self.access.wrapped:
            self.error = self.error or error
        if self.session is not None and not self.session.ended:
            self.fail("ended", self.last_error)
            self.session.leave()
            self._readable()  # ended() follows
        elif self.condition.state is not State.STOPPED and self.error is None:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Where :meth:`ended` or an attempt has raised, and nothing else would follow."""
        session, self.session = self.session, None
        if session is not None:
            session.close()
        condition = self.condition
        if condition.state in (State.SYNCING, State.LISTENING):
            self._leave("ended", ConnectionLostError(self.last_error or ""))
        elif condition.state is State.CONNECTING:
            condition.happen(Event.REFUSED)
        condition.attempts.end()
        self._retry_later(self.last_error or "")

    def stop(self) -> Session | None:
        """Make no further attempt, and let go of the session, which is returned."""
        self.condition.attempts.end()
        self.condition.happen(Event.STOP)
        session, self.session = self.session, None
        return session


def bare(text: str, name: str) -> str:
    """*text* without the *name* of its database, which precedes it in the log."""
    return text.removeprefix(f"{name}: ")


def as_exception(raised: BaseException, name: str) -> Exception:
    """What a user's ``connect=`` has raised on a thread of ours, where ``sys.exit()`` ends that
    thread alone: it is a failure like any other.

    :param name: of the database.
    """
    if isinstance(raised, Exception):
        return raised
    return ConnectError(f"{name}: connect= raised {type(raised).__name__}")
