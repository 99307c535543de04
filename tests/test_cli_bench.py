"""``pgsignals bench``: that it measures, cleans up, and says when it cannot."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgsignals.cli.bench import summary
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.commands import NOWHERE, Start, commands, one_line
from tests.support.waiting import wait_until


@pytest.fixture
def start(dsn: str, tmp_path: Path) -> Iterator[Start]:
    with commands(dsn, tmp_path) as start:
        yield start


def test_bench_prints_latency_a_histogram_and_throughput(start: Start) -> None:
    command = start("bench", "--seconds", "1")

    assert command.status() == 0
    assert "measuring 127.0.0.1:" in one_line(command.err)
    assert "payloads of 100 bytes" in command.out
    assert "p99" in command.out
    assert "#" in command.out or "█" in command.out
    assert "100 per transaction" in command.out


def test_bench_prints_json(start: Start) -> None:
    command = start("bench", "--seconds", "1", "--size", "7999", "--json")

    assert command.status() == 0
    measured = json.loads(command.out)
    latency = measured["latency"]
    ordered = [latency[name] for name in ("min", "p50", "p90", "p99", "max")]
    assert ordered == sorted(ordered)
    assert ordered[0] > 0
    assert sum(count for _, count in latency["histogram"]) == latency["count"]
    assert measured["payload_bytes"] == 7999
    single, batched = measured["throughput"]
    assert (single["per_transaction"], batched["per_transaction"]) == (1, 100)
    assert single["per_second"] > 0
    assert batched["count"] % 100 == 0


def test_bench_measures_the_network(start: Start, proxied: str, proxy: Proxy) -> None:
    proxy.delay(0.05, "to_client")
    command = start("bench", "--seconds", "1", "--json", "--dsn", proxied)

    assert command.status() == 0
    assert json.loads(command.out)["latency"]["min"] >= 0.05


def test_bench_takes_as_long_as_it_says(start: Start) -> None:
    begun = time.monotonic()

    assert start("bench", "--seconds", "2").status() == 0
    assert time.monotonic() - begun >= 2


def test_lost_session_means_that_nothing_was_measured(start: Start, admin: Admin) -> None:
    before = set(admin.sessions())
    command = start("bench", "--seconds", "30")
    command.until("measuring")

    def listeners() -> list[tuple[int]]:
        return admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE query ~ '^(LISTEN|SELECT pg_notification)'"
            " AND pid <> pg_backend_pid() AND NOT pid = ANY(%s)",
            list(before),
        )

    [[pid]] = wait_until(listeners)
    admin.kill(pid)

    assert command.status() == 1
    assert "was lost" in command.err.splitlines()[-1]
    assert command.out == ""


def test_no_server_is_one_line(start: Start) -> None:
    command = start("bench", url=NOWHERE)

    assert command.status() == 1
    assert "hush" not in one_line(command.err)


@pytest.mark.parametrize("seconds", [[0.0001], [0.5, 0.5], [0.001 * n for n in range(1, 1001)]])
def test_summary_counts_everything_once(seconds: list[float]) -> None:
    result = summary(seconds)

    assert sum(number for _, number in result.histogram) == len(seconds)
    assert result.histogram[0][1] > 0
    assert result.histogram[-1][1] > 0
    edges = [edge for edge, _ in result.histogram]
    assert all(low < high for low, high in itertools.pairwise(edges))
    assert result.min == min(seconds)
    assert result.max == max(seconds)
    if len(seconds) == 1000:
        assert (result.p50, result.p90, result.p99) == pytest.approx((0.501, 0.901, 0.991))
