"""Finding out whether a session is alive, and whether it hears: round trips and canaries.

See :mod:`pgsignals._pure.states` for what follows from either.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from pgsignals._pure.statements import PARTS, QUEUE_HOLDERS, describe_holder, round_trip
from pgsignals._pure.states import State
from pgsignals._runtime.log import Log
from pgsignals._sources.asking import Asker
from pgsignals._sources.upkeep import Upkeep, as_exception, bare
from pgsignals._wire.opening import needs_care
from pgsignals._wire.results import Result
from pgsignals._wire.session import Session
from pgsignals._wire.sessions import Control
from pgsignals.errors import Error, PoolerError

logger = Log("pgsignals.reactor")

#: Of the queue; the server itself warns from a half on.
QUEUE_ALARM = 0.25

#: What each part of a round trip is for.
DOES = dict(
    zip(PARTS, ("watching the queue", "seeing a standby", "seeing lost registrations"), strict=True)
)


class RoundTrips:
    """Round trips of the parts that the server lets us ask for.  For the reader's thread."""

    def __init__(self, upkeep: Upkeep, asker: Asker) -> None:
        self._upkeep = upkeep
        self._asker = asker
        self._parts: frozenset[str] = frozenset(PARTS)
        self._refused: dict[str, str] = {}  # what the server does not let us do, and why
        self._warned: frozenset[str] = frozenset()  # of these; kept over sessions

    def begin(self) -> None:
        """A new session."""
        self._parts, self._refused = frozenset(PARTS), {}

    def make(self, then: Callable[[list[Result]], None], share: float = 1.0) -> None:
        """Make one; *then* is called with the answer.

        :param share: of the time that a server has for an answer.
        """

        def refused(_: Result) -> None:
            self._make_of(deque(sorted(self._parts)), frozenset(), then)

        self._asker.submit(round_trip(self._parts), then, refused=refused, share=share)

    def _make_of(
        self,
        untried: deque[str],
        parts: frozenset[str],
        then: Callable[[list[Result]], None],
    ) -> None:
        """Find out which parts the server refuses, and go on without them."""
        if not untried:
            self._parts = parts
            self.warn_of_refused()
            self._asker.submit(round_trip(parts), then)
            return
        part = untried.popleft()

        def refused(result: Result) -> None:
            self.do_without(DOES[part], result)
            self._make_of(untried, parts, then)

        def taken(_: list[Result]) -> None:
            self._make_of(untried, parts | {part}, then)

        self._asker.submit(round_trip({part}), taken, refused=refused)

    def do_without(self, what: str, result: Result) -> None:
        """The server refuses something that we can do without."""
        self._refused[what] = f"{result.message} ({result.sqlstate})"

    def warn_of_refused(self) -> None:
        """Say what the server refuses, once."""
        if self._refused:
            text = "; ".join(f"{what}: {why}" for what, why in self._refused.items())
            text = f"continuing without what the server refuses: {text}"
            if self._refused.keys() != self._warned:
                self._upkeep.warn(text)
            self._upkeep.last_error = text
        self._warned = frozenset(self._refused)


class QueueWatch:
    """Watches how full the server's notification queue is: when it is full, every NOTIFY fails."""

    def __init__(self, upkeep: Upkeep, control: Control) -> None:
        self._upkeep = upkeep
        self._control = control
        self.usage: float | None = None  # 0.0 to 1.0, at the last round trip; any thread reads it

    def see(self, usage: float) -> None:
        """A round trip has told it; warn while it fills.  For the reader's thread."""
        before, self.usage = self.usage or 0.0, usage
        if usage >= QUEUE_ALARM and usage > before and not self._upkeep.errands.is_out("queue"):
            self._upkeep.spawn("queue", lambda: self._warn(usage), lambda _: None)

    def _warn(self, usage: float) -> None:
        """On a thread of its own, as it asks who keeps the server from emptying the queue."""
        try:
            holders = [describe_holder(row) for row in self._control.query(QUEUE_HOLDERS)]
        except BaseException as exc:  # noqa: BLE001 - a user's connect= may be in it
            holders = [f"unknown: {type(exc).__name__}"]
        logger.warning(
            "%s: the notification queue is %.0f %% full; when it is full, every NOTIFY "
            "fails.  Sessions that may hold it: %s",
            self._upkeep.access.name,
            100 * usage,
            "; ".join(holders) or "none found",
        )


