"""Runs a reactor in the foreground, says what happens, and ends when it is told to.

Arguments: where it leads, the channel of a handler, and the handler's habit: "quick" or "stuck".
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time

from pgsignals import Database, Notification, Reactor


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def main() -> None:
    dsn, channel, habit = sys.argv[1:]
    reactor = Reactor(dsn)

    @reactor.on_channel(channel)
    def handler(_: Database, notification: Notification) -> None:
        say(begun=notification.payload)
        if habit == "stuck":
            threading.Event().wait()

    @reactor.stopped.connect
    def stopped(_: Reactor, error: BaseException | None) -> None:
        say(stopped=repr(error))

    def own(*_: object) -> None:
        say(own=True)

    signal.signal(signal.SIGTERM, own)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def watch() -> None:
        while signal.getsignal(signal.SIGTERM) is own or not reactor.running:
            time.sleep(0.001)
        say(runs=reactor.running)

    threading.Thread(target=watch, daemon=True).start()
    reactor.run(100.0)
    after = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    say(ended=True, restored=before == after, running=reactor.running)


if __name__ == "__main__":
    main()
