"""Runs a server and a reactor in a network of their own, and loses every packet between them.

Arguments: probe interval, probe timeout, and "ghost" to wait until the server gives up the
session that we have lost.  Prints what was seen as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import psycopg

from pgsignals import Reactor
from pgsignals.embedded import Postgres
from tests.programs.fault_rig import Witness, now, session_of
from tests.support.waiting import wait_until

# The address itself, and the network that would take it in.
ROUTES = ("local 127.0.0.1/32 dev lo", "local 127.0.0.0/8 dev lo")
HOLE = "blackhole 127.0.0.1/32"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *" ".join(arguments).split()], check=True, capture_output=True)


def cut() -> None:
    for route in ROUTES:
        ip("route del", route, "table local")
    ip("route add", HOLE, "table local")


def heal() -> None:
    ip("route del", HOLE, "table local")
    for route in ROUTES:
        ip("route add", route, "table local src 127.0.0.1")


def main() -> None:
    interval, timeout, *wishes = sys.argv[1:]
    ip("link set lo up")
    with Postgres(tcp=True) as server:
        beside = server.dsn_for(host=server.directory)
        with psycopg.connect(beside, autocommit=True) as admin:
            sys.stdout.write(
                json.dumps(run(server, admin, float(interval), float(timeout), wishes))
            )


def run(
    server: Postgres,
    admin: psycopg.Connection[tuple[object, ...]],
    interval: float,
    timeout: float,
    wishes: list[str],
) -> dict[str, object]:
    def notify(payload: str) -> None:
        admin.execute("SELECT pg_notify('a', %s)", (payload,))

    def exists(pid: int) -> bool:
        rows = admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,))
        return rows.fetchone() is not None

    reactor = Reactor(
        server.dsn,
        channels=["a"],
        probe_interval=interval,
        probe_timeout=timeout,
        backoff=(0.05, 0.4),
    )
    witness = Witness(reactor)
    with reactor:
        pid = session_of(reactor)
        notify("before")
        witness.wait_for("before")
        cut()
        begun, lost_at = time.monotonic(), now()
        notify("lost")
        lost = witness.wait("lost", timeout=3 * (interval + timeout) + 10)
        ghost = 0.0
        if "ghost" in wishes:
            wait_until(lambda: not exists(pid), 100, why="the server keeps our ghost")
            ghost = time.monotonic() - begun
        heal()
        healed = time.monotonic()
        gap = witness.wait("gap")
        notify("after")
        witness.wait_for("after")
    return {
        "detected": lost.at - begun,
        "recovered": gap.at - healed,
        "ghost": ghost,
        "reason": lost.told["reason"],
        "kinds": witness.kinds(reactor.databases[0]),
        "gap_covers": gap.gap.since <= lost_at <= gap.gap.until,
        "arrived": witness.arrived(),
    }


if __name__ == "__main__":
    main()
