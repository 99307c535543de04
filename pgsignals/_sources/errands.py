"""Threads beside the reader: they run what may block, and some of them never return.

A user's ``connect=``, a resolver or libpq can hang.  Each kind of errand therefore has a limit for
each database, over all lives of reactors: where two hang, a third would only hang, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

#: Threads of one kind that may hang for one database: two, as the first may be the only one that
#: hangs.
HANGING = 2

#: Threads of one kind that may be out for one database, whether they hang or not: lives that are
#: started and stopped again and again leave theirs behind.
MOST_OUT = 16

Out: TypeAlias = dict[str, dict[object, float]]
"""The threads that are out, by kind, with when each began."""


Spawn: TypeAlias = Callable[[str, Callable[[], None], Callable[[Exception], None]], None]


class Errands:
    """The threads of one link.  Its methods are called by the reader.

    :param out: those of the database, which every life shares.
    :param spawn: runs a kind of errand on a thread of its own, or calls the reader with the error.
    :param limit: seconds after which a thread counts as hanging.
    :param warn: called once with the text when too many hang.
    :param returned: called by a thread that returns.
    """

    def __init__(
        self,
        out: Out,
        spawn: Spawn,
        limit: float,
        warn: Callable[[str], None],
        returned: Callable[[], None],
    ) -> None:
        self._out = out  # any thread, each in one step of C
        self._spawn = spawn
        self._limit = limit
        self._warn = warn
        self._returned = returned
        self._warned: set[str] = set()

    def run(
        self, what: str, errand: Callable[[], None], failed: Callable[[Exception], None]
    ) -> None:
        """Run *errand* on a thread of its own.

        :param what: its kind, which is also in the name of the thread.
        :param failed: called by the reader if no thread can be started.
        """
        self._warned.discard(what)
        out, this = self._out.setdefault(what, {}), object()
        out[this] = time.monotonic()

        def run() -> None:
            try:
                errand()
            finally:
                out.pop(this, None)
                self._returned()

        def refused(error: Exception) -> None:
            out.pop(this, None)
            failed(error)

        self._spawn(what, run, refused)

    def is_out(self, what: str) -> bool:
        """Whether a thread of this kind is out."""
        return bool(self._out.get(what))

    def hang(self, what: str, now: float) -> bool:
        """Whether another thread of this kind would only hang, too; warns once."""
        begun = list(self._out.get(what, {}).values())
        late = sum(now - at >= self._limit for at in begun)
        if late < HANGING and len(begun) < MOST_OUT:
            return False
        if what not in self._warned:
            self._warned.add(what)
            self._warn(
                f"{HANGING} threads hang in connect= or in libpq ({what}); "
                "no more are started until one of them returns"
            )
        return True
