"""A value that any thread may replace and read, without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Version(Generic[T]):
    following: _Version[T] | None = None

    def __init__(self, value: T) -> None:
        self.value = value


class Shared(Generic[T]):
    """A value that is never changed but replaced, by any thread, also in the middle of another's
    replacing it, without a lock."""

    def __init__(self, value: T) -> None:
        self._version = _Version(value)

    @property
    def value(self) -> T:
        """What it is now."""
        return self._newest().value

    def replace(self, compute: Callable[[T], T]) -> None:
        """Put what *compute* makes of the value in its place.

        It is called again if another replacement got in first.
        """
        while True:
            newest = self._newest()
            wanted = _Version(compute(newest.value))
            # A single atomic step: of several threads, one succeeds.
            if newest.__dict__.setdefault("following", wanted) is wanted:
                self._newest()  # so that the one before is forgotten
                return

    def _newest(self) -> _Version[T]:
        version = newest = self._version
        while newest.following is not None:
            newest = newest.following
        if newest is not version:
            self._version = newest
        return newest
