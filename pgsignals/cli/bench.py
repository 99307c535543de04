"""``pgsignals bench``: measure notifications on the user's server and network."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import queue
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pgsignals._pure.values import Notification
from pgsignals._sources.reports import Gap
from pgsignals.cli.arguments import (
    WHERE,
    Commands,
    add_command,
    add_dsn,
    count,
    database_of,
    duration,
)
from pgsignals.cli.terminal import BOLD, CYAN, bar, escape, paint, put, say
from pgsignals.database import Database, connect
from pgsignals.errors import Error
from pgsignals.reactor import Reactor

ABOUT = """\
Measure notifications from this machine to the database and back: the latency from NOTIFY to a
handler, and the throughput per second.

  pgsignals bench
  pgsignals bench --dsn postgresql://app@localhost/shop --seconds 30
  pgsignals bench --size 2000              payloads of 2,000 bytes
  pgsignals bench --json | jq .latency.p99

It uses its own channel, so your handlers are not called; but every listening session of the
database is woken up, and the server is under full load while throughput is measured.
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 measured; 1 if no connection could be made, or notifications were lost meanwhile;
2 usage error.
"""

#: The longest run, in seconds.
LONGEST = 60.0

#: Notifications per transaction in the second measurement of throughput.
BATCH = 100

#: Notifications in flight: fewer than a reactor's backlog holds, so that none is dropped.
WINDOW = 20_000

#: Seconds to wait for notifications to arrive.
PATIENCE = 10.0

#: Bytes of the longest payload, and of the shortest with room for a number.
LARGEST, SMALLEST = 7999, 20


def add(commands: Commands) -> None:
    """Define ``pgsignals bench`` and its options."""
    parser = add_command(
        commands, "bench", "measure latency and throughput", ABOUT, ABOUT_STATUS, bench
    )
    add_dsn(parser)
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=run_time,
        default=10.0,
        help=f"duration, 10 by default, at most {LONGEST:g}",
    )
    parser.add_argument(
        "--size",
        metavar="BYTES",
        type=payload_size,
        default=100,
        help="size of a payload, 100 by default",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(frozen=True)
class Latency:
    """Seconds from before NOTIFY to the handler, one notification at a time."""

    count: int
    min: float
    p50: float
    p90: float
    p99: float
    max: float
    histogram: list[tuple[float, int]]
    """Upper bounds in seconds, each with how many were below it and not below the one before."""


@dataclass(frozen=True)
class Throughput:
    """Notifications sent on one connection, one transaction after the other."""

    per_transaction: int
    count: int
    per_second: float


class FailedError(Error):
    """The measurement is invalid."""


def bench(args: argparse.Namespace) -> int:
    """Measure, print the result, and return the exit status.

    :raises FailedError: notifications were lost meanwhile.
    """
    dsn = database_of(args)
    channel = f"pgsignals_bench_{secrets.token_hex(8)}"
    reactor = Reactor(dsn)
    meter = Meter(channel, args.size)
    reactor.on_channel(channel, batch=True)(meter.notified)
    reactor.gap.connect(meter.gap)
    with contextlib.closing(connect(dsn)) as db, reactor:
        db._custody.clear_search_path()
        name = db.name
        version = db.connection.info.parameter_status("server_version") or ""
        say(f"measuring {name} for {args.seconds:g} s")
        latency = summary(meter.latencies(db, args.seconds / 2))
        throughput = [meter.throughput(db, args.seconds / 4, size) for size in (1, BATCH)]
    if args.json:
        measured = {
            "database": name,
            "server": version,
            "payload_bytes": args.size,
            "latency": asdict(latency),
            "throughput": [asdict(one) for one in throughput],
        }
        put(sys.stdout, json.dumps(measured, indent=2))
        return 0
    put(sys.stdout, escape(f"{name}, PostgreSQL {version}, payloads of {args.size} bytes"))
    for line in lines(latency, throughput):
        put(sys.stdout, line)
    return 0


class Meter:
    """Sends notifications, and notes when they arrive."""

    def __init__(self, channel: str, size: int) -> None:
        self.lost = False
        self._channel = channel
        self._size = size
        self._numbers = itertools.count()
        self._received = 0
        self._arrivals: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()

    def notified(self, _: Database, *, notifications: list[Notification]) -> None:
        """Note the arrival of a batch; on the reactor's worker."""
        self._received += len(notifications)
        self._arrivals.put((time.perf_counter(), self._received))

    def gap(self, _: Database, *, gap: Gap) -> None:
        """Note that notifications were lost."""
        self.lost = True

    def _send(self, db: Database, count: int) -> None:
        # All different: PostgreSQL delivers duplicates within a transaction once.
        size = self._size
        db.notify(*[(self._channel, f"{next(self._numbers):<{size}}") for _ in range(count)])

    def _wait(self, count: int) -> float:
        """Wait until *count* have arrived, and return the time of that."""
        deadline = time.perf_counter() + PATIENCE
        while not self.lost:
            try:
                at, received = self._arrivals.get(timeout=0.5)
            except queue.Empty:
                if time.perf_counter() > deadline:
                    raise FailedError(
                        f"a notification did not arrive within {PATIENCE:g} s"
                    ) from None
            else:
                if received >= count:
                    return at
        raise FailedError("the listening session was lost meanwhile, so the measurement is invalid")

    def latencies(self, db: Database, seconds: float) -> list[float]:
        """Send one at a time; the first is left out, as it includes opening connections."""
        found: list[float] = []
        sent = 0
        deadline = time.perf_counter() + seconds
        while len(found) < 2 or time.perf_counter() < deadline:
            before = time.perf_counter()
            self._send(db, 1)
            sent += 1
            found.append(self._wait(sent) - before)
        self._received -= sent
        return found[1:]

    def throughput(self, db: Database, seconds: float, size: int) -> Throughput:
        """Send as many as possible, *size* per transaction."""
        sent = 0
        begun = time.perf_counter()
        while time.perf_counter() < begun + seconds:
            self._send(db, size)
            sent += size
            if sent - self._received > WINDOW:
                self._wait(sent - WINDOW // 2)
        at = self._wait(sent)
        self._received -= sent
        return Throughput(size, sent, sent / (at - begun))


def summary(seconds: list[float]) -> Latency:
    """Summarize how *seconds* are distributed."""
    ordered = sorted(seconds)
    p50, p90, p99 = (ordered[int(len(ordered) * part)] for part in (0.50, 0.90, 0.99))
    edges = [edge for edge in steps() if ordered[0] < edge]
    histogram = []
    below = 0
    for edge in edges:
        number = sum(1 for second in ordered if second < edge)
        histogram.append((edge, number - below))
        below = number
        if number == len(ordered):
            break
    return Latency(len(ordered), ordered[0], p50, p90, p99, ordered[-1], histogram)


def steps() -> Iterator[float]:
    """The edges of a histogram: 10, 15, 20, 30, 50, 70, 100 microseconds, and so on."""
    for power in range(-5, 2):
        for part in (1, 1.5, 2, 3, 5, 7):
            yield part * 10**power


def lines(latency: Latency, throughput: list[Throughput]) -> Iterator[str]:
    """Format the measurements."""
    yield ""
    yield paint(BOLD, f"latency from NOTIFY to the handler, {latency.count:,} sent one at a time")
    for name in ("min", "p50", "p90", "p99", "max"):
        yield f"  {name}  {1000 * getattr(latency, name):10.3f} ms"
    yield ""
    most = max(number for _, number in latency.histogram)
    for edge, number in latency.histogram:
        yield f"  < {1000 * edge:8.3g} ms {number:8,} {paint(CYAN, bar(number / most, 40))}"
    yield ""
    yield paint(BOLD, "throughput, one connection, one transaction after another")
    for one in throughput:
        what = f"{one.per_transaction} per transaction"
        yield f"  {what:20}{one.per_second:10,.0f} notifications/s"


# -- types of arguments --------------------------------------------------------------------------


def run_time(text: str) -> float:
    """Parse the duration of a run."""
    if (value := duration(text)) <= LONGEST:
        return value
    raise argparse.ArgumentTypeError(f"must be at most {LONGEST:g} seconds, not {text}")


def payload_size(text: str) -> int:
    """Parse the size of a payload."""
    if SMALLEST <= (value := count(text)) <= LARGEST:
        return value
    raise argparse.ArgumentTypeError(f"must be between {SMALLEST} and {LARGEST} bytes, not {text}")
