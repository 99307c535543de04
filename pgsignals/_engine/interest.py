"""What each database is to listen to, and what handles what arrives there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from pgsignals._dispatch.checks import refuse_coroutine_function
from pgsignals._pure.names import ALL
from pgsignals.database import Database
from pgsignals.signals import Channels


class Interest:
    """Computed from the handlers of the module level, those of one reactor, and what ``listen()``
    has named.  Nothing here locks or blocks, so any thread may ask and change.

    :param namespaces: the handlers, in the order in which they are called.
    :param channels: are listened to from the start, handler or not.
    """

    def __init__(
        self,
        databases: tuple[Database, ...],
        namespaces: tuple[Channels, ...],
        channels: Iterable[str],
    ) -> None:
        self.databases = databases
        self._namespaces = namespaces
        # Any thread: each set changes in a single step of C, so no lock is needed; a finalizer
        # that interrupts a change could not take one.
        named = set(channels)
        self._named = {database: set(named) for database in databases}

    def wanted(self, database: Database) -> set[str]:
        """The channels that *database* is to listen to."""
        handled = (namespace.wanted_by(database) for namespace in self._namespaces)
        return self._named[database].copy().union(*handled)

    def listen(self, databases: Collection[Database], channels: Collection[str]) -> None:
        """Want *channels* whether they have handlers or not."""
        for database in databases:
            self._named[database].update(channels)

    def unlisten(self, databases: Collection[Database], channels: Collection[str]) -> None:
        """Undo :meth:`listen`; ``"*"`` among *channels* undoes all of it."""
        for database in databases:
            named = self._named[database]
            if ALL in channels:
                named.clear()
            else:
                named.difference_update(channels)

    # -- handlers --------------------------------------------------------------------------------

    def handlers_of(self, channel: str, database: Database) -> list[Callable[..., object]]:
        """What a notification of *database* on *channel* is handed to, in order; without the
        receivers of ``any_channel``."""
        calls = [
            call
            for namespace in self._namespaces
            for call in namespace.calls_for(channel, database)
        ]
        return [handler for call in calls if (handler := call.handler()) is not None]

    def refuse_coroutine_functions(self, reactor: object) -> None:
        """Refuse handlers that only an event loop can run.

        :param reactor: the sender of the signals that no database sends.
        :raises TypeError: naming the handler.
        """
        for _, found in self._handlers(reactor):
            for handler, registered in found:
                if registered:  # others fail when they are called
                    refuse_coroutine_function(handler)

    def is_idle(self, reactor: object) -> bool:
        """Whether there is nothing to listen to and no handler that could change it."""
        if any(self.wanted(database) for database in self.databases):
            return False
        return not {name for name, _ in self._handlers(reactor)} - {"any_channel"}

    def warn_of_foreign(self) -> None:
        """Warn of handlers whose sender no running reactor has."""
        for namespace in self._namespaces:
            namespace.warn_of_foreign(self.databases)

    def _handlers(self, reactor: object) -> list[tuple[str, list[tuple[Callable[..., Any], bool]]]]:
        senders = (*self.databases, reactor)
        return [
            found
            for namespace in self._namespaces
            for found in namespace.handlers_for(senders).items()
        ]
