"""What canaries cost a server that many reactors listen to.

::

    python -m benchmarks.canaries
    python -m benchmarks.canaries --reactors 100 --interval 2 --seconds 30

Every reactor listens to one database of a server of its own.  Three ways, one after the other:
each reactor sends its own canary every interval ("own"), all of them share one, as the library
does it ("shared"), and nobody sends any once it has started ("none": the round trips alone, to
compare with).  A session beside them counts the canaries that happened, and ``/proc`` says what
CPU time the server's processes have used, those that have ended meanwhile included.  Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import psycopg

from benchmarks.rig import BenchmarkError, say
from pgsignals import Reactor
from pgsignals._pure import states
from pgsignals._pure.names import PROBE_CHANNEL
from pgsignals.embedded import EmbeddedError, Postgres

#: The ways, with what the table calls them.
WAYS = {
    "own": "each reactor its own",
    "shared": "one for all (the library)",
    "none": "none, round trips alone",
}

#: Seconds after the start, when control connections that nobody uses have been closed.
SETTLED = 40.0

#: Reactors that one process starts at a time.
STARTED_AT_ONCE = 8

#: Seconds for all reactors of a process to start.
PATIENCE = 120.0

TICKS = os.sysconf("SC_CLK_TCK")


# -- the other ways than the library's -------------------------------------------------------------


class OwnCanary(states.Canary):
    """Due every interval, whatever the link has seen of others'."""

    _own_at = 0.0

    @property
    def at(self) -> float:
        return self._own_at

    def ask(self, now: float) -> None:
        interval = self._timing.probe_interval or 0.0
        share = 1.0 if self._own_at else random.random()  # so that they do not march in step
        self._own_at = now + interval * share
        super().ask(now)


class NoCanary(states.Canary):
    """Never due but at the start of a session."""

    @property
    def at(self) -> float:
        return states.NEVER


CANARIES = {"own": OwnCanary, "shared": states.Canary, "none": NoCanary}


# -- a process with reactors -----------------------------------------------------------------------


def serve(
    dsn: str, way: str, count: int, interval: float, timeout: float, pipe: Connection
) -> None:
    """Start *count* reactors, say so, and stop them when told to."""
    logging.getLogger("pgsignals").setLevel(logging.ERROR)
    lost = 0

    def note(*_: object, **__: object) -> None:
        nonlocal lost
        lost += 1

    with mock.patch.object(states, "Canary", CANARIES[way]):
        reactors = [
            Reactor(dsn, channels=["work"], probe_interval=interval, probe_timeout=timeout)
            for _ in range(count)
        ]
        with ThreadPoolExecutor(STARTED_AT_ONCE) as starters:
            list(starters.map(Reactor.start, reactors))
    for reactor in reactors:
        reactor.lost.connect(note)
    pipe.send(None)
    pipe.recv()
    pipe.send(lost)
    with ThreadPoolExecutor(STARTED_AT_ONCE) as stoppers:
        list(stoppers.map(Reactor.stop, reactors))


@contextlib.contextmanager
def reactors(dsn: str, way: str, options: argparse.Namespace) -> Iterator[Fleet]:
    """Reactors in processes of their own, all listening in this block."""
    context = multiprocessing.get_context("spawn")
    fleet = Fleet([], [])
    try:
        for number in range(options.processes):
            share = len(range(number, options.reactors, options.processes))
            ours, theirs = context.Pipe()
            arguments = (dsn, way, share, options.interval, options.timeout, theirs)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            fleet.pids.append(process.pid or 0)
            fleet.pipes.append(ours)
        for pipe in fleet.pipes:
            if not pipe.poll(PATIENCE):
                raise BenchmarkError("the reactors did not start in time")
            pipe.recv()
        yield fleet
    finally:
        for child in multiprocessing.active_children():
            child.join(10)


@dataclass
class Fleet:
    """The processes of the reactors."""

    pids: list[int]
    pipes: list[Connection]

    def stop(self) -> int:
        """Have them stop, and tell how many sessions were lost."""
        for pipe in self.pipes:
            pipe.send(None)
        return sum(pipe.recv() for pipe in self.pipes)


# -- measuring -------------------------------------------------------------------------------------


