"""What is ready to run, on its way from those who make it ready to the crew that runs it.

A crew of threads waits in :meth:`HandOver.get`.  An event loop, which must not, is woken instead:
once, when something becomes ready after it has found nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue

from pgsignals._pure.order import Ready
from pgsignals._runtime.log import Log

logger = Log("pgsignals.reactor")


class HandOver:
    """See the module.  Guarded by the backlog's lock, except where it is said otherwise."""

    def __init__(self) -> None:
        self.on_ready: Callable[[], None] = lambda: None  # set before anything is put
        self.undone = 0  # what is ready or runs
        self._ending = False
        self._starved = False  # get_nowait() has found nothing; nothing has been ready since

        # Without the lock.  Not a Condition, which would take twice the time to wake a worker.
        self.queue: SimpleQueue[Ready | None] = SimpleQueue()  # None: never again
        self._wakes_due: list[None] = []  # calls of on_ready; who pops one makes it

    @property
    def exhausted(self) -> bool:
        """Whether there will never be anything again."""
        return self._ending and not self.undone

    def put(self, what: Ready) -> None:
        """It is ready, and undone until :meth:`one_is_done`."""
        self.undone += 1
        self._put(what)

    def one_is_done(self) -> None:
        """It has been run, or need not be."""
        self.undone -= 1
        if self._ending and not self.undone:
            self._put(None)

    def end(self) -> None:
        """No more will be put, except what follows from what is undone."""
        self._ending = True
        if self.exhausted:
            self._put(None)

    def _put(self, what: Ready | None) -> None:
        self.queue.put(what)
        if self._starved:
            self._starved = False
            self._wakes_due.append(None)

    def get(self) -> Ready | None:
        """What is ready, or None when there will never be anything again.  Blocks, without the
        lock."""
        if (what := self.queue.get()) is None:
            self.queue.put(None)  # for the next thread
        return what

    def get_nowait(self) -> Ready | None:
        """As :meth:`get`, and None also when there is nothing now."""
        try:
            what = self.queue.get_nowait()
        except Empty:
            what = None
        else:
            if what is None:
                self.queue.put(None)
        self._starved = what is None
        return what

    def wake(self) -> None:
        """Make the calls of ``on_ready`` that are due; without the lock, where something may have
        become ready: a loop that is woken may be closed, and must not leave anything half done."""
        if not self._wakes_due:
            return
        try:
            self._wakes_due.pop()
        except IndexError:  # another thread was faster
            return
        try:
            self.on_ready()
        except Exception:
            logger.critical("bug in pgsignals: the event loop could not be woken", exc_info=True)

    def clear(self) -> None:
        """Forget what is ready; what runs stays undone."""
        while self.get_nowait() is not None:
            self.one_is_done()
