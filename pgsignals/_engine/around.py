"""What handlers are called through: the stack behind ``Reactor.wrap_handlers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from pgsignals._runtime.reentry import calls_out

Around: TypeAlias = Callable[..., object]


def nested(arounds: tuple[Around, ...]) -> Around | None:
    """All of *arounds* as one, the first outermost; None for none, which is the fastest."""
    if len(arounds) < 2:
        return arounds[0] if arounds else None
    outer, inner = arounds[0], nested(arounds[1:])

    @calls_out
    def around(handler: Around, database: object, **given: object) -> object:
        return outer(handler if inner is None else _Within(inner, handler), database, **given)

    return around


class _Within:
    """A handler that is called by the next *around*, and has the handler's name."""

    def __init__(self, around: Around, handler: Around) -> None:
        self.__module__ = getattr(handler, "__module__", "")
        self.__qualname__ = getattr(handler, "__qualname__", type(handler).__qualname__)
        self._around = around
        self._handler = handler

    @calls_out
    def __call__(self, database: object, **given: object) -> object:
        return self._around(self._handler, database, **given)
