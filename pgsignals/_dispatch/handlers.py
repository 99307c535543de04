"""What a handler is: its types, and those of the decorators that take it.

A handler is called as ``handler(database, *, notification)``, and so on.  It may have more
parameters if they have defaults; the name of its first one does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from pgsignals._pure.decode import Dataclass, Decode, V
from pgsignals._pure.values import Notification
from pgsignals._sources.reports import Gap
from pgsignals.errors import ConnectionLostError

if TYPE_CHECKING:
    from pgsignals.database import Database
    from pgsignals.reactor import Reactor

#: The signals of a reactor, each with what its receivers are called with: the name of the sender,
#: and the keywords.
REACTOR_SIGNALS: dict[str, tuple[str, tuple[str, ...]]] = {
    "connected": ("db", ("resumed",)),
    "lost": ("db", ("reason", "error")),
    "gap": ("db", ("gap",)),
    "idle": ("reactor", ()),
    "handler_failed": ("db", ("notification", "handler", "error")),
    "stopped": ("reactor", ("error",)),
    "any_channel": ("db", ("notification",)),
}

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
V_co = TypeVar("V_co", covariant=True)
V_contra = TypeVar("V_contra", contravariant=True)


class Handler(Protocol):
    """Takes one notification."""

    def __call__(self, database: Database, /, *, notification: Notification) -> object: ...


class BatchHandler(Protocol):
    """Takes everything that is waiting at once: ``batch=True``."""

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
    """Takes a batch and its decoded values, and has the signature P and R."""

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


# Receivers of a reactor's signals


class ConnectedHandler(Protocol):
    """Takes the signal ``connected``."""

    def __call__(self, database: Database, /, *, resumed: bool) -> object: ...


class LostHandler(Protocol):
    """Takes the signal ``lost``."""

    def __call__(
        self,
        database: Database,
        /,
        *,
        reason: Literal["ended", "silent", "deaf"],
        error: ConnectionLostError,
    ) -> object: ...


class GapHandler(Protocol):
    """Takes the signal ``gap``."""

    def __call__(self, database: Database, /, *, gap: Gap) -> object: ...


class IdleHandler(Protocol):
    """Takes the signal ``idle``."""

    def __call__(self, reactor: Reactor, /) -> object: ...


class HandlerFailedHandler(Protocol):
    """Takes the signal ``handler_failed``."""

    def __call__(
        self,
        database: Database,
        /,
        *,
        notification: Notification | list[Notification] | None,
        handler: Callable[..., Any],
        error: BaseException,
    ) -> object: ...


class StoppedHandler(Protocol):
    """Takes the signal ``stopped``."""

    def __call__(self, reactor: Reactor, /, *, error: BaseException | None) -> object: ...


Connected = TypeVar("Connected", bound=ConnectedHandler)
Lost = TypeVar("Lost", bound=LostHandler)
OfGap = TypeVar("OfGap", bound=GapHandler)
Idle = TypeVar("Idle", bound=IdleHandler)
HandlerFailed = TypeVar("HandlerFailed", bound=HandlerFailedHandler)
Stopped = TypeVar("Stopped", bound=StoppedHandler)

SignalName: TypeAlias = Literal[
    "connected", "lost", "gap", "idle", "handler_failed", "stopped", "any_channel"
]


class On(Protocol):
    """The types of ``on``."""

    @overload
    def __call__(self, name: Literal["connected"], /) -> Callable[[Connected], Connected]: ...
    @overload
    def __call__(self, name: Literal["lost"], /) -> Callable[[Lost], Lost]: ...
    @overload
    def __call__(self, name: Literal["gap"], /) -> Callable[[OfGap], OfGap]: ...
    @overload
    def __call__(self, name: Literal["idle"], /) -> Callable[[Idle], Idle]: ...
    @overload
    def __call__(
        self, name: Literal["handler_failed"], /
    ) -> Callable[[HandlerFailed], HandlerFailed]: ...
    @overload
    def __call__(self, name: Literal["stopped"], /) -> Callable[[Stopped], Stopped]: ...
    @overload
    def __call__(self, name: Literal["any_channel"], /) -> Callable[[H], H]: ...
    @overload
    def __call__(
        self, name: SignalName, another: SignalName, /, *more: SignalName
    ) -> Callable[[F], F]: ...


def typed_on(function: Callable[..., Any]) -> On:
    """*function* unchanged, with the types of :class:`On`."""
    return function
