"""Which side of a fork an object lives on."""

from __future__ import annotations

import os

from pgsignals.errors import ForkedError

_generation = 0


def _count() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)


class Birth:
    """Remembers the process in which it was made.  A counter is compared, not the pid: a pid
    can come back in a grandchild, and asking for it is a system call."""

    __slots__ = ("_generation",)

    def __init__(self) -> None:
        self._generation = _generation

    @property
    def elsewhere(self) -> bool:
        """True in a forked child of the process in which this was made."""
        return self._generation != _generation

    def check(self, what: str) -> None:
        """Raise :exc:`ForkedError` in a forked child; *what* names the object."""
        if self._generation != _generation:
            raise ForkedError(
                f"{what} belongs to the parent process; make a new one in the forked child"
            )
