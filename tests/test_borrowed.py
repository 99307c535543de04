"""What we use of psycopg beyond its documentation: each of it is named here, and needed."""

from __future__ import annotations

import ast
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import pq

import pgsignals
from pgsignals._wire import borrowed
from tests.support.waiting import Background, wait_until

WIRE = Path(pgsignals.__file__).parent / "_wire"

#: Attributes and modules of psycopg's that only ``borrowed`` may use.
BORROWED = {"_pool", "generators", "lock", "notify_handler"}

#: What :mod:`psycopg.pq` gives beyond the few that its documentation names.
OF_PGCONN = (
    *("consume_input", "db", "exec_", "finish", "flush", "get_result", "host", "info", "is_busy"),
    *("notifies", "parameter_status", "pipeline_status", "port", "send_query", "server_version"),
    *("socket", "status", "transaction_status"),
)


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def test_lock_is_held_from_the_beginning_of_a_statement_to_its_end(
    connection: psycopg.Connection[Any],
) -> None:
    lock = borrowed.lock_of(connection)
    assert not lock.locked()

    running = Background(connection.execute, "SELECT pg_sleep(0.2)")
    wait_until(lock.locked)
    running.result()

    assert not lock.locked()
    order: list[str] = []

    def run_theirs() -> None:
        connection.execute("SELECT 1")
        order.append("theirs")

    with lock:  # and a statement waits for it
        running_theirs = Background(run_theirs)
        connection.pgconn.exec_(b"SELECT pg_sleep(0.2)")
        order.append("ours")
    running_theirs.result()
    assert order == ["ours", "theirs"]


def test_notify_handler_is_called_for_what_comes_along_with_an_answer(
    connection: psycopg.Connection[Any],
) -> None:
    heard: list[Any] = []
    before = borrowed.notify_handler(connection)
    assert before is not None
    borrowed.set_notify_handler(connection, heard.append)
    connection.execute("LISTEN here")
    connection.execute("NOTIFY here, 'text'")

    [(relname, pid, extra)] = heard
    assert (relname, pid, extra) == (b"here", connection.info.backend_pid, b"text")

    borrowed.set_notify_handler(connection, before)
    connection.add_notify_handler(lambda notify: heard.append(notify.payload))
    connection.execute("NOTIFY here, 'again'")
    assert heard[1:] == ["again"]


def test_results_of_what_was_sent_are_fetched(connection: psycopg.Connection[Any]) -> None:
    connection.pgconn.send_query(b"SELECT 1; SELECT 'two'; SELECT 1/0")

    one, two, error = borrowed.fetch_results(connection)

    assert [one.get_value(0, 0), two.get_value(0, 0)] == [b"1", b"two"]
    assert error.status == pq.ExecStatus.FATAL_ERROR
    assert connection.pgconn.transaction_status == pq.TransactionStatus.IDLE


@pytest.mark.parametrize("silently", [True, False])
def test_open_connection_is_collected_without_a_warning(dsn: str, silently: bool) -> None:
    connection = psycopg.connect(dsn)
    if silently:
        borrowed.collect_silently(connection)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del connection
        gc.collect()

    mine = [warning for warning in caught if "deleted while still open" in str(warning.message)]
    assert len(mine) == (0 if silently else 1)


@pytest.mark.parametrize("name", OF_PGCONN)
def test_libpq_is_at_hand(connection: psycopg.Connection[Any], name: str) -> None:
    assert hasattr(connection.pgconn, name)


@pytest.mark.parametrize("path", sorted(WIRE.glob("*.py")), ids=lambda path: path.stem)
def test_nothing_is_borrowed_elsewhere(path: Path) -> None:
    if path.stem == "borrowed":
        return
    tree = ast.parse(path.read_text("utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("psycopg")
        for alias in node.names
    }

    assert used & BORROWED == set()
