"""Detects that an object is used in a forked child of the process it was made in."""

from __future__ import annotations

import os

from pgsignals.errors import ForkedError

_generation = 0


def _count() -> None:
    global _generation
    _generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count)


class ForkGuard:
    """Remembers the process in which it was made.

    By the process id, as a program that embeds Python, such as uWSGI, forks without running
    Python's hooks; and by a counter that the hooks keep, as an id can come back in a grandchild.
    """

    __slots__ = ("_generation", "_pid")

    def __init__(self) -> None:
        self._generation = _generation
        self._pid = os.getpid()

    @property
    def in_child(self) -> bool:
        """True in a forked child of the process in which this was made."""
        return self._generation != _generation or self._pid != os.getpid()

    @property
    def known_in_child(self) -> bool:
        """As :attr:`in_child`, but only by Python's hooks: cheap enough to ask for each
        notification, where a system call would be expensive."""
        return self._generation != _generation

    def check(self, what: str) -> None:
        """Raise :exc:`ForkedError` in a forked child; *what* names the object."""
        if self._generation != _generation or self._pid != os.getpid():
            raise ForkedError(
                f"{what} belongs to the parent process; make a new one in the forked child"
            )
