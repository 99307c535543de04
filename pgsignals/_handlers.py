"""The types of handlers, and of the decorators that take them.

A handler is called as ``handler(database, *, notification)``, and so on.  It may have more
parameters, if they have defaults; what it calls its first one does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, overload

from pgsignals._decode import Dataclass, Decode, V
from pgsignals._types import Notification

if TYPE_CHECKING:
    from pgsignals.database import Database

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
V_co = TypeVar("V_co", covariant=True)
V_contra = TypeVar("V_contra", contravariant=True)


class Handler(Protocol):
    """Takes one notification."""

    def __call__(self, database: Database, /, *, notification: Notification) -> object: ...


class BatchHandler(Protocol):
    """Takes what is there at once: ``batch=True``."""

    def __call__(self, database: Database, /, *, notifications: list[Notification]) -> object: ...


# A TypeVar's bound cannot name another TypeVar, so nothing is "any subtype of a handler of V".
# These two say it: a function fits when it fits both signatures, the second one being its own.


class ValueHandler(Protocol[V_contra, P, R_co]):
    """Takes one notification and its decoded value, and has the signature P and R."""

    @overload
    def __call__(
        self, database: Database, /, *, notification: Notification, value: V_contra
    ) -> object: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class ValuesHandler(Protocol[V, P, R_co]):
    """Takes what is there at once and the decoded values, and has the signature P and R."""

    @overload
    def __call__(
        self,
        database: Database,
        /,
        *,
        notifications: list[Notification],
        values: list[V],
    ) -> object: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class ValueDecorator(Protocol[V_co]):
    """Takes handlers of a value, and returns them unchanged."""

    def __call__(self, handler: ValueHandler[V_co, P, R_co], /) -> Callable[P, R_co]: ...


class ValuesDecorator(Protocol[V]):
    """Takes handlers of a list of values, and returns them unchanged."""

    def __call__(self, handler: ValuesHandler[V, P, R_co], /) -> Callable[P, R_co]: ...


F = TypeVar("F", bound=Callable[..., Any])
D = TypeVar("D", bound=Dataclass)
H = TypeVar("H", bound=Handler)
B = TypeVar("B", bound=BatchHandler)


class OnChannel(Protocol):
    """The types of ``on_channel``."""

    @overload
    def __call__(
        self,
        *names: str,
        sender: Database | None = None,
        decode: None = None,
        batch: Literal[False] = False,
        weak: bool = False,
    ) -> Callable[[H], H]: ...
    @overload
    def __call__(
        self,
        *names: str,
        sender: Database | None = None,
        decode: None = None,
        batch: Literal[True],
        weak: bool = False,
    ) -> Callable[[B], B]: ...
    @overload
    def __call__(
        self,
        *names: str,
        sender: Database | None = None,
        decode: type[D],
        batch: Literal[False] = False,
        weak: bool = False,
    ) -> ValueDecorator[D]: ...
    @overload
    def __call__(
        self,
        *names: str,
        sender: Database | None = None,
        decode: type[D],
        batch: Literal[True],
        weak: bool = False,
    ) -> ValuesDecorator[D]: ...
    @overload
    def __call__(
        self,
        *names: str,
        sender: Database | None = None,
        decode: Decode[V],
        batch: Literal[False] = False,
        weak: bool = False,
    ) -> ValueDecorator[V]: ...
    @overload
    def __call__(
        self,
        *names: str,
        sender: Database | None = None,
        decode: Decode[V],
        batch: Literal[True],
        weak: bool = False,
    ) -> ValuesDecorator[V]: ...
    @overload
    def __call__(  # batch is known at run time only
        self,
        *names: str,
        sender: Database | None = None,
        decode: None = None,
        batch: bool,
        weak: bool = False,
    ) -> Callable[[F], F]: ...


def typed(function: Callable[..., Any]) -> OnChannel:
    """*function* unchanged, with the types of :class:`OnChannel`."""
    return function
