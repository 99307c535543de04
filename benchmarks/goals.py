"""What the library wants to hold, and the benchmarks that tell whether it does."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.results import Table, Verdict, X
from benchmarks.rig import ROOT, BenchmarkError, Child, Rig

#: Ours, with the options of the reactor that they run with.
REACTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "reactor": ("reactor", {"max_backlog": 1 << 21}),
    "reactor-block": ("reactor", {"overflow": "block"}),
    "reactor-default": ("reactor", {}),
    "reactor-batch": ("reactor-batch", {"max_backlog": 1 << 21}),
}
OURS = ("manager", "wait", *REACTORS)

#: With the module that each needs.
PEERS = {
    "bare": "psycopg",
    "psycopg": "psycopg",
    "psycopg+blinker": "psycopg",
    "psycopg2": "psycopg2",
    "asyncpg": "asyncpg",
    "py-postgresql": "postgresql",
}

MIB = 1 << 20

PACED = "SELECT pg_catalog.pg_notify('bench_0'::pg_catalog.text, %s::pg_catalog.text)"


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    rounds: int = 9
    contenders: tuple[str, ...] = (*PEERS, *OURS)
    count: int = 200_000
    """Notifications of a flood."""
    connections: int = 1500
    """The most that one process holds."""
    channels: int = 10_000
    """The most that a reactor listens to."""
    databases: int = 20
    """That an idle reactor listens to."""
    large: int = 1_000_000
    """Notifications of the flood that no memory should have to hold."""
    pairs: int = 10_000
    """That are notified in one call."""
    paced: int = 1000
    """Notifications that come one by one, and how many of them in a second:"""
    rate: int = 200
    idle: float = 30.0
    """Seconds for which the idle are watched."""


QUICK = Options(
    rounds=1,
    count=20_000,
    connections=50,
    channels=1000,
    databases=3,
    large=50_000,
    pairs=500,
    paced=100,
    idle=1.0,
)


# -- floods ----------------------------------------------------------------------------------------


def flood(
    rig: Rig,
    contender: str,
    count: int,
    *,
    channels: int = 1,
    listening: int | None = None,
    size: int = 10,
    options: dict[str, Any] | None = None,
    **parameters: Any,
) -> dict[str, float]:
    """Have a contender receive a flood, and return what it used for each notification, in
    microseconds.

    :param channels: over which the flood is spread.
    :param listening: the channels that it listens to, if they are more.
    :param size: of a payload, in bytes.
    :param options: of a reactor, beside those of its contender.
    """
    name, reactor_options = REACTORS.get(contender, (contender, {}))
    task = rig.task(
        channels=listening or channels,
        count=count,
        options={**reactor_options, **(options or {})},
        **parameters,
    )
    rig.settle()
    with Child(name, task) as child:
        committed = rig.flood(count, channels=channels, size=size)
        heard = child.hear()
        check(contender, heard, count)
        return {
            "cpu": 1e6 * heard["cpu"] / count,
            "wall": 1e6 * (heard["end"] - committed) / count,
            **{name: figure for name, figure in child.started.items() if name != "ready"},
        }


def check(contender: str, heard: dict[str, Any], count: int) -> None:
    """Complain of a contender that did not get every notification, or not in order."""
    if heard["count"] + heard.get("dropped", 0) != count or heard["last"] != count:
        raise BenchmarkError(f"{contender} did not receive {count} in order: {heard}")


def rotated(names: tuple[str, ...], number: int) -> tuple[str, ...]:
    """The names, beginning with another one in each round."""
    turn = number % len(names) if names else 0
    return names[turn:] + names[:turn]


def among(options: Options, *names: str) -> tuple[str, ...]:
    """Those of *names* that are to be measured."""
    return tuple(name for name in names if name in options.contenders)


def steps(most: int) -> list[int]:
    """1, 10, 100 and so on, up to *most*, which is one of them."""
    return [*(10**n for n in range(6) if 2 * 10**n <= most), most]


PER_NOTIFICATION = {"cpu": "CPU µs per notification", "wall": "wall µs per notification"}


def throughput(rig: Rig, options: Options) -> Table:
    """A flood on 1 channel, and spread over 100."""
    table = Table(
        f"{options.count:,} notifications committed at once", "channels", PER_NOTIFICATION
    )
    for number in range(options.rounds):
        for channels in (1, 100):
            for contender in rotated(options.contenders, number):
                figures = flood(rig, contender, options.count, channels=channels)
                table.add(contender, channels, **figures)
    return table


def registered(rig: Rig, options: Options) -> Table:
    """The dispatch of one channel's notifications, and the start, with more and more channels."""
    table = Table(
        f"{options.count:,} notifications on one channel, of a reactor that has more",
        "channels with handlers",
        {**PER_NOTIFICATION, "start": "start in s"},
    )
    for _ in range(options.rounds):
        for channels in (1, 100, options.channels):
            figures = flood(rig, "reactor", options.count, listening=channels)
            table.add("reactor", channels, **figures)
    return table


