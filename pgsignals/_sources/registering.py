"""Listening to what is wanted: LISTEN and UNLISTEN, one statement at a time, and again where other
code has removed our registrations."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals._pure.statements import LISTENING, digest_of, listen_sql
from pgsignals._pure.states import LISTENS_AT_ONCE, State
from pgsignals._runtime.log import Log
from pgsignals._sources.asking import Asker
from pgsignals._sources.setup import heard
from pgsignals._sources.upkeep import Upkeep
from pgsignals._wire.results import Result
from pgsignals._wire.session import Session

logger = Log("pgsignals.reactor")


class Registrar:
    """The reader's thread runs its methods.

    :param holds: called when a session that is not announced yet listens to all that is wanted.
    :param unlistened: called with what may have been missed since when, on which channels (None for
        all), as registrations were removed.
    :param settled: called when :attr:`settled` may have changed.
    """

    def __init__(
        self,
        upkeep: Upkeep,
        asker: Asker,
        *,
        holds: Callable[[], None],
        unlistened: Callable[[datetime, frozenset[str] | None], None],
        settled: Callable[[], None],
    ) -> None:
        self._upkeep = upkeep
        self._asker = asker
        self._condition = upkeep.condition
        self._holds = holds
        self._unlistened = unlistened
        self._tell_settled = settled
        self.settled = 0  # the request up to which LISTENs are acknowledged; any thread reads it
        self._request = 0  # the latest one

    def want(self, channels: Collection[str], request: int) -> None:
        """Listen to *channels*, and besides only to what the session's owner did.

        :param request: what :attr:`settled` becomes once the server has acknowledged them.
        """
        self._condition.registrations.wanted = frozenset(channels)
        self._request = request
        self.reconcile()

    def reconcile(self) -> None:
        """Listen to what is wanted, and to nothing else: one statement at a time."""
        condition = self._condition
        if condition.state not in (State.SYNCING, State.LISTENING) or self._upkeep.closed:
            self.settle()
            return
        if condition.exchange.pending:
            return  # its answer comes back here
        listen, unlisten = self._next()
        if listen or unlisten:

            def listened(_: list[Result]) -> None:
                condition.listened(listen, unlisten)
                self.reconcile()

            self._asker.submit(listen_sql(listen, unlisten), listened)
        elif condition.state is State.SYNCING:
            self._holds()
        else:
            self.settle()

    def _next(self) -> tuple[list[str], list[str]]:
        """What the next statement must LISTEN and UNLISTEN, of what it can name."""
        registrations, session = self._condition.registrations, self._upkeep.session
        while True:
            listen, unlisten = registrations.next()
            lost = {*listen, *unlisten}.difference(speakable(session, [*listen, *unlisten]))
            if not lost:
                return listen, unlisten
            registrations.unspeakable |= lost  # as far as they are active, they stay so
            if not lost.isdisjoint(listen):
                self._upkeep.warn(
                    "channels that client_encoding cannot hold are not listened to: "
                    f"{sorted(lost.intersection(listen))}; "
                    "SET client_encoding TO 'UTF8' on the wrapped connection"
                )

    def give_up(self) -> list[str]:
        """What must be UNLISTENed when the session goes back to its owner."""
        return speakable(self._upkeep.session, self._condition.registrations.ours)

    def settle(self) -> None:
        """Everything that has been requested so far is acknowledged, or cannot be now."""
        if not self._condition.exchange.pending or self._upkeep.closed:
            self.settled = self._request
            self._tell_settled()

    # -- what a probe finds ----------------------------------------------------------------------

    def check(self, digest: str) -> None:
        """A round trip says what the session listens to.

        :param digest: see :data:`pgsignals._pure.statements.DIGEST`; ``""`` where it is not known.
        """
        if digest and digest != digest_of(self._condition.registrations.all):
            self._asker.submit(LISTENING, self._restore, refused=lambda _: self._restore([]))
        else:
            self._condition.proof.answered()
            self.reconcile()

    def _restore(self, results: list[Result]) -> None:
        """Other code has changed what our session listens to."""
        condition, registrations = self._condition, self._condition.registrations
        missing = registrations.compare(heard(self._upkeep.session, results))
        if not missing:
            condition.proof.answered()
            self.reconcile()
            return
        since = condition.proof.since
        logger.warning(
            "%s: %d LISTEN registrations were removed on our session; making them again",
            self._upkeep.access.name,
            len(missing),
        )
        again = speakable(self._upkeep.session, sorted(missing & registrations.target))
        few = len(missing) <= LISTENS_AT_ONCE
        concerned = frozenset(missing - {PROBE_CHANNEL}) if few else None

        def restored(_: list[Result]) -> None:
            registrations.acknowledged(again)
            if PROBE_CHANNEL in again:  # a canary under way was lost with them
                condition.canary.lost()
            if concerned is None or concerned:
                self._unlistened(since, concerned)
            self.reconcile()

        if again:
            self._asker.submit(listen_sql(again), restored)
        else:
            restored([])


def speakable(session: Session | None, channels: list[str]) -> list[str]:
    """Those of *channels* that a statement can name; an owner may have set the encoding."""
    if session is None or session.texts.can_say("".join(channels)):
        return channels
    return [channel for channel in channels if session.texts.can_say(channel)]
