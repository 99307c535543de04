"""What is said on a fresh session before it may listen: who answers, which guards it has, and what
the server lets us probe."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pgsignals._pure.statements import IDENTIFY, LISTENING, guard
from pgsignals._sources.asking import Asker, is_standby
from pgsignals._sources.probing import CanaryKeeper, RoundTrips
from pgsignals._sources.upkeep import Upkeep
from pgsignals._wire.results import Result
from pgsignals._wire.session import Session
from pgsignals.errors import UnsupportedServerError

#: The oldest server that knows all of what a reactor sets on its session.
OLDEST_SERVER = 140000


class Setup:
    """Step by step, each when the one before is answered.  For the reader's thread.

    :param patient: whether the reader may stop reading for long.
    :param done: called when the session may listen.
    """

    def __init__(
        self,
        upkeep: Upkeep,
        asker: Asker,
        round_trips: RoundTrips,
        canaries: CanaryKeeper,
        *,
        patient: bool,
        done: Callable[[], None],
    ) -> None:
        self._upkeep = upkeep
        self._asker = asker
        self._round_trips = round_trips
        self._canaries = canaries
        self._patient = patient
        self._done = done
        self.lent = False  # it is its owner's, who had set it up in a way we do not know yet
        self._borrowed = False  # its owner gets a session back, be it another one

    def borrow(self, session: Session) -> None:
        """Begin with a session that belongs to its owner."""
        self.lent = self._borrowed = True
        self._upkeep.adopt(session)

    def begin(self) -> None:
        """Begin to set up the session that has been adopted."""
        self._canaries.begin()
        self._round_trips.begin()
        self._asker.submit(IDENTIFY, self._see_who, refused=self._go_on_blindly)

    def _see_who(self, results: list[Result]) -> None:
        upkeep, session = self._upkeep, self._upkeep.session
        pid, in_recovery = results[0].rows[0]
        if session is not None and int(pid) != session.backend_id:
            self._canaries.behind_pooler = True
            session.backend_id = int(pid)  # the pooler's number would mean nothing to users
        if in_recovery == "t":
            upkeep.refuse_start(is_standby(upkeep.access.name))
            upkeep.fail("ended", "the server is a standby")
        elif session is not None and 0 < session.pgconn.server_version < OLDEST_SERVER:
            self._refuse_old(session)
        else:
            self._note_owner()

    def _refuse_old(self, session: Session) -> None:
        version = session.connection.info.parameter_status("server_version")
        text = f"the server is PostgreSQL {version}, and 14 is the oldest that is supported"
        self._upkeep.refuse_start(UnsupportedServerError(f"{self._upkeep.access.name}: {text}"))
        self._upkeep.fail("ended", text)

    def _go_on_blindly(self, result: Result) -> None:
        what = "asking whether a pooler or a standby answers"
        self._round_trips.do_without(what, result)
        self._note_owner()

    def _note_owner(self) -> None:
        if self.lent:
            self._asker.submit(LISTENING, self._note_kept, refused=self._note_nothing)
        else:
            self._guard()

    def _note_kept(self, results: list[Result]) -> None:
        self._upkeep.condition.registrations.keep(heard(self._upkeep.session, results))
        self.lent = False
        self._guard()

    def _note_nothing(self, result: Result) -> None:
        self._round_trips.do_without("asking what the session listens to", result)
        self.lent = False
        self._guard()

    def _guard(self) -> None:
        if self._canaries.behind_pooler:  # a SET would outlive us, on another client's session
            self._try_probe()
            return
        session = self._upkeep.session
        alone = not (self._borrowed or (session is not None and session.shared))
        settings = guard(patient=self._patient, alone=alone)

        def one_by_one(_: Result) -> None:
            self._guard_by(deque(settings.split("; ")))

        self._asker.submit(settings, lambda _: self._try_probe(), refused=one_by_one)

    def _guard_by(self, settings: deque[str]) -> None:
        """Set what the server knows of *settings*, one statement each."""
        if not settings:
            self._try_probe()
            return
        setting = settings.popleft()

        def refused(result: Result) -> None:
            self._round_trips.do_without(setting, result)
            self._guard_by(settings)

        self._asker.submit(setting, lambda _: self._guard_by(settings), refused=refused)

    def _try_probe(self) -> None:
        """See what the server lets us probe, before anything is promised."""
        if self._upkeep.condition.timing.probe_interval is None:
            self._done()
        else:
            self._round_trips.make(lambda _: self._done())


def heard(session: Session | None, results: list[Result]) -> set[str]:
    """The channels that the server names for *session*, in answer to :data:`LISTENING`."""
    rows = results[0].rows if results else []
    return {session.texts.channel(row[0]) for row in rows} if session is not None else set()