class CanaryKeeper:
    """Sends canaries.  For the reader's thread.

    :param heard: called when a session that is not announced yet has shown that it hears, as far
        as that can be shown.
    """

    def __init__(self, upkeep: Upkeep, control: Control, heard: Callable[[], None]) -> None:
        self._upkeep = upkeep
        self._control = control
        self._heard = heard
        self._trouble: str | None = None  # the last one that was a warning
        self.behind_pooler = False  # of this session

    def begin(self) -> None:
        """A new session."""
        self.behind_pooler = False

    def send(self, now: float) -> None:
        """Have a thread commit one."""
        upkeep, canary = self._upkeep, self._upkeep.condition.canary
        canary.ask(now)
        session = upkeep.session
        if upkeep.errands.hang("canary", now):
            self._sent(session, now, TimeoutError("the threads before it hang"))
            return

        def run() -> None:
            error: Exception | None = None
            try:
                self._control.canary()
            except BaseException as exc:  # noqa: BLE001 - a user's connect= may be in it
                error = as_exception(exc, upkeep.access.name)
            upkeep.command(lambda: self._sent(session, now, error))

        upkeep.spawn("canary", run, lambda exc: self._sent(session, now, exc))

    def send_idle(self, now: float) -> None:
        """The same, unless it would only hang."""
        if self._upkeep.errands.hang("canary", now):
            self._upkeep.condition.canary.put_off(now)
        else:
            self.send(now)

    def give_up(self) -> None:
        """It has not been committed in time."""
        asked_at = self._upkeep.condition.canary.asked_at
        self._sent(self._upkeep.session, asked_at, TimeoutError("it could not be sent in time"))

    def arrived(self) -> None:
        """One has arrived, ours or another reactor's."""
        upkeep = self._upkeep
        share = upkeep.reader.rng.uniform(0.8, 0.95)
        if upkeep.condition.canary_arrived(time.monotonic(), share):
            self._heard()

    def _sent(self, session: Session | None, asked_at: float, error: Exception | None) -> None:
        upkeep, condition = self._upkeep, self._upkeep.condition
        if session is not upkeep.session or not condition.canary.is_awaited(asked_at):
            return
        now = time.monotonic()
        if error is None:
            self._trouble = None
            condition.canary.committed(now)
            return
        condition.canary_failed(now, refused=not isinstance(error, TimeoutError))
        if needs_care(error):
            delay = condition.attempts.backoff.slow_delay(upkeep.reader.rng)
            condition.canary.not_before = now + delay
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        upkeep, name = self._upkeep, self._upkeep.access.name
        why = error if isinstance(error, (Error, TimeoutError)) else type(error).__name__
        text = f"no canary could be sent: {bare(str(why), name)}"
        upkeep.warn(text, logging.DEBUG if text == self._trouble else logging.WARNING)
        self._trouble = text
        if upkeep.condition.state is not State.SYNCING:
            return
        if self.behind_pooler:  # which may well swallow notifications: say so, not "listening"
            upkeep.refuse_start(
                PoolerError(
                    f"{name}: a pooler is in front of the server, and whether it "
                    f"lets notifications through cannot be tested: {why}"
                )
            )
            upkeep.fail("deaf", f"behind a pooler, {text}")
            return
        upkeep.condition.canary.shown = True  # as far as it can be
        self._heard()

    def missed(self) -> None:
        """A round trip is answered that was sent long after a canary was committed, which has not
        arrived: the session is deaf."""
        upkeep, name = self._upkeep, self._upkeep.access.name
        if self.behind_pooler:
            upkeep.refuse_start(
                PoolerError(
                    f"{name}: LISTEN succeeds, but nothing arrives: a pooler in "
                    "transaction or statement mode is in front of the server; connect to the "
                    "server itself, or to a pool in session mode"
                )
            )
        upkeep.fail("deaf", "it answers, but a canary did not arrive in time")
