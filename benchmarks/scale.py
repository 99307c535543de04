"""How the cost grows with what there is more of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.goals import PER_NOTIFICATION, Options, among, flood, rotated, steps
from benchmarks.results import Table
from benchmarks.rig import Child, Rig
from pgsignals.embedded import EmbeddedError, find_binaries

#: Notifications have at most so many bytes.
LONGEST = 7900

#: Rounds, at most: what matters here is the order of magnitude.
ROUNDS = 3

#: Bytes of payloads in one flood, at most.
VOLUME = 40_000_000


def channels(rig: Rig, options: Options) -> Table:
    """Floods that are spread over all channels.  The server compares each notification with the
    channels of the session, one by one, up to version 18 at least: fewer notifications."""
    count = options.count // 5
    table = Table(f"{count:,} notifications, spread", "channels", PER_NOTIFICATION)
    for number in range(min(ROUNDS, options.rounds)):
        for most in steps(options.channels):
            for contender in rotated(among(options, "bare", "reactor"), number):
                table.add(contender, most, **flood(rig, contender, count, channels=most))
    return table


def handlers(rig: Rig, options: Options) -> Table:
    """Handlers of one channel; all but one do nothing."""
    count = options.count // 4
    table = Table(f"{count:,} notifications", "handlers", PER_NOTIFICATION)
    for number in range(min(ROUNDS, options.rounds)):
        for most in (1, 2, 4, 8, 16):
            for contender in rotated(among(options, "psycopg+blinker", "reactor"), number):
                table.add(contender, most, **flood(rig, contender, count, handlers=most))
    return table


def payloads(rig: Rig, options: Options) -> Table:
    """Payloads of more and more bytes."""
    table = Table("notifications with payloads of one size", "bytes", PER_NOTIFICATION)
    names = among(options, "bare", "psycopg", "asyncpg", "manager", "reactor")
    for number in range(min(ROUNDS, options.rounds)):
        for size in (10, 100, 1000, LONGEST):
            count = min(options.count // 4, VOLUME // size)
            for contender in rotated(names, number):
                table.add(contender, size, **flood(rig, contender, count, size=size))
    return table


def tls(rig: Rig, options: Options) -> Table:
    """With TLS and without, on a server of its own, which has to know it."""
    count = options.count // 2
    table = Table(f"{count:,} notifications", "TLS", PER_NOTIFICATION)
    try:
        find_binaries(tls=True)
    except EmbeddedError:
        table.title += ": no server with TLS here"
        return table
    with Rig(0, tls=True) as other:
        for number in range(min(ROUNDS, options.rounds)):
            for name, sslmode in (("off", "disable"), ("on", "require")):
                for contender in rotated(among(options, "bare", "manager", "reactor"), number):
                    figures = flood(other, contender, count, sslmode=sslmode)
                    table.add(contender, name, **figures)
    return table


def workers(rig: Rig, options: Options) -> Table:
    """Threads for handlers that have nothing to wait for."""
    count = options.count // 2
    table = Table(f"{count:,} notifications on 100 channels", "workers", PER_NOTIFICATION)
    for _ in range(min(ROUNDS, options.rounds)):
        for many in (1, 4, 16):
            figures = flood(rig, "reactor", count, channels=100, options={"workers": many})
            table.add("reactor", many, **figures)
    return table


def listeners(rig: Rig, options: Options) -> Table:
    """What others that listen in the same database, to another channel, cost a notifier."""
    table = Table("one NOTIFY, committed", "idle listeners", {"wall": "median wall µs"})
    most = 2 * options.connections // 3
    for many in (0, most // 10, most):
        rig.settle()
        with Child("connections-bare", rig.task(connections=many)):
            for _ in range(min(ROUNDS, options.rounds)):
                taken = []
                for _ in range(100):
                    began = time.monotonic()
                    rig.query("NOTIFY another")
                    taken.append(time.monotonic() - began)
                table.add("notifier", many, wall=1e6 * statistics.median(taken))
    return table


BENCHMARKS: dict[str, Callable[[Rig, Options], Table]] = {
    "channels": channels,
    "handlers": handlers,
    "payloads": payloads,
    "tls": tls,
    "workers": workers,
    "listeners": listeners,
}
