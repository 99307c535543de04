"""What a server sees of many links when it comes back, and when it refuses their login.

::

    python -m benchmarks.storm
    python -m benchmarks.storm --links 40 --processes 2 --down 3 --refused 0 --json storm.json

Reactors in several processes listen to one server, as one role that has a password.  Then, one
after the other, with a calm between them in which the waits between attempts begin anew:

- *restart*: the server is down for a while, and comes back;
- *refused*: the role's password is changed and its sessions are terminated; later it is restored;
- *rotated*: the password is changed while the listening sessions go on, and only control
  connections are terminated; later it is restored.

The server's log says when somebody connected, and whom it refused.  The exit status is 0 only if
no herd came and no account would have been locked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.rig import BenchmarkError, say, wait_for
from pgsignals import Database, Reactor
from pgsignals.embedded import EmbeddedError, Postgres

ROLE = "herd"
PASSWORD, ROTATED = "before", "after"

#: Of the links may connect within 100 ms.
SHARE = 0.2

#: Seconds beyond the longest wait until all links listen again.
RECOVERY = 5.0

#: Seconds for what must happen soon.
PATIENCE = 60.0

#: Epoch in seconds, as ``log_line_prefix`` writes it.
_LINE = re.compile(r"^(\d+\.\d+) \[\d+\] (.*)$", re.MULTILINE)


# -- a process with reactors -----------------------------------------------------------------------


@dataclass(frozen=True)
class Health:
    """What a process tells of its links."""

    backends: set[int]
    """Those of the links that listen."""

    connected: float
    """When the last one began to, in seconds since the epoch."""


def serve(dsn: str, links: int, databases: int, settings: dict[str, Any], pipe: Connection) -> None:
    """Start reactors of *databases* each, tell their health when asked, stop when told to."""
    logging.getLogger("pgsignals").setLevel(logging.CRITICAL)
    connected = 0.0

    def note(*_: object, **__: object) -> None:
        nonlocal connected
        connected = time.time()

    counts = [len(range(first, links)[:databases]) for first in range(0, links, databases)]
    reactors = [
        Reactor(*(Database(dsn) for _ in range(count)), channels=["work"], **settings)
        for count in counts
    ]
    for reactor in reactors:
        reactor.connected.connect(note)
        reactor.start()
    pipe.send(None)
    while pipe.recv():
        statuses = [status for reactor in reactors for status in reactor.status().databases]
        backends = {one.backend_id or 0 for one in statuses if one.state == "listening"}
        pipe.send(Health(backends, connected))
    for reactor in reactors:
        reactor.stop(5)


class Fleet:
    """The processes of the reactors."""

    def __init__(self, options: argparse.Namespace, dsn: str) -> None:
        context = multiprocessing.get_context("spawn")
        interval, timeout = options.probe
        settings = {
            "backoff": tuple(options.backoff),
            "probe_interval": interval,
            "probe_timeout": timeout,
        }
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(options.processes):
            share = len(range(number, options.links, options.processes))
            ours, theirs = context.Pipe()
            arguments = (dsn, share, options.databases, settings, theirs)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)
        for pipe in self._pipes:
            if not pipe.poll(PATIENCE):
                raise BenchmarkError("the reactors did not start in time")
            pipe.recv()

    def health(self) -> Health:
        for pipe in self._pipes:
            pipe.send(True)
        answers: list[Health] = [pipe.recv() for pipe in self._pipes]
        backends = set().union(*(one.backends for one in answers))
        return Health(backends, max(one.connected for one in answers))

    def stop(self) -> None:
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(False)
        for process in self._processes:
            process.join(15)


# -- what happens ----------------------------------------------------------------------------------


@dataclass
class Phase:
    """What was seen of one fault; times in seconds since its end."""

    name: str
    lasted: float
    refusals: int = 0
    """Logins that the server refused while the fault lasted."""
    healthy_after: float = 0.0
    at_its_beginning: list[float] = field(default_factory=list)
    """Attempts that reached the server, in seconds since the beginning."""
    attempts: list[float] = field(default_factory=list)
    """The same after its end, until all links listened again."""

    @property
    def in_the_first_second(self) -> int:
        return sum(at < 1 for at in self.attempts)

    @property
    def buckets(self) -> Counter[int]:
        """Attempts by tenths of a second."""
        return Counter(int(at * 10) for at in self.attempts)

    @property
    def largest_bucket(self) -> int:
        return max(self.buckets.values(), default=0)


class Storm:
    """One server, the links, and what is done to them."""

    def __init__(self, options: argparse.Namespace, server: Postgres) -> None:
        self.options = options
        self.server = server
        self.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        encryption = {"sslmode": "prefer"} if options.tls else {}
        self.fleet = Fleet(options, server.dsn_for(user=ROLE, password=PASSWORD, **encryption))

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run *sql* over the Unix socket, which keeps us out of the count."""
        dsn = self.server.dsn_for(host=self.server.directory, sslmode="disable")
        with psycopg.connect(dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def logged(self, words: str, since: float, until: float = float("inf")) -> list[float]:
        """When the server has logged *words*."""
        lines = ((float(at), text) for at, text in _LINE.findall(self.server.log))
        return [at for at, text in lines if since <= at < until and words in text]

    @property
    def all_listen(self) -> bool:
        backends = self.fleet.health().backends
        return len(backends) == int(self.options.links)

    @property
    def none_listens(self) -> bool:
        return not self.fleet.health().backends

    def calm(self) -> None:
        """Let the waits begin anew."""
        time.sleep(self.options.backoff[1] + 1)

    def restart(self) -> Phase:
        began = time.time()
        self.server.stop("fast")
        wait_for(lambda: self.none_listens, PATIENCE, "the loss")
        time.sleep(max(0.0, self.options.down - (time.time() - began)))
        self.server.start()
        up = self.logged("listening on IPv4", began)[0]
        return self.recover(Phase("restart", up - began), began, up)

    def refused(self) -> Phase:
        self.set_password(ROTATED)
        began = time.time()
        self.terminate(set())
        wait_for(lambda: self.none_listens, PATIENCE, "the loss")
        return self.restore(Phase("refused", 0.0), began)

    def rotated(self) -> Phase:
        self.set_password(ROTATED)
        began = time.time()
        self.terminate(self.fleet.health().backends)
        return self.restore(Phase("rotated", 0.0), began)

    def set_password(self, password: str) -> None:
        self.execute(f"ALTER ROLE {ROLE} PASSWORD '{password}'")

    def terminate(self, spared: set[int]) -> None:
        """End the sessions of the links, save those of some backends."""
        self.execute(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity "
            f"WHERE usename OPERATOR(pg_catalog.=) '{ROLE}'::pg_catalog.name "
            "AND pid OPERATOR(pg_catalog.<>) "
            f"ALL ('{{{','.join(map(str, spared))}}}'::pg_catalog.int4[])"
        )

    def restore(self, phase: Phase, began: float) -> Phase:
        time.sleep(max(0.0, self.options.refused - (time.time() - began)))
        self.set_password(PASSWORD)
        ended = time.time()
        phase.lasted = ended - began
        phase.refusals = len(self.logged("password authentication failed", began, ended))
        return self.recover(phase, began, ended)

    def recover(self, phase: Phase, began: float, ended: float) -> Phase:
        """Wait until all links listen, and see how they came back."""
        longest = self.options.backoff[1]
        wait_for(lambda: self.all_listen, 2 * longest + PATIENCE, "the recovery")
        phase.healthy_after = max(0.0, self.fleet.health().connected - ended)
        time.sleep(0.2)  # the last control connections
        received = self.logged("connection received: host=127.0.0.1", began)
        phase.at_its_beginning = [at - began for at in received if at < min(ended, began + 1)]
        phase.attempts = [at - ended for at in received if at >= ended]
        return phase


# -- the program -----------------------------------------------------------------------------------


def checks_of(phase: Phase, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """What was measured, and what it may be at most."""
    links, longest = options.links, options.backoff[1]
    per_try = 2 if options.tls else 1  # sslmode=prefer tries a wrong password without TLS, too
    checks = {
        "attempts in the first second": (phase.in_the_first_second, 2.0 * links),
        "attempts in the worst 100 ms": (phase.largest_bucket, SHARE * links),
        "seconds until all listen": (phase.healthy_after, longest + RECOVERY),
    }
    if phase.name != "restart":  # the first at once, then one per longest wait
        tries = 1 + int((phase.lasted - 0.1) / longest)
        name = "refused logins per link"
        checks[name] = (phase.refusals / links, float(per_try * tries))
    return checks


def histogram(phase: Phase) -> Iterator[str]:
    """The first second by tenths, and what follows by seconds."""
    buckets = phase.buckets
    yield "by 100 ms  " + " ".join(f"{buckets[tenth]:3}" for tenth in range(10))
    seconds = Counter(int(at) for at in phase.attempts)
    for first in range(0, max(seconds, default=0) + 1, 10):
        counts = " ".join(f"{seconds[second]:3}" for second in range(first, first + 10))
        yield f"{first:3} to {first + 9:2} s {counts}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="storm", description="Herds and refused logins.")
    parser.add_argument("--links", type=int, default=100)
    parser.add_argument("--processes", type=int, default=4, help="that share the links")
    parser.add_argument("--databases", type=int, default=5, help="of each reactor")
    parser.add_argument("--down", type=float, default=30.0, help="seconds; 0 leaves it out")
    parser.add_argument("--refused", type=float, default=60.0, help="seconds; 0 leaves it out")
    parser.add_argument(
        "--backoff", type=float, nargs=2, default=(0.1, 30.0), metavar=("FIRST", "LONGEST")
    )
    parser.add_argument(
        "--probe", type=float, nargs=2, default=(10.0, 5.0), metavar=("INTERVAL", "TIMEOUT")
    )
    parser.add_argument("--tls", action="store_true", help="with sslmode=prefer")
    parser.add_argument("--json", type=Path, default=None, help="a file for all figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    settings = {
        "max_connections": 3 * options.links + 20,
        "log_connections": "on",
        "log_line_prefix": "%n [%p] ",
    }
    with Postgres(tcp=True, tls=options.tls, settings=settings) as server:
        say(
            f"PostgreSQL {'.'.join(map(str, server.version))}, Python {platform.python_version()}, "
            f"{os.cpu_count()} CPUs: {options.links} links in {options.processes} processes"
        )
        storm = Storm(options, server)
        faults = [storm.restart] if options.down else []
        faults += [storm.refused, storm.rotated] if options.refused else []
        phases: list[Phase] = []
        try:
            for fault in faults:
                if phases:
                    storm.calm()
                phases.append(fault())
                report(phases[-1], options)
        finally:
            storm.fleet.stop()
        version = server.version
    checks = {phase.name: checks_of(phase, options) for phase in phases}
    passed = all(value <= limit for one in checks.values() for value, limit in one.values())
    if options.json is not None:
        figures = {
            "options": {**vars(options), "json": str(options.json)},
            "server": version,
            "passed": passed,
            "checks": checks,
            "phases": [asdict(phase) for phase in phases],
        }
        options.json.write_text(json.dumps(figures, indent=1), "utf-8")
    say(f"\n{'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


def report(phase: Phase, options: argparse.Namespace) -> None:
    say(f"\n{phase.name}, {phase.lasted:.1f} s; {len(phase.attempts)} attempts after it:")
    for line in histogram(phase):
        say(f"  {line}")
    for name, (value, limit) in checks_of(phase, options).items():
        verdict = "ok" if value <= limit else "FAILED"
        say(f"  {name:30} {value:>8.4g}  {verdict}, at most {limit:g}")
    if phase.at_its_beginning:
        say(f"  {'(first second of the fault)':30} {len(phase.at_its_beginning):>8}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BenchmarkError, EmbeddedError) as error:
        sys.exit(str(error))
