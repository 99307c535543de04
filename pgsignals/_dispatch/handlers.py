"""What a handler is: its types, those of the decorators that take it, and what is refused.

A handler is called as ``handler(database, *, notification)``, and so on.  It may have more
parameters if they have defaults; the name of its first one does not matter.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Coroutine
from inspect import Parameter
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


# What is refused


def describe(handler: object) -> str:
    """A handler's name, for a log."""
    name = getattr(handler, "__qualname__", None) or type(handler).__qualname__
    module = getattr(handler, "__module__", None)
    return f"{module}.{name}" if module else str(name)


def check_signature(handler: Any, keywords: tuple[str, ...], sender: str = "db") -> None:
    """Refuse what cannot be called as ``handler(sender, **keywords)``.

    Anything without a signature, such as some callables written in C, passes.

    :raises TypeError: shows what a handler looks like, and which parameters are wrong.
    """
    if not callable(handler):
        raise TypeError(f"a handler must be callable, not {type(handler).__name__}")
    called = handler.__func__ if isinstance(handler, staticmethod) else handler
    try:
        # The wrapper's own: it may pass on more than it is given, or less.
        signature = inspect.signature(called, follow_wrapped=False)
    except Exception:  # noqa: BLE001 - a signature may be an attribute of the user's
        return
    try:
        signature.bind(None, **dict.fromkeys(keywords))
    except TypeError:
        pass
    else:
        return
    parameters = list(signature.parameters.values())
    name = getattr(handler, "__name__", "")
    name = name if name.isidentifier() else "handler"
    needed = _needed(parameters, keywords)
    if parameters and parameters[0].name == "self" and len(needed) == 1:
        raise TypeError(
            f"{describe(handler)} is registered before there is an instance: its parameter self "
            f"would be the {sender}; register the method of an instance, such as self.{name} in "
            "__init__"
        )
    shape = ", ".join((sender, *(("*", *keywords) if keywords else ())))
    problems = ", and ".join(_problems(parameters, keywords, sender, needed))
    raise TypeError(
        f"{describe(handler)} cannot be called as a handler: {problems}; "
        f"a handler looks like this: def {name}({shape}): ..."
    )


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIABLE = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _needed(parameters: list[Parameter], keywords: tuple[str, ...]) -> list[str]:
    """The parameters that nothing is given for; the first one is given the sender."""
    first = 1 if parameters and parameters[0].kind in _POSITIONAL else 0
    return [
        one.name
        for one in parameters[first:]
        if one.default is Parameter.empty
        and one.kind not in _VARIABLE
        and (one.name not in keywords or one.kind is Parameter.POSITIONAL_ONLY)
    ]


def _problems(
    parameters: list[Parameter], keywords: tuple[str, ...], sender: str, needed: list[str]
) -> list[str]:
    """Why a function with *parameters* cannot be called as a handler."""
    problems = []
    first = parameters[0] if parameters and parameters[0].kind in _POSITIONAL else None
    kinds = {one.kind for one in parameters}
    if first is None and Parameter.VAR_POSITIONAL not in kinds:
        problems.append(f"it takes no {sender}")
    if needed:
        problems.append(f"it needs {', '.join(needed)}, which is not given")
    named = {one.name for one in parameters if one.kind is not Parameter.POSITIONAL_ONLY}
    unknown = [name for name in keywords if name not in named]
    if unknown and Parameter.VAR_KEYWORD not in kinds:
        problems.append(f"it does not take {', '.join(unknown)}")
    if first is not None and first.name in keywords:
        problems.append(f"its first parameter, {first.name}, would be the {sender}")
    return problems


def refuse_coroutine_function(handler: Any) -> None:
    """Refuse what :func:`inspect.iscoroutinefunction` sees.

    :raises TypeError: names the handler, and AsyncReactor.
    """
    if inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"{describe(handler)} is a coroutine function, and a Reactor calls its handlers on "
            f"threads; {_WAYS_OUT}"
        )


def refuse_result(result: object) -> None:
    """Refuse what a handler has returned if the work in it has yet to run; it is closed or
    cancelled.

    :raises TypeError: it is an awaitable or a generator.
    """
    if result is None:
        return
    kind = type(result).__name__
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        with contextlib.suppress(BaseException):
            _close(result)
        raise TypeError(
            f"the call returned a {kind.replace('_', ' ')}, none of which has run; "
            "a handler must not yield"
        )
    if inspect.isawaitable(result):
        with contextlib.suppress(BaseException):
            _close(result)
        why = ": a coroutine function cannot be a handler" if kind == "coroutine" else ""
        raise TypeError(
            f"the call returned a {kind}, which a Reactor does not await{why}; {_WAYS_OUT}"
        )


_WAYS_OUT = "use AsyncReactor, or hand over to the event loop with asyncio.run_coroutine_threadsafe"


def _close(result: Any) -> None:
    if inspect.isasyncgen(result):
        result.aclose().send(None)  # it has not begun, so that nothing is awaited
    elif inspect.isgenerator(result) or isinstance(result, Coroutine):
        result.close()
    elif (cancel := getattr(result, "cancel", None)) is not None:  # a future, of another thread
        loop = getattr(result, "get_loop", None)
        _ = cancel() if loop is None else loop().call_soon_threadsafe(cancel)
