"""Waiting for what must happen, never for an amount of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from pgsignals.manager import as_seconds, check_timeout

T = TypeVar("T")

#: Seconds until something that must happen counts as missing, where nothing else is said.
TIMEOUT: Final = 10.0

_PAUSE = 0.005  # seconds between two looks


def wait_until(
    condition: Callable[[], T], timeout: float = TIMEOUT, *, why: str = "it never happened"
) -> T:
    """Return the first true result of *condition*, asked again and again.  Blocks.

    :param timeout: seconds.
    :param why: begins the message of the failure.
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
    """When *timeout* seconds from now will be over, by ``time.monotonic()``.

    :raises TypeError: not a number; also None, as a test must end.
    :raises ValueError: negative, or NaN.
    """
    if timeout is None:
        raise TypeError("timeout must be a number of seconds, not None")
    return time.monotonic() + as_seconds(check_timeout(timeout))


def seconds_until(deadline: float) -> float:
    """What is left, at least 0."""
    return max(0.0, deadline - time.monotonic())
