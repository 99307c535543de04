"""What stands behind the public face of a reactor: its handlers, and the life that it leads now."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from pgsignals._dispatch.calls import Around
from pgsignals._dispatch.checks import refuse_coroutine_function
from pgsignals._engine.config import Config
from pgsignals._engine.interest import Interest
from pgsignals._engine.life import Life
from pgsignals._runtime.fork import ForkGuard
from pgsignals._runtime.log import Log
from pgsignals._runtime.program import check_threads, runs_event_loop
from pgsignals._runtime.reentry import reentered
from pgsignals._runtime.shared import Shared
from pgsignals._sources.reports import DatabaseStatus, Status
from pgsignals.database import Database
from pgsignals.errors import ClosedError, ConnectionStateError
from pgsignals.signals import Channels, default

logger = Log("pgsignals.reactor")


class Engine:
    """Leads one life after another, and is what the namespaces of handlers watch.

    Any thread may call it, also a finalizer in the middle of our own code: see
    :class:`~pgsignals._engine.life.Life`.
    """

    def __init__(self, config: Config) -> None:
        # Never replaced.
        self.fork_guard = ForkGuard()
        self.config = config
        self.channels = Channels(default)
        self.interest = Interest(config.databases, (default, self.channels), config.channels)

        self._arounds: Shared[tuple[Around, ...]] = Shared(())  # any thread

        self._lock = threading.Lock()  # guards the following; read without it
        self.life: Life | None = None

        for namespace in (default, self.channels):
            namespace.watch(self)

    # -- its life --------------------------------------------------------------------------------

    def start(self, reactor: object) -> None:
        """See :meth:`Reactor.start`.  Blocks.

        :param reactor: the sender of the signals that no database sends.
        """
        check_threads()
        if not self.served:
            self.interest.refuse_coroutine_functions(reactor)
        if reentered():
            raise ConnectionStateError(
                "start() called from a finalizer, OS signal handler or logging handler that "
                "interrupted pgsignals; start the reactor from another thread"
            )
        while (life := self._begin(reactor)) is not None:
            if life.ending.is_ours:
                if life.lifecycle.stopping:
                    raise ConnectionStateError("start(): this reactor is still stopping")
                return
            if life.has_begun():
                return
            if not life.ending.wait(None):
                raise ConnectionStateError(
                    "start(): this reactor is still stopping, and its stop waits for the caller"
                )
        self._warn_of_silence(reactor)

    def _begin(self, reactor: object) -> Life | None:
        """Begin a life and start it, or return the one that goes on."""
        fresh = None
        try:
            with self._lock:
                if (life := self.life) is not None and not life.lifecycle.closed:
                    return life
                fresh = self.life = Life(reactor, self.config, self.interest, self.channels)
            fresh.start()
        except BaseException:
            if fresh is not None:  # KeyboardInterrupt between the two
                fresh.abandon()
            raise
        return None

    def _warn_of_silence(self, reactor: object) -> None:
        """Warn of what can never be called."""
        self.interest.warn_of_foreign()
        if self.interest.is_idle(reactor):
            logger.warning(
                "%s has no channel to listen to, and no handler: nothing will arrive until "
                "on_channel(), channels= or listen() names one",
                repr(reactor),  # a log may keep what it is given
            )

    def stop(self, seconds: float | None) -> bool:
        """See :meth:`Reactor.stop`.  Blocks, except where that would wait for the caller."""
        life = self.life
        if life is None:
            return True
        if self.fork_guard.in_child:
            life.forget()
            return True
        return life.stop(None if seconds is None else time.monotonic() + seconds)

    def join(self, seconds: float | None) -> bool:
        """See :meth:`Reactor.join`.  Blocks, except where that would wait for the caller."""
        life = self.life
        return life is None or life.ending.wait(seconds)

    @property
    def running(self) -> bool:
        """See :attr:`Reactor.running`."""
        life = self.life
        return life is not None and life.lifecycle.running

    def current_life(self, what: str) -> Life:
        """The life that goes on.

        :raises ClosedError: saying that *what* needs one.
        """
        if (life := self.life) is None or life.lifecycle.closed:
            raise ClosedError(f"{what}: the reactor is not running; call start()")
        return life

    # -- what it does for a program --------------------------------------------------------------

    def notify(self, database: Database, items: list[tuple[str, str]]) -> int:
        """See :meth:`Reactor.notify`.  Blocks."""
        return self.current_life("notify()").notify(database, items)

    def listen(self, databases: Collection[Database], channels: Collection[str]) -> None:
        """See :meth:`Reactor.listen`.  Blocks until it is acknowledged."""
        self.interest.listen(databases, channels)
        self._acknowledge(databases)

    def unlisten(self, databases: Collection[Database], channels: Collection[str]) -> None:
        """See :meth:`Reactor.unlisten`.  Blocks until it is acknowledged."""
        self.interest.unlisten(databases, channels)
        self._acknowledge(databases)

    def _acknowledge(self, databases: Collection[Database]) -> None:
        if (life := self.life) is not None:
            life.acknowledge(databases)

    def wrap_handlers(self, around: Around | None) -> None:
        """See :meth:`Reactor.wrap_handlers`."""
        self._change_arounds(lambda arounds: () if around is None else (*arounds, around))

    def unwrap_handlers(self, around: Around) -> None:
        """See :meth:`Reactor.unwrap_handlers`."""
        self._change_arounds(lambda arounds: tuple(one for one in arounds if one is not around))

    def _change_arounds(self, change: Callable[[tuple[Around, ...]], tuple[Around, ...]]) -> None:
        self._arounds.replace(change)
        arounds = None
        while arounds is not self._arounds.value:  # else another thread changes them, too
            arounds = self._arounds.value
            self.channels.wrap(arounds)

    def status(self) -> Status:
        """See :meth:`Reactor.status`.  Does not block."""
        life, workers = self.life, self.config.workers
        if life is None:
            databases = tuple(
                DatabaseStatus(database.name, "stopped") for database in self.config.databases
            )
            return Status(running=False, backlog=0, workers=workers, databases=databases)
        return Status(
            running=life.lifecycle.running,
            backlog=life.backlog.waiting,
            workers=workers,
            databases=tuple(link.status() for link in life.reader.links),
        )

    # -- what the namespaces report (pgsignals.signals.Watcher) ----------------------------------

    @property
    def served(self) -> Collection[Database]:
        """Its databases while it runs."""
        life = self.life
        if life is None or life.lifecycle.closed or self.fork_guard.in_child:
            return ()
        return self.config.databases

    def check_handler(self, handler: Callable[..., Any], sender: Database | None) -> None:
        """Refuse a handler that could not be called."""
        if (served := self.served) and (sender is None or sender in served):
            refuse_coroutine_function(handler)

    def handlers_changed(self, _: str) -> None:
        """Have what is to be listened to computed anew, on the reader.  Neither blocks nor locks:
        it is called in any thread, at any point."""
        if (life := self.life) is not None and not self.fork_guard.in_child:
            life.reader.mailbox.request()

    def acknowledge_handlers(self) -> None:
        """Wait until that is listened to."""
        life = self.life
        if life is not None and not self.fork_guard.in_child and not runs_event_loop():
            life.wait_settled(life.reader.links)
