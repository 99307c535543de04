"""What a flood on one channel costs the other channels, and the other databases.

::

    python -m benchmarks.fairness
    python -m benchmarks.fairness --workers 2 --backlog 20000 --json fairness.json

A reactor listens to five databases.  One transaction notifies the channel "flood" of the first,
whose handler takes a millisecond for each; meanwhile another process notifies the channel "tick"
of all five, ten times a second each, with the time in the payload.  For each number of workers:
how long a tick takes from before its ``NOTIFY`` to its handler, and how much of that is the
``NOTIFY`` itself, by how much the program's memory has grown at most, and whether the flood came
in order, and complete but for what gaps counted.

One worker keeps the order over all channels, by contract, so there ticks wait for the flood, and
have no limit; a smaller flood will do to show it.  Otherwise the exit status is 0 only if the
limits hold.  Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import sys
import threading
import time
from array import array
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.rig import BenchmarkError, say, wait_for
from pgsignals import Database, Gap, Notification, Reactor
from pgsignals.embedded import EmbeddedError, Postgres

DATABASES = ("postgres", "second", "third", "fourth", "fifth")

#: Of the 99th percentile of a tick's latency, in milliseconds.
LATENCY = 50.0

#: Of the growth of memory, in MB.
GROWTH = 64.0

#: With one worker: enough to see that ticks wait.
SMALL_FLOOD = 5_000

#: Ticks before the flood.
BEFORE = 10

#: Seconds for what must happen soon.
PATIENCE = 60.0

TICK = "SELECT pg_catalog.pg_notify('tick'::pg_catalog.text, %s::pg_catalog.text)"
FLOOD = (
    "SELECT pg_catalog.count(pg_catalog.pg_notify('flood'::pg_catalog.text, i::pg_catalog.text)) "
    "FROM pg_catalog.generate_series(1, %s::pg_catalog.int4) AS i"
)


# -- figures ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """In milliseconds."""

    count: int
    p50: float
    p99: float
    worst: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        ordered = sorted(1000 * one for one in seconds)
        last = len(ordered) - 1
        middle = statistics.median(ordered)
        return cls(len(ordered), middle, ordered[round(0.99 * last)], ordered[last])


@dataclass(frozen=True)
class Figures:
    """What was measured with one number of workers."""

    workers: int
    flood: int
    seconds: float
    """From the beginning of its transaction to the last call of its handler."""
    same_database: Latency
    other_databases: Latency
    statement: Latency
    """Of the ``NOTIFY`` of a tick itself, which says how busy machine and server are."""
    growth: float
    """Of memory, at most, in MB."""
    in_order: bool
    sent: int
    """The flood and all ticks."""
    handled: int
    dropped: int
    """As the reactor counts."""
    told: int
    """As its gaps say."""

    @property
    def checks(self) -> dict[str, tuple[float, float]]:
        """What was measured, and what it may be at most."""
        checks: dict[str, tuple[float, float]] = {
            "growth of memory in MB": (round(self.growth, 1), GROWTH),
            "out of order": (int(not self.in_order), 0),
            "neither handled nor dropped": (abs(self.sent - self.handled - self.dropped), 0),
            "dropped and not told": (abs(self.dropped - self.told), 0),
        }
        if self.workers > 1:
            checks |= {
                "p99 on the same database in ms": (round(self.same_database.p99, 1), LATENCY),
                "p99 on the others in ms": (round(self.other_databases.p99, 1), LATENCY),
            }
        return checks

    @property
    def passed(self) -> bool:
        return all(value <= limit for value, limit in self.checks.values())


# -- the process that listens ----------------------------------------------------------------------


def listen(
    dsns: list[str], workers: int, flood: int, options: argparse.Namespace, pipe: Connection
) -> None:
    """Start a reactor, say so, say when the flood has been handled, and tell the figures."""
    databases = [Database(dsn) for dsn in dsns]
    limits = {} if options.backlog is None else {"max_backlog": options.backlog}
    seen = array("l", [0]) * flood  # made now, as memory is measured
    ticks: dict[Database, list[tuple[float, float]]] = {database: [] for database in databases}
    calls, told, ended = 0, 0, 0.0
    reactor = Reactor(*databases, workers=workers, **limits)

    @reactor.on_channel("flood")
    def handle(db: Database, notification: Notification) -> None:
        nonlocal calls, ended
        time.sleep(options.handler / 1000)
        seen[calls] = int(notification.payload)
        calls += 1
        if seen[calls - 1] == flood:  # the newest one is never dropped
            ended = time.monotonic()
            pipe.send(None)

    @reactor.on_channel("tick")
    def tick(db: Database, notification: Notification) -> None:
        sent = float(notification.payload)
        ticks[db].append((sent, time.monotonic() - sent))

    def note(db: Database, gap: Gap) -> None:
        nonlocal told
        told += gap.dropped or 0

    def handled() -> int:
        return calls + sum(map(len, ticks.values()))

    def dropped() -> int:
        return sum(each.dropped for each in reactor.status().databases)

    reactor.gap.connect(note)
    with reactor:
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew
        before = memory("VmRSS")
        pipe.send(None)
        began, sent, statements = pipe.recv()
        with contextlib.suppress(BenchmarkError):  # what is missing is among the figures
            wait_for(lambda: handled() + dropped() == sent, PATIENCE, "the rest")
    during = [
        [latency for sent_at, latency in each if began <= sent_at < ended]
        for each in ticks.values()
    ]
    pipe.send(
        Figures(
            workers=workers,
            flood=flood,
            seconds=ended - began,
            same_database=Latency.of(during[0]),
            other_databases=Latency.of([one for each in during[1:] for one in each]),
            statement=Latency.of(statements),
            growth=memory("VmHWM") - before,
            in_order=all(one < later for one, later in itertools.pairwise(seen[:calls])),
            sent=sent,
            handled=handled(),
            dropped=dropped(),
            told=told,
        )
    )


def memory(name: str) -> float:
    """What the system says of this process, in MB."""
    status = Path("/proc/self/status").read_text("ascii")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith(name))
    return int(kilobytes) * 1024 / 1e6


# -- the program that notifies ---------------------------------------------------------------------


def measure(dsns: list[str], workers: int, options: argparse.Namespace) -> Figures:
    """Tick in every database, flood the first, and ask the listener what came of it."""
    count = options.flood if workers > 1 else min(options.flood, SMALL_FLOOD)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    arguments = (dsns, workers, count, options, theirs)
    listener = context.Process(target=listen, args=arguments, daemon=True)
    listener.start()
    receive(pipe, PATIENCE, "the start")
    flooder = threading.Thread(target=flood, args=(dsns[0], count))
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(dsn, autocommit=True)) for dsn in dsns]
        due, began = time.monotonic(), 0.0
        statements: list[float] = []
        deadline = due + count * (options.handler + 5) / 1000 + PATIENCE
        while not pipe.poll() and due < deadline:
            for connection in connections:
                sent = time.monotonic()  # the same clock in all processes of a machine
                connection.execute(TICK, [repr(sent)])
                statements.append(time.monotonic() - sent)
            if len(statements) == BEFORE * len(connections):
                began = time.monotonic()
                flooder.start()
            due += 1 / options.rate
            time.sleep(max(0.0, due - time.monotonic()))
    flooder.join()
    receive(pipe, 0.0, "the end of the flood")
    pipe.send((began, len(statements) + count, statements))
    figures: Figures = receive(pipe, 2 * PATIENCE, "the account")
    listener.join(PATIENCE)
    return figures


def receive(pipe: Connection, seconds: float, what: str) -> Any:
    if not pipe.poll(seconds):
        raise BenchmarkError(f"{what} did not come in time")
    return pipe.recv()


def flood(dsn: str, count: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(FLOOD, [count])


# -- the program -----------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fairness", description="A flood and the others.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--flood", type=int, default=100_000, help="notifications")
    parser.add_argument("--handler", type=float, default=1.0, help="milliseconds of the flood's")
    parser.add_argument("--rate", type=float, default=10.0, help="ticks per second and database")
    parser.add_argument("--backlog", type=int, default=None, help="another max_backlog")
    parser.add_argument("--json", type=Path, default=None, help="a file for all figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with Postgres(tcp=True) as server:
        say(
            f"PostgreSQL {'.'.join(map(str, server.version))}, Python {platform.python_version()}, "
            f"{os.cpu_count()} CPUs; latencies in milliseconds"
        )
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            for name in DATABASES[1:]:
                connection.execute(f"CREATE DATABASE {name}".encode())
        dsns = [server.dsn_for(name) for name in DATABASES]
        say(
            "\n| workers | flood | seconds | same database: p50 | p99 | worst "
            "| others: p50 | p99 | worst | NOTIFY: p50 | p99 | worst | memory | dropped |"
        )
        say("|---" * 14 + "|")
        measured = []
        for workers in options.workers:
            one = measure(dsns, workers, options)
            measured.append(one)
            latencies = " | ".join(
                f"{each.p50:.1f} | {each.p99:.1f} | {each.worst:.1f}"
                for each in (one.same_database, one.other_databases, one.statement)
            )
            say(
                f"| {workers} | {one.flood:,} | {one.seconds:.1f} | {latencies} "
                f"| +{one.growth:.1f} MB | {one.dropped:,} |"
            )
        version = server.version
    say("")
    for one in measured:
        for name, (value, limit) in one.checks.items():
            if value > limit:
                say(f"FAILED with {one.workers} workers: {name} is {value}, at most {limit:g}")
    passed = all(one.passed for one in measured)
    say("passed" if passed else "FAILED")
    if options.json is not None:
        figures = {
            "options": {**vars(options), "json": str(options.json)},
            "server": version,
            "passed": passed,
            "measured": [{**asdict(one), "checks": one.checks} for one in measured],
        }
        options.json.write_text(json.dumps(figures, indent=1), "utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, EmbeddedError) as error:
        sys.exit(str(error))
