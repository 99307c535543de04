"""What it costs to hand a notification over to another thread, and what leader and followers save.

::

    python -m benchmarks.handover              # some two minutes

One idle connection, one notification at a time, and the time from just before ``NOTIFY`` to the
handler, in microseconds, with nothing but libpq and threads:

- *bare*: the thread that reads calls the handler;
- *hand-over*: the thread that reads puts it into a queue, another one calls the handler, as a
  reactor does;
- *leader*: the thread that has read lets the next one read, and calls the handler itself.

Each is a process of its own, the rounds are interleaved, and a ratio is the median of the rounds'.
Linux only.
"""

from __future__ import annotations

import argparse
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import psycopg

from benchmarks.rig import say
from pgsignals.embedded import Postgres

WAYS = ("bare", "hand-over", "leader")

#: Seconds between two notifications: long enough for every thread to sleep again.
PAUSE = 0.004


class Listener:
    """Reads one connection, and notes how old each notification is when it is handled."""

    def __init__(self, dsn: str, count: int) -> None:
        self.ages: list[float] = []
        self.done = threading.Event()
        self._count = count
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._connection.execute("LISTEN handover")
        self._poll = select.epoll()
        self._poll.register(self._connection.pgconn.socket, select.EPOLLIN)

    def read(self) -> list[bytes]:
        """Wait for something, and return the payloads."""
        pgconn = self._connection.pgconn
        self._poll.poll()
        pgconn.consume_input()
        payloads = []
        while (notify := pgconn.notifies()) is not None:
            payloads.append(notify.extra)
        return payloads

    def handle(self, payload: bytes) -> None:
        """Note the age of one."""
        self.ages.append(time.perf_counter() - float(payload))
        if len(self.ages) >= self._count:
            self.done.set()


def loops(listener: Listener, way: str) -> list[Callable[[], None]]:
    """What each thread runs."""
    queue: SimpleQueue[bytes] = SimpleQueue()
    turns: SimpleQueue[None] = SimpleQueue()
    turns.put(None)

    def bare() -> None:
        while True:
            for payload in listener.read():
                listener.handle(payload)

    def reader() -> None:
        while True:
            for payload in listener.read():
                queue.put(payload)

    def worker() -> None:
        while True:
            listener.handle(queue.get())

    def member() -> None:
        while True:
            turns.get()
            payloads = listener.read()
            turns.put(None)
            for payload in payloads:
                listener.handle(payload)

    return {"bare": [bare], "hand-over": [reader, worker], "leader": [member, member]}[way]


def listen(way: str, dsn: str, count: int) -> None:
    """Print the ages' median and 99th percentile."""
    listener = Listener(dsn, count)
    for loop in loops(listener, way):
        threading.Thread(target=loop, daemon=True).start()
    notifier = threading.Thread(target=notify, args=(dsn, listener.done), daemon=True)
    notifier.start()
    listener.done.wait()
    notifier.join()
    ages = sorted(listener.ages)
    say(f"{1e6 * statistics.median(ages)} {1e6 * ages[int(0.99 * len(ages))]}")


def notify(dsn: str, done: threading.Event) -> None:
    """Notify the time, again and again, from a process of its own."""
    program = (
        "import psycopg, sys, time\n"
        "connection = psycopg.connect(sys.argv[1], autocommit=True)\n"
        "while True:\n"
        "    sql = 'SELECT pg_catalog.pg_notify(%s::pg_catalog.text, %s::pg_catalog.text)'\n"
        "    connection.execute(sql, ['handover', repr(time.perf_counter())])\n"
        f"    time.sleep({PAUSE})\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, dsn]) as process:
        done.wait()
        process.kill()


def main() -> None:
    """Run the rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=800, help="notifications of a round")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "DSN"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        way, dsn = asked.child
        listen(way, dsn, asked.count)
        return
    figures: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with Postgres(tcp=True) as server:
        for _ in range(asked.rounds):
            for way in WAYS:
                command = [sys.executable, "-m", "benchmarks.handover", "--count", str(asked.count)]
                command += ["--child", way, server.dsn]
                told = subprocess.run(command, capture_output=True, check=True, text=True).stdout
                p50, p99 = map(float, told.split())
                figures[way].append((p50, p99))
    say("| | p50 µs | p99 µs | p50 / bare |\n|---|---|---|---|")
    for way, rounds in figures.items():
        p50, p99 = (statistics.median(column) for column in zip(*rounds, strict=True))
        pairs = zip(rounds, figures["bare"], strict=True)
        ratio = statistics.median(ours[0] / bare[0] for ours, bare in pairs)
        say(f"| {way} | {p50:.0f} | {p99:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
