"""Listens to the channel "elsewhere" of the server that the argument leads to, until killed."""

from __future__ import annotations

import sys
import threading

from pgsignals import Reactor

with Reactor(sys.argv[1], channels=["elsewhere"]):
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    threading.Event().wait()
