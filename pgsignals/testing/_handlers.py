"""Handlers in tests: isolate them, run them, wait for them."""

from __future__ import annotations

import contextlib
import queue
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from pgsignals._dispatch.checks import describe
from pgsignals._pure.values import Notification
from pgsignals.database import Database
from pgsignals.reactor import Reactor
from pgsignals.signals import default
from pgsignals.testing._waiting import TIMEOUT, deadline_in, seconds_until

_MARK = "pgsignals.mark"


@contextlib.contextmanager
def isolated_handlers() -> Iterator[None]:
    """Restore the module-level handlers after the block to what they were before it.

    Registrations in the block by :func:`pgsignals.on_channel`, :func:`pgsignals.on` and
    :func:`pgsignals.channel` are undone, and so are disconnections.  Import modules whose handlers
    should stay before the block.
    """
    with default.restored():
        yield


@contextlib.contextmanager
def running(reactor: Reactor, *, handlers_may_fail: bool = False) -> Iterator[Reactor]:
    """Run *reactor* in the block, and fail at its end if a handler failed.

    :param handlers_may_fail: ignore failures of handlers.
    :raises AssertionError: a handler raised, its decode rejected a payload, or one is still
        running :data:`TIMEOUT` seconds after the end of the block.
    """
    failures: list[tuple[str, BaseException]] = []

    def note(
        database: Database,
        *,
        notification: Notification | list[Notification] | None,
        handler: Callable[..., object],
        error: BaseException,
    ) -> None:
        first = notification[0] if isinstance(notification, list) else notification
        of = f"handler {describe(handler)} failed"
        failures.append((of if first is None else f"{of} on channel {first.channel!r}", error))

    with reactor.handler_failed.connected_to(note):
        reactor.start()
        try:
            yield reactor
        finally:
            drained = reactor.stop(TIMEOUT)
    if not drained:
        raise AssertionError(
            f"a handler was still running {TIMEOUT:g} s after the test; see the log"
        )
    if failures and not handlers_may_fail:
        what, error = failures[0]
        more = f", and {len(failures) - 1} more" if failures[1:] else ""
        raise AssertionError(f"{what}{more}") from error


class ReactorFactory(Protocol):
    """The fixture ``pgsignals_reactor``: a :func:`running` reactor made with *options*, by default
    on the tests' server, and stopped after the test."""

    def __call__(
        self, *databases: str | Database, handlers_may_fail: bool = False, **options: Any
    ) -> Reactor: ...


def settle(reactor: Reactor, timeout: float = TIMEOUT) -> None:
    """Wait until everything that was committed before this call has been handled.  Blocks.

    It sends a notification as a mark, which :attr:`Reactor.any_channel` and
    :meth:`Reactor.status` see, too.  Do not call it in a handler, which would wait for itself.

    :param timeout: seconds.
    :raises ClosedError: the reactor is not running.
    :raises AssertionError: the time ran out.
    """
    __tracebackhide__ = True
    life = reactor._engine.current_life("settle()")
    handled: queue.SimpleQueue[Database] = queue.SimpleQueue()
    deadline = deadline_in(timeout)
    token = secrets.token_hex(8)

    def seen(database: Database, notification: Notification) -> None:
        if notification.payload == token:
            # Other workers may still be busy with earlier notifications.
            life.when_handled(database, lambda: handled.put(database))

    with reactor.channel(_MARK).connected_to(seen):
        for database in reactor.databases:
            reactor.notify((_MARK, token), database=database)
        waiting = set(reactor.databases)
        while waiting:
            try:
                # Two for the same database receive each other's marks, too.
                waiting.discard(handled.get(timeout=seconds_until(deadline)))
            except queue.Empty:
                names = ", ".join(sorted(database.name for database in waiting))
                raise AssertionError(
                    f"notifications of {names} were not all handled within {timeout:g} s"
                ) from None
