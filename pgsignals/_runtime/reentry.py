"""Whether a call comes from the middle of our own code, where waiting for us could deadlock.

The garbage collector runs finalizers (``__del__``, ``weakref.finalize``, weak callbacks) in any
thread at nearly any point, and OS signal handlers run in the main thread, at any point, too.
Either may run in a thread that holds one of our locks, or in the reader itself, and then call us.
The call must not wait for another thread of ours, which may need that lock.  Recording each lock
taken would slow down every notification; the stack holds the same information, and costs nothing
until a call is about to wait.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = __name__.partition(".")[0]

#: Parts of the package that use it as any program does.
_USERS = {"cli", "demo", "embedded", "testing", "telemetry", "__main__"}

#: What a call may pass through before it asks; and the standard library's ``with``.
_ENTRANCES = {
    f"{_PACKAGE}.{name}"
    for name in (
        "_dispatch.ordered",
        "_engine.ending",
        "_engine.engine",
        "_engine.life",
        "database",
        "reactor",
        "signals",
    )
}
_ENTRANCES.add("contextlib")

#: Other modules whose locks our threads wait for.
_SHARED = {"logging", "psycopg"}

#: What holds the lock of :mod:`threading` that a thread needs to start, or is waited for by a
#: thread that starts another.
_STARTING = {"start", "enumerate", "_delete", "_bootstrap_inner"}

_calling_out: set[CodeType] = set()


def calls_out(function: F) -> F:
    """Mark a function of ours that calls users' code on purpose, and holds no lock meanwhile."""
    _calling_out.add(function.__code__)
    return function


def reentered() -> bool:
    """Whether the calling function was called from the middle of our own code, or of what our
    threads need: by a finalizer, an OS signal handler, or a logging handler."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _ENTRANCES:
        frame = frame.f_back
    within = ""
    while frame is not None:
        top, _, rest = str(frame.f_globals.get("__name__")).partition(".")
        name = frame.f_code.co_name
        if top == _PACKAGE and rest and rest.partition(".")[0] not in _USERS:
            return frame.f_code not in _calling_out
        if top in _SHARED:
            return True
        if top == "threading":
            if within == "run":  # the thread's own work
                return False
            if name in _STARTING:
                return True
        within, frame = name, frame.f_back
    return False
