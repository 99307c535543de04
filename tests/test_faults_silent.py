"""The server goes away and nobody says so: the reactor finds out, within what it promises."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgsignals import ConnectError, Database, Reactor
from pgsignals.embedded import Postgres
from pgsignals.testing import Direction, Proxy
from tests.programs.fault_rig import (
    BUSY,
    INTERVAL,
    PROBES,
    PROMISED,
    QUICK,
    TIMEOUT,
    Censor,
    Pinger,
    Witness,
    error_of,
    now,
    session_of,
    state_of,
)
from tests.support.admin import Admin, stopped
from tests.support.waiting import Background, wait_until

RecordProperty = Callable[[str, object], None]

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def frozen(proxy: Proxy, direction: Direction | None = None) -> Iterator[None]:
    """Nothing passes in this block, in one direction or in both."""
    proxy.freeze(direction)
    try:
        yield
    finally:
        proxy.thaw(direction)


Silence = Callable[[Proxy, int], contextlib.AbstractContextManager[None]]

SILENCES: dict[str, Silence] = {
    "both directions": lambda proxy, _: frozen(proxy),
    "from the server": lambda proxy, _: frozen(proxy, "to_client"),
    "to the server": lambda proxy, _: frozen(proxy, "to_server"),
    "stopped backend": lambda _, pid: stopped(pid),
}


@pytest.mark.parametrize("silence", SILENCES)
def test_silence_is_told_in_time_and_mended_and_hurts_nobody_else(
    dsn: str,
    proxied: str,
    proxy: Proxy,
    admin: Admin,
    channel: str,
    silence: str,
    record_property: RecordProperty,
) -> None:
    hurt, other = Database(proxied), Database(dsn)
    reactor = Reactor(hurt, other, channels=[channel], **QUICK)
    witness = Witness(reactor)
    with reactor, Pinger(dsn, channel, witness) as pinger:
        pid = session_of(reactor)
        admin.notify(channel, "before")
        wait_until(lambda: witness.arrived(channel).count("before") == 2)
        threads = threading.active_count()
        before, begun = now(), time.monotonic()
        with SILENCES[silence](proxy, pid):
            lost = witness.wait("lost", database=hurt)
            admin.notify(channel, "during")
            done = now()
            if silence != "stopped backend":
                wait_until(lambda: state_of(reactor) == "lost")
        healed = time.monotonic()
        gap = witness.wait("gap", database=hurt)
        admin.notify(channel, "after")
        wait_until(lambda: witness.arrived(channel).count("after") == 2)
        wait_until(lambda: threading.active_count() <= threads + 1)  # one may carry a canary

    record_property("detected", lost.at - begun)
    record_property("recovered", gap.at - max(healed, lost.at))
    record_property("slowest_of_other", pinger.slowest)
    assert lost.told["reason"] == "silent"
    assert lost.at - begun < PROMISED + BUSY
    assert witness.kinds(hurt) == ["connected", "lost", "connected", "gap"]
    assert gap.gap.since <= before
    assert gap.gap.until >= done or witness.arrived(channel).count("during") == 2
    assert witness.kinds(other) == ["connected"]
    assert pinger.slowest < BUSY


@pytest.mark.parametrize(
    ("overflow", "size"), [("block", 1000), ("drop_oldest", 7000), ("coalesce", 1000)]
)
def test_session_that_delivers_is_not_silent_though_the_answer_stands_behind_a_flood(
    dsn: str, admin: Admin, channel: str, overflow: Any, size: int
) -> None:
    """With "block" a handler takes far longer for the flood than a server has for an answer."""
    reactor = Reactor(
        dsn, overflow=overflow, max_backlog=100, probe_interval=0.1, probe_timeout=0.4
    )
    witness = Witness(reactor)
    reactor.on_channel(channel)(lambda db, notification: time.sleep(0.001))
    with reactor:
        for _ in range(3):
            admin.flood(channel, 1000, size)
        admin.notify(channel, "last")
        witness.wait_for("last")
        seen = reactor.status().databases[0].probe_seconds
        wait_until(lambda: reactor.status().databases[0].probe_seconds != seen)

    assert set(witness.kinds(reactor.databases[0])) <= {"connected", "gap"}
    assert not [gap for gap in witness.all("gap") if gap.gap.reason != "overflow"]


# Silence at a bad moment


def test_silence_during_connect_is_an_error_of_start(
    proxied: str, proxy: Proxy, record_property: RecordProperty
) -> None:
    reactor = Reactor(proxied, channels=["a"], **QUICK)
    begun = time.monotonic()
    with frozen(proxy), pytest.raises(ConnectError, match=r"within|timeout"):
        reactor.start()

    taken = time.monotonic() - begun
    record_property("refused_after", taken)
    assert taken < PROMISED + BUSY


@pytest.mark.parametrize("messages", [1, 15, 17])
def test_silence_in_the_middle_of_the_setup_is_never_reported_as_connected(
    postgres: Postgres, messages: int, record_property: RecordProperty
) -> None:
    # About 14 messages end with ReadyForQuery of the handshake; then come our own answers.
    with Censor(postgres.port) as censor:
        censor.hangs_after = messages
        reactor = Reactor(postgres.dsn_for(port=censor.port), channels=["a"], **QUICK)
        witness = Witness(reactor)
        begun = time.monotonic()

        with pytest.raises(ConnectionError):
            reactor.start()

        taken = time.monotonic() - begun
    record_property("refused_after", taken)
    assert not witness.happenings
    # An attempt to connect, and then an answer to a statement, may each take their whole time.
    assert taken < 2 * PROMISED + BUSY


def test_silence_during_listen_is_told_and_the_channel_heard_afterwards(
    dsn: str,
    proxied: str,
    proxy: Proxy,
    admin: Admin,
    channel: str,
    record_property: RecordProperty,
) -> None:
    reactor = Reactor(proxied, channels=[channel], **QUICK)
    witness = Witness(reactor)
    with reactor:
        reactor.listen(f"{channel} first")  # nothing of the start is under way any more
        begun = time.monotonic()
        with frozen(proxy, "to_client"):
            listening = Background(reactor.listen, f"{channel} new")
            wait_until(lambda: proxy.held("to_client"))
            lost = witness.wait("lost")
            listening.result()  # nobody can acknowledge it, and nobody waits for ever
        witness.wait("gap")
        admin.notify(f"{channel} new", "heard")
        witness.wait_for("heard")

    record_property("detected", lost.at - begun)
    assert lost.told["reason"] == "silent"
    assert lost.at - begun < PROMISED + BUSY


def test_silence_during_a_probe_is_told(
    dsn: str, proxied: str, proxy: Proxy, record_property: RecordProperty
) -> None:
    reactor = Reactor(proxied, channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        wait_until(lambda: reactor.status().databases[0].probe_seconds)
        with frozen(proxy, "to_client"):
            wait_until(lambda: proxy.held("to_client"))
            begun = time.monotonic()
            lost = witness.wait("lost")
        witness.wait("gap")

    record_property("detected", lost.at - begun)
    assert lost.told["reason"] == "silent"
    assert lost.at - begun < PROMISED + BUSY


def test_stop_does_not_wait_for_a_silent_server(
    dsn: str, proxied: str, proxy: Proxy, record_property: RecordProperty
) -> None:
    reactor = Reactor(proxied, channels=["a"], probe_interval=60.0)
    reactor.start()
    with frozen(proxy):
        notifying = Background(reactor.notify, a="nobody answers")
        wait_until(lambda: proxy.held("to_server"))
        begun = time.monotonic()
        reactor.stop()
        taken = time.monotonic() - begun
        with contextlib.suppress(ConnectionError, RuntimeError):
            notifying.result()
    record_property("stopped_after", taken)
    assert taken < BUSY


# It answers, and delivers nothing


def test_session_that_answers_but_delivers_nothing_is_deaf(
    postgres: Postgres, dsn: str, admin: Admin, channel: str, record_property: RecordProperty
) -> None:
    with Censor(postgres.port) as censor:
        reactor = Reactor(postgres.dsn_for(port=censor.port), channels=[channel], **QUICK)
        witness = Witness(reactor)
        with reactor:
            admin.notify(channel, "before")
            witness.wait_for("before")

            censor.withholds = True
            begun, time_of_loss = time.monotonic(), now()
            admin.notify(channel, "swallowed")
            lost = witness.wait("lost")
            wait_until(lambda: "canary" in error_of(reactor))
            withheld = censor.withheld
            wait_until(lambda: censor.withheld > withheld + 1)  # it tries again, in vain
            assert witness.kinds(reactor.databases[0]) == ["connected", "lost"]
            censor.withholds = False
            healed = time.monotonic()

            gap = witness.wait("gap")
            admin.notify(channel, "after")
            witness.wait_for("after")

    record_property("detected", lost.at - begun)
    record_property("recovered", gap.at - healed)
    assert lost.told["reason"] == "deaf"
    assert lost.at - begun < PROMISED + BUSY
    assert witness.arrived(channel) == ["before", "after"]
    assert gap.gap.since <= time_of_loss <= gap.gap.until


def test_start_over_a_link_that_delivers_nothing_fails(postgres: Postgres) -> None:
    with Censor(postgres.port) as censor:
        censor.withholds = True
        reactor = Reactor(postgres.dsn_for(port=censor.port), channels=["a"], **QUICK)
        witness = Witness(reactor)

        with pytest.raises((ConnectionError, RuntimeError)):
            reactor.start()

    assert not witness.happenings


# Links of little use


def test_flapping_link_is_tried_less_and_less_often(
    dsn: str,
    proxied: str,
    proxy: Proxy,
    admin: Admin,
    channel: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "pgsignals")
    reactor = Reactor(proxied, channels=[channel], **PROBES, backoff=(0.02, 0.4))
    witness = Witness(reactor)
    flaps = 8
    with reactor:
        for flap in range(1, flaps + 1):
            proxy.reset()
            witness.wait("gap", flap)
        admin.notify(channel, "still")
        witness.wait_for("still")

    attempts = [int(number) for number in re.findall(r"attempt (\d+) in", caplog.text)]
    assert attempts == sorted(attempts), "an opened connection alone must not reset it"
    assert attempts[-1] >= flaps
    told = witness.kinds(reactor.databases[0])
    assert told == ["connected"] + ["lost", "connected", "gap"] * flaps


def test_slow_link_is_no_false_alarm_below_the_deadline(
    dsn: str, proxied: str, proxy: Proxy, admin: Admin, channel: str
) -> None:
    reactor = Reactor(proxied, channels=[channel], probe_interval=0.5, probe_timeout=2.0)
    witness = Witness(reactor)
    seen = set[float]()
    with reactor:
        proxy.delay(0.2)

        def slow_probes() -> bool:
            taken = reactor.status().databases[0].probe_seconds
            if taken is not None and taken > 0.3:
                seen.add(taken)
            return len(seen) >= 4

        wait_until(slow_probes)
        admin.notify(channel, "late, but whole")
        witness.wait_for("late, but whole")

        assert witness.kinds(reactor.databases[0]) == ["connected"]


def test_link_slower_than_the_deadline_is_silent(
    dsn: str, proxied: str, proxy: Proxy, record_property: RecordProperty
) -> None:
    reactor = Reactor(proxied, channels=["a"], **QUICK)
    witness = Witness(reactor)
    with reactor:
        proxy.delay(3.0)
        begun = time.monotonic()
        lost = witness.wait("lost")
        proxy.delay(0.0)
        witness.wait("gap")

    record_property("detected", lost.at - begun)
    assert lost.told["reason"] == "silent"
    assert lost.at - begun < PROMISED + BUSY


# Lost packets, as with a pulled plug


def _namespace() -> list[str]:
    """A command that runs another one with a network of its own."""
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Ucn", "--keep-caps"]


def _lose_packets(*arguments: str, timeout: float = 50.0) -> dict[str, Any]:
    """What the program tells that cuts its own network, or skip where none can be cut."""
    trial = "ip link set lo up && ip route add blackhole 127.0.0.9/32 table local"
    try:
        tried = subprocess.run(
            [*_namespace(), "sh", "-c", trial], capture_output=True, timeout=20, check=False
        )
    except FileNotFoundError as error:
        pytest.skip(f"no network namespaces here: {error}")
    if tried.returncode:
        pytest.skip(f"no network namespaces here: {tried.stderr.decode().strip()}")
    program = [sys.executable, "-m", "tests.programs.fault_lost_packets", *arguments]
    done = subprocess.run(
        [*_namespace(), *program], cwd=ROOT, capture_output=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


def test_lost_packets_are_silence(record_property: RecordProperty) -> None:
    told = _lose_packets(str(INTERVAL), str(TIMEOUT))

    record_property("detected", told["detected"])
    record_property("recovered", told["recovered"])
    assert told["kinds"] == ["connected", "lost", "connected", "gap"]
    assert told["reason"] == "silent"
    assert told["detected"] < PROMISED + BUSY
    assert told["gap_covers"]
    assert told["arrived"] == ["before", "after"]


@pytest.mark.long
@pytest.mark.timeout(150)
def test_lost_packets_with_the_defaults_and_the_ghost_on_the_server(
    record_property: RecordProperty,
) -> None:
    told = _lose_packets("10", "5", "ghost", timeout=140)

    for name in ("detected", "recovered", "ghost"):
        record_property(name, told[name])
    assert told["reason"] == "silent"
    assert told["detected"] < 10 + 5 + 0.5 + BUSY
    assert told["ghost"] < 70  # the server gives our session up: 30 s, and 3 times 10 s


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("silence", SILENCES)
def test_silence_is_told_in_time_with_the_defaults(
    dsn: str, proxied: str, proxy: Proxy, silence: str, record_property: RecordProperty
) -> None:
    reactor = Reactor(proxied, channels=["a"])
    witness = Witness(reactor)
    with reactor:
        begun = time.monotonic()
        with SILENCES[silence](proxy, session_of(reactor)):
            lost = witness.wait("lost", timeout=30)
        witness.wait("gap", timeout=50)

    record_property("detected", lost.at - begun)
    assert lost.told["reason"] == "silent"
    assert lost.at - begun < 10 + 5 + 0.5 + BUSY
