"""Waiting for what must happen, never for an amount of time."""

from __future__ import annotations

import functools
import select
import sys
import threading
from collections.abc import Callable
from typing import Generic, ParamSpec, Protocol, TypeVar

import pytest

from pgsignals import testing

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds until something that must happen counts as missing.  Well below pytest's timeout.
PATIENCE = 20.0

#: A timeout that no test waits for, and a bound for "at once instead of after that timeout".
LONG = 30.0
AT_ONCE = 10.0

#: For tests that wait in the main thread: what hangs there fails, and the run goes on.
hangs_fail = pytest.mark.timeout(90, method="signal")


def wait_until(
    condition: Callable[[], T], timeout: float = PATIENCE, *, why: str = "it never happened"
) -> T:
    """The kit's, with our patience."""
    __tracebackhide__ = True
    return testing.wait_until(condition, timeout, why=why)


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def is_readable(source: HasFileno) -> bool:
    """Whether the socket has something to read, which stays there."""
    poll = select.poll()
    poll.register(source.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class Background(Generic[T]):
    """A function that runs in a thread of its own, and what becomes of it."""

    def __init__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> None:
        self._call = functools.partial(function, *args, **kwargs)
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="test-background", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._call())
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, timeout: float = AT_ONCE) -> T:
        """What the function returned, or raises what it raised."""
        self._thread.join(timeout)
        assert not self.running, f"the thread still runs after {timeout} s"
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._result[0]

    def until_it_waits(self) -> None:
        """Return when the thread waits for sockets."""
        wait_until(lambda: waits_for_sockets(self._thread), why="the thread never waited")


def waits_for_sockets(thread: threading.Thread) -> bool:
    """Whether *thread* is in a selector's ``select``, the last step before the system call."""
    frame = sys._current_frames().get(thread.ident or 0)
    return bool(
        frame
        and frame.f_code.co_name == "select"
        and frame.f_code.co_filename.endswith("selectors.py")
    )
