"""Reactors under load while servers and networks fail, and the account of what they missed.

::

    python -m benchmarks.soak 20                  # minutes
    python -m benchmarks.soak 480 --tls --reactors 4 --databases 5 --json soak.json

One writer per database notifies two channels with serial numbers, and records each number with
the time before and after its COMMIT.  Every few seconds a fault: sessions terminated or killed,
the server restarted, a backend stopped, a network frozen, reset or cut.  What a reactor has not
been told must have been committed inside a ``Gap`` that it reported; nothing may come twice or out
of order; and memory, file numbers, threads and sessions must not grow.

The exit status is 0 only if all of that holds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import random
import signal
import statistics
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.rig import say
from pgsignals import Database, Gap, Notification, Reactor
from pgsignals.embedded import EmbeddedError, Postgres
from pgsignals.testing import DIRECTIONS, Proxy

CHANNELS = ("soak", "Soak two")

#: Seconds for all links to listen again after a fault.
RECOVERY = 60.0

#: What may be the noise of an allocator, between the medians of two parts of the run, in MB.
RSS_NOISE = 4.0

#: Control connections and reconnecting writers come and go between two samples.
FDS_NOISE = 2

#: Of this many objects a cache may grow.
OBJECTS_NOISE = 3_000

NOTIFY = "SELECT pg_catalog.pg_notify(%s::pg_catalog.text, %s::pg_catalog.text)"
REACTORS = (
    "FROM pg_catalog.pg_stat_activity "
    "WHERE application_name OPERATOR(pg_catalog.=) 'pgsignals'::pg_catalog.text"
)


class Writer:
    """Notifies one database at a steady rate, and knows what was committed when."""

    def __init__(self, server: Postgres, dbname: str, rate: float, capacity: int) -> None:
        self.dbname = dbname
        self.count = 0
        # Filled now: memory that grows while it runs is what the program looks for.
        self.before = array("d", [0.0]) * capacity
        self.after = array("d", [0.0]) * capacity  # 0.0: the outcome is unknown
        self._dsn = server.dsn_for(dbname, application_name="soak-writer")
        self._interval = 1 / rate
        self._capacity = capacity
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer-{dbname}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)

    @property
    def unknown(self) -> int:
        return sum(not self.after[serial] for serial in range(self.count))

    def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(psycopg.Error), self._connect() as connection:
                self._write(connection)
            self._stopping.wait(0.05)

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)

    def _write(self, connection: psycopg.Connection[Any]) -> None:
        due = time.monotonic()
        while not self._stopping.is_set() and self.count < self._capacity:
            self.notify(connection)
            due = max(due + self._interval, time.monotonic() - 1)
            if (ahead := due - time.monotonic()) > 0:
                time.sleep(ahead)

    def notify(self, connection: psycopg.Connection[Any]) -> None:
        serial, self.count = self.count, self.count + 1
        self.before[serial] = time.time()
        connection.execute(NOTIFY, [CHANNELS[serial % 2], str(serial)])
        self.after[serial] = time.time()

    def finish(self) -> None:
        """Send one last number on each channel, which every reactor has to receive."""
        with self._connect() as connection:
            for _ in CHANNELS:
                self.notify(connection)


@dataclass
class Seen:
    """What one reactor was told of one database."""

    times: bytearray
    last: list[int] = field(default_factory=lambda: [-1, -1])
    duplicates: int = 0
    disordered: int = 0
    gaps: list[tuple[float, float]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


class Listener:
    """A reactor behind a network of its own, and what it has seen."""

    def __init__(self, number: int, soak: Soak) -> None:
        self.proxy = Proxy(soak.server.dsn_for(host="127.0.0.1"))
        workers = 1 + 2 * (number % 2)
        interval, timeout = soak.options.probe
        databases = [
            Database(soak.server.dsn_for(writer.dbname, port=self.proxy.port))
            for writer in soak.writers
        ]
        self.reactor = Reactor(
            *databases,
            workers=workers,
            backoff=(0.1, 2.0),
            probe_interval=interval,
            probe_timeout=timeout,
            name=f"pgsignals-soak-{number}",
        )
        self.seen = {database: Seen(bytearray(b"\1") * soak.capacity) for database in databases}
        for seen in self.seen.values():
            seen.times[:] = bytes(soak.capacity)
        for channel in CHANNELS:
            self.reactor.on_channel(channel)(self.receive)
        self.reactor.gap.connect(self.note_gap)
        self.reactor.lost.connect(self.note_lost)
        self.reactor.connected.connect(self.note_connected)
        self.lost: Counter[str] = Counter()
        self.lost_at: dict[Database, float] = {}
        self.deaf_for: list[float] = []

    def receive(self, database: Database, notification: Notification) -> None:
        seen, serial = self.seen[database], int(notification.payload)
        lane = serial % 2
        if seen.times[serial]:
            seen.duplicates += 1
        elif serial < seen.last[lane]:
            seen.disordered += 1
        seen.times[serial] = 1
        seen.last[lane] = max(serial, seen.last[lane])

    def note_gap(self, database: Database, gap: Gap) -> None:
        seen = self.seen[database]
        seen.gaps.append((gap.since.timestamp(), gap.until.timestamp()))
        seen.reasons[gap.reason] += 1

    def note_lost(self, database: Database, reason: str, error: Exception) -> None:
        self.lost[reason] += 1
        self.lost_at[database] = time.monotonic()

    def note_connected(self, database: Database, resumed: bool) -> None:
        if resumed:
            self.deaf_for.append(time.monotonic() - self.lost_at.pop(database))

    @property
    def listening(self) -> bool:
        return all(one.state == "listening" for one in self.reactor.status().databases)


@dataclass(frozen=True)
class Sample:
    """What the process and the server hold, at a calm moment."""

    minute: float
    rss_mb: float
    fds: int
    threads: int
    sessions: int
    objects: int
    notified: int


@dataclass
class Fault:
    """One fault, and whether all links came to listen again."""

    minute: float
    kind: str
    recovered: bool


class Soak:
    """One run."""

    def __init__(self, options: argparse.Namespace, server: Postgres) -> None:
        self.options = options
        self.server = server
        self.random = random.Random(options.seed)
        self.capacity = int(options.minutes * 60 * options.rate * 1.1) + 10_000
        self.faults: list[Fault] = []
        self.samples: list[Sample] = []
        self.begun = time.monotonic()
        self.left_sessions = False
        self._admin: psycopg.Connection[Any] | None = None
        names = [f"soak_{number}" for number in range(options.databases)]
        for name in names:
            self.query(f'CREATE DATABASE "{name}"')
        self.writers = [Writer(server, name, options.rate, self.capacity) for name in names]
        self.listeners = [Listener(number, self) for number in range(options.reactors)]

    @property
    def minute(self) -> float:
        return (time.monotonic() - self.begun) / 60

    # -- the server ------------------------------------------------------------------------------

    def query(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        """Run *sql* on a session of our own, a new one where the server was restarted."""
        deadline = time.monotonic() + RECOVERY
        while True:
            try:
                if self._admin is None or self._admin.closed:
                    dsn = self.server.dsn_for(application_name="soak-admin")
                    self._admin = psycopg.connect(dsn, autocommit=True)
                cursor = self._admin.execute(sql.encode(), params or None)
                return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                if self._admin is not None:
                    self._admin.close()
                time.sleep(0.1)

    def sessions(self) -> list[int]:
        """The backends of the reactors."""
        return [row[0] for row in self.query(f"SELECT pid {REACTORS}")]

    def a_backend(self) -> int:
        """The backend of one listening session, which the server has now: a number that is out
        of date could be another process's."""
        alive = self.sessions()
        databases = self.random.choice(self.listeners).reactor.status().databases
        listening = {one.backend_id for one in databases}
        return self.random.choice([pid for pid in alive if pid in listening] or alive)

    # -- faults ----------------------------------------------------------------------------------

    def terminate(self) -> None:
        self.query("SELECT pg_catalog.pg_terminate_backend(%s::pg_catalog.int4)", self.a_backend())

    def terminate_all(self) -> None:
        self.query(f"SELECT pg_catalog.pg_terminate_backend(pid) {REACTORS}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.server.kill_backend(self.a_backend())

    def restart_fast(self) -> None:
        self.server.restart("fast")

    def restart_immediate(self) -> None:
        self.server.restart("immediate")

    def stop_backend(self) -> None:
        pid = self.a_backend()
        with contextlib.suppress(ProcessLookupError):
            self.server.kill_backend(pid, signal.SIGSTOP)
            try:
                time.sleep(self.random.uniform(0.2, 2 * sum(self.options.probe)))
            finally:
                self.server.kill_backend(pid, signal.SIGCONT)

    def freeze(self) -> None:
        proxy = self.random.choice(self.listeners).proxy
        direction = self.random.choice([None, *DIRECTIONS])
        proxy.freeze(direction)
        time.sleep(self.random.uniform(0.2, 2 * sum(self.options.probe)))
        proxy.thaw()

    def reset(self) -> None:
        self.random.choice(self.listeners).proxy.reset()

    def cut(self) -> None:
        proxy = self.random.choice(self.listeners).proxy
        proxy.refuse()
        proxy.cut()
        time.sleep(self.random.uniform(0.0, 2.0))
        proxy.accept()

    def cut_in_a_message(self) -> None:
        proxy = self.random.choice(self.listeners).proxy
        proxy.cut_after(
            self.random.randrange(1, 500), "to_client", reset=self.random.random() < 0.5
        )

    def inflict(self) -> None:
        """One fault, and the wait until all links listen again."""
        kinds: list[Callable[[], None]] = [
            *[self.terminate, self.freeze, self.reset, self.cut, self.stop_backend] * 2,
            *[self.cut_in_a_message, self.terminate_all, self.kill],
            *[self.restart_fast, self.restart_immediate],
        ]
        kind = self.random.choice(kinds)
        with contextlib.suppress(IndexError):  # there is no backend at all just now
            kind()
        healthy = self.wait_for(lambda: all(one.listening for one in self.listeners), RECOVERY)
        self.faults.append(Fault(round(self.minute, 3), kind.__name__, healthy))

    @staticmethod
    def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    # -- the run ---------------------------------------------------------------------------------

    def run(self) -> None:
        for listener in self.listeners:
            listener.reactor.start()
        for writer in self.writers:
            writer.start()
        end = self.begun + self.options.minutes * 60
        while time.monotonic() < end:
            calm = self.random.uniform(0.5, 1.5) * self.options.every
            time.sleep(max(0.0, min(calm, end - time.monotonic())))
            self.sample()
            if time.monotonic() < end:
                self.inflict()
        for writer in self.writers:
            writer.stop()
        self.wait_for(lambda: all(one.listening for one in self.listeners), RECOVERY)
        for writer in self.writers:
            writer.finish()
        self.wait_for(self.all_have_seen_the_last, RECOVERY)

    def all_have_seen_the_last(self) -> bool:
        return all(
            seen.times[writer.count - 1] and seen.times[writer.count - 2]
            for listener in self.listeners
            for writer, seen in zip(self.writers, listener.seen.values(), strict=True)
        )

    def sample(self) -> None:
        gc.collect()
        names = [thread.name for thread in threading.enumerate()]
        one = Sample(
            minute=round(self.minute, 3),
            rss_mb=round(rss_mb(), 2),
            fds=count_fds(),
            threads=sum(name.startswith("pgsignals") for name in names),
            sessions=len(self.sessions()),
            objects=len(gc.get_objects()),
            notified=sum(writer.count for writer in self.writers),
        )
        self.samples.append(one)
        if len(self.samples) % 10 == 1:
            say(
                f"{one.minute:7.1f} min  {one.notified:9,} notified  {one.rss_mb:6.1f} MB  "
                f"{one.fds:4} fds  {one.threads:3} threads  {one.sessions:3} sessions  "
                f"{one.objects:8,} objects  {len(self.faults):4} faults"
            )

    def stop(self) -> None:
        """Stop all reactors and networks."""
        for listener in self.listeners:
            listener.reactor.stop(10)
            listener.proxy.close()
        if self._admin is not None:
            self.left_sessions = not self.wait_for(lambda: not self.sessions(), 10)
            self._admin.close()

    # -- the account -----------------------------------------------------------------------------

    def account(self) -> dict[str, Any]:
        """What each reactor missed, and what it had said about that."""
        totals: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        examples: list[dict[str, Any]] = []
        for listener in self.listeners:
            lost += listener.lost
            for writer, seen in zip(self.writers, listener.seen.values(), strict=True):
                reasons += seen.reasons
                totals["duplicates"] += seen.duplicates
                totals["out of order"] += seen.disordered
                totals["gaps"] += len(seen.gaps)
                totals["received"] += sum(seen.times)
                for serial, before, after in missing(writer, seen):
                    totals["missed"] += 1
                    if any(since <= after and before <= until for since, until in seen.gaps):
                        continue
                    totals["missed outside a gap"] += 1
                    if len(examples) < 20:
                        name = listener.reactor.status().databases[0].name
                        examples.append(
                            {"at": name, "serial": serial, "before": before, "after": after}
                        )
        totals["notified"] = sum(writer.count for writer in self.writers)
        totals["outcome unknown"] = sum(writer.unknown for writer in self.writers)
        totals["last one not received"] = int(not self.all_have_seen_the_last())
        return {
            "totals": totals,
            "gaps": reasons,
            "lost": lost,
            "missed outside": examples,
            "seconds from lost to connected": sorted(
                seconds for listener in self.listeners for seconds in listener.deaf_for
            ),
        }


def missing(writer: Writer, seen: Seen) -> Iterator[tuple[int, float, float]]:
    """What was acknowledged and not received: the number, and the bounds of its commit."""
    for serial in range(writer.count):
        if not seen.times[serial] and (after := writer.after[serial]):
            yield serial, writer.before[serial], after


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def count_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def growth(samples: list[Sample], name: str, of: Callable[[list[float]], float]) -> float:
    """How much more the last third of the run has than the second."""
    values = [float(getattr(sample, name)) for sample in samples]
    third = max(1, len(values) // 3)
    return of(values[-third:]) - of(values[third : 2 * third] or values[:third])


def slope(samples: list[Sample], name: str) -> float:
    """Growth per hour by a straight line through the last two thirds."""
    kept = samples[len(samples) // 3 :]
    if len(kept) < 3:
        return 0.0
    hours = [sample.minute / 60 for sample in kept]
    return statistics.linear_regression(hours, [getattr(one, name) for one in kept]).slope


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description="A soak test of pgsignals.")
    parser.add_argument("minutes", type=float, help="how long it runs")
    parser.add_argument("--reactors", type=int, default=4)
    parser.add_argument("--databases", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100.0, help="per database and second")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults")
    parser.add_argument(
        "--probe", type=float, nargs=2, default=(2.0, 1.0), metavar=("INTERVAL", "TIMEOUT")
    )
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--json", type=Path, default=None, help="a file for all figures")
    parser.add_argument("--verbose", action="store_true", help="log what the reactors warn of")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    criticals: list[str] = []
    logging.getLogger("pgsignals").addHandler(Criticals(criticals))
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    else:
        logging.getLogger("pgsignals").propagate = False
    say(
        f"seed {options.seed}: {options.minutes:g} min, {options.reactors} reactors, "
        f"{options.databases} databases{', TLS' if options.tls else ''}"
    )
    with Postgres(tcp=True, tls=options.tls, settings={"max_connections": 400}) as server:
        fds_before = count_fds()
        soak = Soak(options, server)
        try:
            soak.run()
        finally:
            soak.stop()
        fds_left = 0

        def nothing_left() -> bool:
            nonlocal fds_left
            gc.collect()
            fds_left = count_fds() - fds_before
            return fds_left <= 0 and not ours_running()

        account = soak.account()
        soak.listeners.clear()  # a stopped reactor keeps what its next life needs
        soak.wait_for(nothing_left, 15)
        return report(options, soak, account, fds_left, criticals)


class Criticals(logging.Handler):
    """Collects what pgsignals says of its own failures."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.CRITICAL)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


def ours_running() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("pgsignals")]


def report(
    options: argparse.Namespace,
    soak: Soak,
    account: dict[str, Any],
    fds_left: int,
    criticals: list[str],
) -> int:
    """Print the table, write the file, and say whether all went well."""
    totals = account["totals"]
    samples = soak.samples
    checks = {
        "missed outside a gap": (totals["missed outside a gap"], 0),
        "duplicates": (totals["duplicates"], 0),
        "out of order": (totals["out of order"], 0),
        "last one not received": (totals["last one not received"], 0),
        "faults not recovered from": (sum(not one.recovered for one in soak.faults), 0),
        "failures of pgsignals itself": (len(criticals), 0),
        "growth of RSS in MB": (round(growth(samples, "rss_mb", statistics.median), 2), RSS_NOISE),
        "growth of file numbers": (growth(samples, "fds", min), FDS_NOISE),
        "growth of threads": (growth(samples, "threads", min), 0),
        "growth of sessions": (growth(samples, "sessions", min), FDS_NOISE),
        "growth of objects": (growth(samples, "objects", min), OBJECTS_NOISE),
        "file numbers left": (fds_left, 0),
        "threads left": (len(ours_running()), 0),
        "sessions left": (int(soak.left_sessions), 0),
    }
    passed = all(value <= limit for value, limit in checks.values())
    kinds = Counter(fault.kind for fault in soak.faults)
    say("")
    for name in ("notified", "outcome unknown", "received", "missed", "gaps"):
        say(f"{name:32} {totals[name]:>12,}")
    say(f"{'gaps by reason':32} {dict(account['gaps'])}")
    say(f"{'losses by reason':32} {dict(account['lost'])}")
    say(f"{'faults':32} {dict(kinds)}")
    if seconds := account["seconds from lost to connected"]:
        say(
            f"{'seconds from lost to connected':32} median {statistics.median(seconds):.2f}, "
            f"worst {seconds[-1]:.2f}"
        )
    say(f"{'RSS by a straight line, MB/h':32} {slope(samples, 'rss_mb'):12.2f}")
    say("")
    for name, (value, limit) in checks.items():
        say(f"{name:32} {value:>12,}  {'ok' if value <= limit else f'FAILED, at most {limit}'}")
    for text in (*criticals[:3], *map(str, account["missed outside"][:5])):
        say(text)
    say(f"\n{'passed' if passed else 'FAILED'} (seed {options.seed})")
    if options.json is not None:
        figures = {
            "options": {**vars(options), "json": str(options.json)},
            "server": soak.server.version,
            "passed": passed,
            **account,
            "checks": checks,
            "faults": [asdict(fault) for fault in soak.faults],
            "samples": [asdict(sample) for sample in samples],
        }
        options.json.write_text(json.dumps(figures, indent=1, default=str), "utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EmbeddedError as error:
        sys.exit(str(error))