def memory(rig: Rig, options: Options) -> Table:
    """What a flood that is too large leaves in memory: default options, a slow handler."""
    table = Table(
        "a flood on a reactor with default options and a handler that takes a millisecond",
        "notifications",
        {"growth": "growth of RSS in MiB", "dropped": "dropped", "wall": "received after s"},
    )
    rig.settle()
    with Child("reactor-slow", rig.task(count=options.large)) as child:
        before = child.memory("VmRSS")
        committed = rig.flood(options.large)
        heard = child.hear()
        table.add(
            "reactor",
            options.large,
            growth=(child.memory("VmHWM") - before) / MIB,
            dropped=heard["dropped"],
            wall=heard["end"] - committed,
        )
    return table


# -- one by one ------------------------------------------------------------------------------------


def latency(rig: Rig, options: Options) -> Table:
    """From before a NOTIFY is sent to its handler.  Everybody has a database, and they take turns,
    so that what disturbs the machine disturbs all."""
    table = Table(
        f"{options.rate} notifications per second for each, one by one, from NOTIFY to handler",
        "per second",
        {"p50": "p50 µs", "p99": "p99 µs"},
    )
    contenders = among(options, "bare", "psycopg", "asyncpg", "manager", "reactor")
    names = dict(zip(contenders, rig.create_databases(len(contenders)), strict=True))
    for _ in range(options.rounds):
        rig.settle()
        with contextlib.ExitStack() as stack:
            children, senders = {}, {}
            for contender, dbname in names.items():
                task = rig.task(dbname=dbname, count=options.paced)
                children[contender] = stack.enter_context(Child(f"latency-{contender}", task))
                senders[contender] = stack.enter_context(rig.connect(dbname))
            pace(list(senders.values()), options)
            for contender, child in children.items():
                taken = [ns / 1e3 for ns in child.hear()["taken"]]
                percentiles = statistics.quantiles(taken, n=100)
                table.add(contender, options.rate, p50=percentiles[49], p99=percentiles[98])
    return table


def pace(senders: list[Any], options: Options) -> None:
    """Send the time, evenly, over each of the sessions, in another order every time."""
    interval = 1 / (options.rate * len(senders))
    due = time.monotonic()
    for _ in range(options.paced):
        for sender in random.sample(senders, len(senders)):
            due += interval
            if (ahead := due - time.monotonic()) > 0:
                time.sleep(ahead)
            sender.execute(PACED, [str(time.monotonic_ns())])


# -- many connections ------------------------------------------------------------------------------


