"""Refuses handlers that cannot be called as they should be, and results that have yet to run."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Coroutine
from inspect import Parameter
from typing import Any


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

    :raises TypeError: names the handler, and the way out.
    """
    if inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"{describe(handler)} is a coroutine function, and a Reactor calls its handlers on "
            f"threads; {_WAY_OUT}"
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
            f"the call returned a {kind}, which a Reactor does not await{why}; {_WAY_OUT}"
        )


_WAY_OUT = "hand work over to the event loop with asyncio.run_coroutine_threadsafe"


def _close(result: Any) -> None:
    if inspect.isasyncgen(result):
        result.aclose().send(None)  # it has not begun, so that nothing is awaited
    elif inspect.isgenerator(result) or isinstance(result, Coroutine):
        result.close()
    elif (cancel := getattr(result, "cancel", None)) is not None:  # a future, of another thread
        loop = getattr(result, "get_loop", None)
        _ = cancel() if loop is None else loop().call_soon_threadsafe(cancel)
