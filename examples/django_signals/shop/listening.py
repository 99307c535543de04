"""Reactors inside Django.  Nothing here knows the app: copy it into yours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
from django.dispatch import Signal

from pgsignals import Database, Reactor

P = ParamSpec("P")
T = TypeVar("T")

#: A signal of Django's: something may have happened that was not notified to us.  Sent when the
#: reactor listens, after every gap, and every now and then.
missed = Signal()


def in_django(handler: Callable[P, T]) -> Callable[P, T]:
    """Let *handler* use the ORM on a thread that serves no requests.

    Django closes connections that are broken or too old between requests.  A reactor's worker
    has none, so without this a handler would meet a dead connection again and again.
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
    """A reactor on a database of Django's settings, which is told to :data:`missed`.

    :param sweep: seconds after which :data:`missed` is sent whatever happened; None for never.
    """
    # Host, user, password and OPTIONS, as Django itself connects.
    reactor = Reactor(Database(**connections[alias].get_connection_params()), timeout=sweep)

    def look(*_: object, **__: object) -> None:
        missed.send_robust(sender=Reactor)  # logs what a receiver raises

    reactor.connected.connect(look, weak=False)
    reactor.gap.connect(look, weak=False)
    reactor.idle.connect(look, weak=False)
    return reactor
