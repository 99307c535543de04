"""A reactor in the foreground, until an OS signal stops it."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from pgsignals._engine.engine import Engine
from pgsignals._engine.life import Life
from pgsignals._runtime.log import Log
from pgsignals._runtime.reentry import calls_out
from pgsignals.errors import ClosedError

logger = Log("pgsignals.reactor")

#: Put into the queue of OS signals when the life has ended.
ENDED = 0

#: The longest wait of one step in C, in seconds.
SLICE = 1.0


@calls_out
def run(
    engine: Engine,
    start: Callable[[], None],
    stop: Callable[[float | None], object],
    seconds: float | None,
) -> None:
    """Start, and return when it has ended.  Blocks.

    :param start: starts *engine*; a subclass may do more there.
    :param stop: stops it; called on a thread of its own, while *start* runs.
    :param seconds: for the handlers, after the first SIGINT or SIGTERM; None for no limit.
    :raises BaseException: what has ended the life, unless it was asked to stop.
    """
    arrived: queue.SimpleQueue[int] = queue.SimpleQueue()  # OS signals, or ENDED
    started = False

    def handle(number: int, _: FrameType | None) -> None:
        arrived.put(number)
        if not started:  # not here: this thread may hold any lock
            patience = seconds if arrived.qsize() == 1 else 0  # it may run already
            threading.Thread(target=stop, args=(patience,), daemon=True).start()

    before = _handle_signals(handle)
    try:
        life = _start(engine, start, arrived)
        if life is None:
            return
        started = True
        life.ending.then(lambda: arrived.put(ENDED))
        patience = seconds
        while number := _next(arrived):
            shown = "without limit" if patience is None else f"{patience:g} s"
            name = signal.Signals(number).name
            logger.info("%s: stopping; waiting %s for handlers", name, shown)
            life.ask_to_stop(None if patience is None else time.monotonic() + patience)
            patience = 0.0
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if life.error is not None:
        raise life.error


@calls_out
def _start(
    engine: Engine, start: Callable[[], None], arrived: queue.SimpleQueue[int]
) -> Life | None:
    """Start, or return None when an OS signal has stopped that."""
    try:
        start()
    except ClosedError:
        if arrived.empty():
            raise
        logger.info("%s: stopped while it started", signal.Signals(arrived.get()).name)
        return None
    return engine.life


def _handle_signals(handler: Callable[[int, FrameType | None], object]) -> dict[int, Any]:
    """Handle SIGINT and SIGTERM, and return what handled them before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}


@calls_out  # by waiting for OS signals
def _next(arrived: queue.SimpleQueue[int]) -> int:
    # An OS signal that comes just before get() waits in C has its handler run only after the
    # wait; so no wait is long.
    while True:
        try:
            return arrived.get(timeout=SLICE)
        except queue.Empty:
            pass
