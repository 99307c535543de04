"""Reactors inside Django.  Nothing here is specific to the app: copy it into yours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
from django.dispatch import Signal

from pgsignals import Database, Reactor

P = ParamSpec("P")
T = TypeVar("T")

#: A Django signal: we may have missed a notification.  Sent when the reactor listens, after every
#: gap, and at regular intervals.
missed = Signal()


def in_django(handler: Callable[P, T]) -> Callable[P, T]:
    """Let *handler* use the ORM on a thread that serves no requests.

    Django closes broken and old connections between requests.  A reactor's worker serves no
    requests, so without this a handler would keep running into a dead connection.
    """

    @functools.wraps(handler)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        close_old_connections()
        try:
            return handler(*args, **kwargs)
        finally:
            close_old_connections()

    return wrapper


def make_reactor(alias: str = DEFAULT_DB_ALIAS, *, sweep: float | None = 300.0) -> Reactor:
    """A reactor on a database from Django's settings, which sends :data:`missed`.

    :param sweep: seconds between two :data:`missed` that are sent in any case; None for none.
    """
    # Host, user, password and OPTIONS, as Django itself connects.
    reactor = Reactor(Database(**connections[alias].get_connection_params()), timeout=sweep)

    def look(*_: object, **__: object) -> None:
        missed.send_robust(sender=Reactor)  # logs what a receiver raises

    reactor.connected.connect(look, weak=False)
    reactor.gap.connect(look, weak=False)
    reactor.idle.connect(look, weak=False)
    return reactor
