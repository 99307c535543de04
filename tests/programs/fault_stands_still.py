"""Listens with short probes to the server that the argument leads to, tells its backend and what
becomes of the session, and ends with its standard input."""

from __future__ import annotations

import sys

from pgsignals import ConnectionLostError, Database, Reactor


def tell(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def lost(_: Database, reason: str, error: ConnectionLostError) -> None:
    tell(f"lost: {reason}")


reactor = Reactor(sys.argv[1], channels=["elsewhere"], probe_interval=0.2, probe_timeout=2.0)
reactor.lost.connect(lost)
reactor.any_channel.connect(lambda _, notification: tell(notification.payload), weak=False)
with reactor:
    tell(reactor.databases[0].backend_id)
    sys.stdin.read()