def connections(rig: Rig, options: Options) -> Table:
    """One NOTIFY that reaches all connections of a process, in turns with the bare loop, which
    has another database."""
    table = Table(
        "one NOTIFY to every connection of a process",
        "connections",
        {"cpu": "CPU µs per connection", "wall": "wall µs per connection"},
    )
    contenders = among(options, "bare", "manager")
    dbnames = rig.create_databases(len(contenders))
    for count in steps(options.connections):
        rig.settle()
        repeats = max(5, 1000 // count)
        with contextlib.ExitStack() as stack:
            pairs = []
            for contender, dbname in zip(contenders, dbnames, strict=True):
                task = rig.task(dbname=dbname, count=count, connections=count)
                child = stack.enter_context(Child(f"connections-{contender}", task))
                pairs.append((contender, child, stack.enter_context(rig.connect(dbname))))
            for _ in range(options.rounds):
                for contender, child, sender in pairs:
                    cpu = wall = 0.0
                    for _ in range(repeats):
                        began = time.monotonic()
                        sender.execute("NOTIFY bench_0, 'everybody'")
                        heard = child.hear()
                        cpu += heard["cpu"]
                        wall += heard["end"] - began
                    each = 1e6 / (repeats * count)
                    table.add(contender, count, cpu=cpu * each, wall=wall * each)
    return table


def idle(rig: Rig, options: Options) -> Table:
    """What it costs to wait."""
    table = Table(f"{options.idle:g} s without a notification", "of", {"cpu": "CPU in % of a core"})
    rig.settle()
    dsns = [rig.server.dsn_for(name) for name in rig.create_databases(options.databases)]
    many = rig.task(connections=options.connections, count=options.connections)
    with (
        Child("connections-manager", many) as manager,
        Child("reactor-many-databases", rig.task(dsns=dsns)) as reactor,
    ):
        time.sleep(min(options.idle, 2.0))  # the start is over
        watched = {
            ("manager", f"{options.connections:,} connections"): manager,
            ("reactor", f"{options.databases} databases"): reactor,
        }
        before = {row: child.cpu() for row, child in watched.items()}
        time.sleep(options.idle)
        for (contender, what), child in watched.items():
            used = child.cpu() - before[contender, what]
            table.add(contender, what, cpu=100 * used / options.idle)
    return table


# -- the rest --------------------------------------------------------------------------------------


def imports(rig: Rig, options: Options) -> Table:
    """In a new interpreter each, with bytecode for all modules, as pip leaves it."""
    table = Table("import, in a new interpreter", "of", {"cpu": "CPU ms"})
    code = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
    with tempfile.TemporaryDirectory() as cache:
        env = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        for number in range(2 * options.rounds):
            for modules in ("psycopg, blinker", "pgsignals"):
                command = [sys.executable, "-c", code.format(modules)]
                printed = subprocess.run(
                    command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
                ).stdout
                if number:  # the first one has written the bytecode
                    table.add(f"import {modules}", "modules", cpu=1e3 * float(printed))
    return table


def notify(rig: Rig, options: Options) -> Table:
    """Pairs sent in one call, and in a call each."""
    table = Table("Database.notify", "pairs", {"wall": "wall ms", "cpu": "CPU ms"})
    rig.settle()
    with Child("notify", rig.task(count=options.pairs)) as child:
        for _ in range(options.rounds):
            for name, at_once in (("a call each", False), ("one call", True)):
                child.tell(at_once=at_once)
                heard = child.hear()
                if heard["issued"] != options.pairs:
                    raise BenchmarkError(f"notify issued {heard['issued']} of {options.pairs}")
                table.add(name, options.pairs, wall=1e3 * heard["wall"], cpu=1e3 * heard["cpu"])
    return table


BENCHMARKS: dict[str, Callable[[Rig, Options], Table]] = {
    "throughput": throughput,
    "latency": latency,
    "connections": connections,
    "idle": idle,
    "registered": registered,
    "memory": memory,
    "import": imports,
    "notify": notify,
}


# -- goals -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """At most so many times the figure of another one, or without another, at most so much."""

    benchmark: str
    what: str
    ours: str
    against: str | None
    limit: float
    setting: X
    measure: str = ""
    other_setting: X | None = None
    unit: str = ""

    def verdict(self, table: Table) -> Verdict | None:
        """None if it was not measured."""
        if self.against is None:
            measured = table.median(self.ours, self.setting, self.measure)
        else:
            measured = table.ratio(
                self.ours, self.against, self.setting, self.measure, self.other_setting
            )
        if measured is None:
            return None
        against = self.against or ""
        if self.other_setting is not None:
            against = f"with {self.other_setting}"
        return Verdict(self.what, against, measured, self.limit, self.unit)


def goals(options: Options) -> list[Goal]:
    """All of them, at the sizes that are measured."""
    pairs: list[tuple[str, str, float]] = [
        ("manager", "bare", 1.25),
        ("wait", "bare", 1.6),
        ("reactor", "bare", 2.0),
        ("reactor", "asyncpg", 0.75),
        ("reactor", "psycopg+blinker", 0.40),
        ("reactor-batch", "bare", 1.4),
    ]
    wanted = [
        Goal("throughput", f"{ours}, {text}", ours, against, limit, channels)
        for ours, against, limit in pairs
        for channels, text in ((1, "1 channel"), (100, "100 channels"))
    ]
    rate, most, channels = options.rate, options.connections, options.channels
    size = f"{options.large:,} notifications, slow handler: growth of RSS"
    return [
        *wanted,
        Goal("latency", "latency of a reactor, p50", "reactor", "bare", 1.2, rate, "p50"),
        Goal("latency", "latency of a reactor, p99", "reactor", "bare", 1.6, rate, "p99"),
        Goal("connections", f"one NOTIFY to {most:,} connections", "manager", "bare", 1.5, most),
        *(
            Goal("idle", f"idle, {text}", ours, None, 0.5, text, unit=" %")
            for ours, text in (
                ("manager", f"{most:,} connections"),
                ("reactor", f"{options.databases} databases"),
            )
        ),
        Goal(
            "registered",
            f"dispatch with {channels:,} channels",
            "reactor",
            "reactor",
            1.15,
            channels,
            other_setting=1,
        ),
        Goal(
            "registered",
            f"start with {channels:,} channels",
            "reactor",
            None,
            3.0,
            channels,
            "start",
            unit=" s",
        ),
        Goal("memory", size, "reactor", None, 64, options.large, unit=" MiB"),
        Goal(
            "import",
            "import pgsignals",
            "import pgsignals",
            "import psycopg, blinker",
            1.25,
            "modules",
        ),
        Goal(
            "notify",
            f"{options.pairs:,} pairs in one call",
            "one call",
            "a call each",
            0.05,
            options.pairs,
        ),
    ]


def verdicts(tables: dict[str, Table], options: Options) -> list[Verdict]:
    """Whether the goals are met, of what was measured."""
    found = (
        goal.verdict(tables[goal.benchmark]) for goal in goals(options) if goal.benchmark in tables
    )
    return [verdict for verdict in found if verdict]
