"""Ends in the way that the last argument names, with a reactor running.

Arguments: where it leads, a channel, what the reactor is doing, and the ending.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time

from pgsignals import Database, Error, Notification, Reactor


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def start(reactor: Reactor) -> None:
    with contextlib.suppress(Error):
        reactor.start()


def main() -> None:
    dsn, channel, doing, ending = sys.argv[1:]
    begun, reconnecting = threading.Event(), threading.Event()
    workers = 3 if doing == "busy" else 1
    reactor = Reactor(dsn, workers=workers, backoff=(0.01, 0.05))

    @reactor.on_channel(channel)
    def handler(database: Database, notification: Notification) -> None:
        begun.set()
        if doing == "stuck":
            threading.Event().wait()
        if doing == "spinning":
            while True:
                pass
        if doing == "in a query":
            database.execute("SELECT pg_sleep(1000)")
        if doing == "busy":
            reactor.notify((channel, str(time.monotonic())))
            database.execute("SELECT 1")

    @reactor.lost.connect
    def lost(*_: object, **__: object) -> None:
        reconnecting.set()

    reactor.start()
    say(backend=reactor.databases[0].backend_id)
    if doing == "reconnecting":
        assert reconnecting.wait(30)
    elif doing == "silent":
        sys.stdin.readline()  # until the network is gone
    elif doing != "idle":
        reactor.notify(channel)
        assert begun.wait(30)
    if doing == "half started":
        silent = socket.create_server(("127.0.0.1", 0))
        another = Reactor(f"{dsn} port={silent.getsockname()[1]}")
        threading.Thread(target=start, args=(another,), daemon=True).start()
        silent.accept()[0].detach()  # stays open: it has connected, and hears nothing
        silent.close()
    say(ending=ending)
    if ending == "exit":
        sys.exit(3)
    if ending == "exception":
        raise RuntimeError("on purpose")
    if ending == "os._exit":
        os._exit(4)


if __name__ == "__main__":
    main()