def times(pid: int) -> tuple[int, float, float]:
    """The parent of a process, the CPU seconds it has used, and those of its ended children."""
    text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    fields = text.rpartition(")")[2].split()
    user, system, child_user, child_system = map(int, fields[11:15])
    used = (user + system) / TICKS
    if fields[17] == "1":  # of a single thread the scheduler tells nanoseconds, not ticks
        with contextlib.suppress(OSError):
            used = int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0]) / 1e9
    return int(fields[1]), used, (child_user + child_system) / TICKS


def cpu_of_server(postmaster: int) -> float:
    """The CPU seconds that the server has used: its processes of now, and those that ended."""
    _, own, ended = times(postmaster)
    total = own + ended
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent, used, _ = times(int(entry.name))
                total += used if parent == postmaster else 0.0
    return total


def cpu_of(pids: list[int]) -> float:
    """The CPU seconds that these processes have used."""
    return sum(times(pid)[1] for pid in pids)


class Counter:
    """Counts the canaries of a database, on a session of its own."""

    def __init__(self, dsn: str) -> None:
        self.count = 0
        self._stopping = threading.Event()
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._connection.execute(f'LISTEN "{PROBE_CHANNEL}"'.encode())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for _ in self._connection.notifies(timeout=0.5):
                self.count += 1

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._connection.close()


@dataclass(frozen=True)
class Figures:
    """What was measured of one way; CPU in seconds per second."""

    canaries: float
    server: float
    clients: float
    sessions: int
    lost: int


def measure(server: Postgres, way: str, options: argparse.Namespace) -> Figures:
    """Run the reactors in one way, and look at the server meanwhile."""
    with reactors(server.dsn, way, options) as fleet:
        time.sleep(options.settle)
        counter = Counter(server.dsn)
        sessions = sessions_of(server)
        before = cpu_of_server(server.pid), cpu_of(fleet.pids), counter.count, time.monotonic()
        time.sleep(options.seconds)
        after = cpu_of_server(server.pid), cpu_of(fleet.pids), counter.count, time.monotonic()
        seconds = after[3] - before[3]
        counter.stop()
        lost = fleet.stop()
    return Figures(
        canaries=(after[2] - before[2]) / seconds * options.interval,
        server=(after[0] - before[0]) / seconds,
        clients=(after[1] - before[1]) / seconds,
        sessions=sessions,
        lost=lost,
    )


def sessions_of(server: Postgres) -> int:
    """The sessions of the reactors."""
    sql = (
        b"SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity "
        b"WHERE application_name OPERATOR(pg_catalog.=) 'pgsignals'::pg_catalog.text"
    )
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute(sql).fetchone()
    return int(row[0]) if row else 0


# -- the program -----------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="canaries", description="What canaries cost a server.")
    parser.add_argument("--reactors", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2, help="that share the reactors")
    parser.add_argument("--interval", type=float, default=10.0, help="the probe_interval")
    parser.add_argument("--timeout", type=float, default=5.0, help="the probe_timeout")
    parser.add_argument("--seconds", type=float, default=30.0, help="measured of each way")
    parser.add_argument("--settle", type=float, default=SETTLED, help="seconds before that")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    settings = {"max_connections": 2 * options.reactors + 20}
    with Postgres(settings=settings) as server:
        say(
            f"PostgreSQL {'.'.join(map(str, server.version))}, Python {platform.python_version()}, "
            f"{os.cpu_count()} CPUs: {options.reactors} reactors in {options.processes} "
            f"processes, probe_interval {options.interval:g} s, {options.seconds:g} s each"
        )
        say("\n| canaries | per interval | CPU of the server | CPU of the reactors | sessions |")
        say("|---|---|---|---|---|")
        lost = 0
        for way in options.ways:
            figures = measure(server, way, options)
            lost += figures.lost
            say(
                f"| {WAYS[way]} | {figures.canaries:.1f} | {100 * figures.server:.1f} % "
                f"| {100 * figures.clients:.1f} % | {figures.sessions} |"
            )
        say(f"\nCPU in percent of one core; {lost} sessions were lost.")
    given = sys.argv[1:] if arguments is None else arguments
    say(" ".join(["python -m benchmarks.canaries", *given]))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, EmbeddedError) as error:
        sys.exit(str(error))
