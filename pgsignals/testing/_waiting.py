"""Waiting for a condition, never for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from pgsignals.manager import as_seconds, check_timeout

T = TypeVar("T")

#: Default timeout, in seconds.
TIMEOUT: Final = 10.0

_PAUSE = 0.005  # seconds between two checks


def wait_until(
    condition: Callable[[], T], timeout: float = TIMEOUT, *, why: str = "it never happened"
) -> T:
    """Call *condition* until its result is true, and return that.  Blocks.

    :param timeout: seconds.
    :param why: the beginning of the failure message.
    :raises AssertionError: the time ran out.
    """
    __tracebackhide__ = True
    deadline = deadline_in(timeout)
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{why} (waited {timeout:g} s)")
        time.sleep(_PAUSE)
    return result


def deadline_in(timeout: float) -> float:
    """Return the ``time.monotonic()`` of *timeout* seconds from now.

    :raises TypeError: *timeout* is not a number; None is not allowed, as a test must end.
    :raises ValueError: it is negative, or NaN.
    """
    if timeout is None:
        raise TypeError("timeout must be a number of seconds, not None")
    return time.monotonic() + as_seconds(check_timeout(timeout))


def seconds_until(deadline: float) -> float:
    """Return the seconds left until *deadline*, at least 0."""
    return max(0.0, deadline - time.monotonic())
