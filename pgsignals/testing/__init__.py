"""Tools for testing programs that listen or notify.

:func:`capture` collects notifications, or proves that there were none; :func:`settle` waits for
handlers; :func:`kill_listener` and :class:`Proxy` inject faults.  Nothing here needs pytest; the
plugin adds its fixtures: see docs/testing.md.

Failure messages show channels, sizes and pids, never a payload.
"""

from __future__ import annotations

from pgsignals.testing._capture import Capture, CaptureFactory, capture
from pgsignals.testing._handlers import ReactorFactory, isolated_handlers, running, settle
from pgsignals.testing._proxy import DIRECTIONS, Direction, Proxy
from pgsignals.testing._sessions import kill_listener
from pgsignals.testing._waiting import TIMEOUT, wait_until

__all__ = [
    "DIRECTIONS",
    "TIMEOUT",
    "Capture",
    "CaptureFactory",
    "Direction",
    "Proxy",
    "ReactorFactory",
    "capture",
    "isolated_handlers",
    "kill_listener",
    "running",
    "settle",
    "wait_until",
]
