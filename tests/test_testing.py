"""The kit for users' tests: `pgsignals.testing`, and the pytest plugin."""

from __future__ import annotations

import gc
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgsignals
from pgsignals import ClosedError, ConnectError, Database, Gap, Notification, Reactor
from pgsignals._dispatch.ordered import id_of, state_of
from pgsignals.embedded import Postgres
from pgsignals.testing import (
    Capture,
    CaptureFactory,
    Proxy,
    ReactorFactory,
    capture,
    isolated_handlers,
    kill_listener,
    running,
    settle,
    wait_until,
)
from tests.support.admin import Admin
from tests.support.arrivals import Connect, payloads
from tests.support.pages import files
from tests.support.waiting import PATIENCE, Background

ROOT = Path(__file__).parents[1]
SOON = 0.05  # a timeout that is to run out


def message(function: Callable[..., object], *args: object) -> str:
    """The message with which *function* fails."""
    with pytest.raises(AssertionError) as caught:
        function(*args)
    return str(caught.value)


# -- capture ---------------------------------------------------------------------------------------


@pytest.fixture
def captured(pgsignals_capture: CaptureFactory, channel: str) -> Capture:
    return pgsignals_capture(channel)


def test_wait_gives_the_next_in_order(captured: Capture, channel: str, admin: Admin) -> None:
    admin.notify(channel, "1", "2", "3")

    assert captured.wait(2) == [(channel, "1", admin.pid), (channel, "2", admin.pid)]
    assert payloads(captured.wait()) == ["3"]
    assert captured.wait(0) == []


def test_wait_waits_for_what_comes_later(captured: Capture, channel: str, admin: Admin) -> None:
    admin.notify(channel, "1")
    waiting = Background(captured.wait, 2)
    waiting.until_it_waits()
    admin.notify(channel, "2")

    assert payloads(waiting.result()) == ["1", "2"]


def test_too_few_fail_and_are_kept(captured: Capture, channel: str, admin: Admin) -> None:
    admin.notify(channel, "a secret")
    message(captured.none)  # it has arrived
    told = message(captured.wait, 2, SOON)

    assert told.startswith(f"channel '{channel}': 1 of 2 notifications arrived within 0.05 s\n")
    assert f"channel='{channel}', payload=<8 chars>, pid={admin.pid}" in told
    assert payloads(captured.wait(1)) == ["a secret"]


def test_failure_with_nothing_reminds_of_the_commit(
    captured: Capture, channel: str, connect: Connect
) -> None:
    database = connect()
    with database.transaction():
        database.notify(channel)
        assert "is sent when its transaction commits" in message(captured.wait, 1, SOON)
        captured.none()
    captured.one()


def test_failure_shows_a_few_of_many(captured: Capture, channel: str, admin: Admin) -> None:
    admin.flood(channel, 100)

    assert message(captured.none).endswith("and 95 more")


def test_one_is_the_only_one(captured: Capture, channel: str, admin: Admin) -> None:
    admin.notify(channel, "1")
    assert captured.one().payload == "1"

    admin.notify(channel, "2", "3")
    assert "expected one notification, not 2" in message(captured.one)
    assert payloads(captured.all()) == ["2", "3"]


def test_one_of_none_fails(captured: Capture) -> None:
    assert "0 of 1 notifications" in message(captured.one, SOON)


def test_none_sees_whatever_was_committed_before(
    captured: Capture, channel: str, admin: Admin
) -> None:
    for _ in range(200):  # no luck of timing
        captured.none()
        admin.notify(channel, "x")
        assert "expected no notification, not 1" in message(captured.none)
        captured.wait()


def test_all_is_everything_until_now(captured: Capture, channel: str, admin: Admin) -> None:
    assert captured.all() == []
    admin.flood(channel, 20_000)
    assert payloads(captured.all()) == [str(number) for number in range(1, 20_001)]
    assert captured.all() == []


def test_capture_of_several_channels(
    pgsignals_capture: CaptureFactory, new_channel: Callable[[], str], admin: Admin
) -> None:
    first, second, other = new_channel(), new_channel(), new_channel()
    captured = pgsignals_capture(first, second)
    for name in (second, other, first):
        admin.notify(name)

    assert [n.channel for n in captured.all()] == [second, first]
    assert f"channels '{first}', '{second}': 0 of 1" in message(captured.wait, 1, SOON)
    assert captured.channels == (first, second)


def test_after_its_block_a_capture_has_what_was_committed_in_it(
    dsn: str, channel: str, admin: Admin
) -> None:
    admin.notify(channel, "before")
    with capture(channel, database=dsn) as captured:
        admin.notify(channel, "1", "2")
    admin.notify(channel, "after")

    assert repr(captured) == f"<Capture of channel '{channel}': 2 not handed out>"
    assert payloads(captured.wait(1)) == ["1"]
    assert captured.one().payload == "2"
    captured.none()
    assert "0 of 1 notifications arrived before the capture ended" in message(captured.wait)


def test_capture_that_an_exception_left_proves_nothing(dsn: str, channel: str) -> None:
    with pytest.raises(ZeroDivisionError), capture(channel, database=dsn) as captured:
        raise ZeroDivisionError

    assert "an exception ended its block" in message(captured.none)


def test_capture_whose_session_ended_proves_nothing(dsn: str, channel: str, admin: Admin) -> None:
    with capture(channel, database=dsn) as captured:
        admin.kill(captured.backend_id)
        for look in (captured.wait, captured.none, captured.one, captured.all):
            assert "session of this capture has ended" in message(look)
    for look in (captured.none, captured.all):
        assert "session of this capture has ended" in message(look)


@pytest.fixture
def owned(dsn: str) -> Iterator[Any]:
    """A connection of psycopg's, in autocommit."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("kind", ["a database", "a wrapped one", "a reactor"])
def test_capture_leaves_the_session_of_its_database_alone(
    kind: str, dsn: str, connect: Connect, channel: str, admin: Admin, owned: Any
) -> None:
    database = connect()
    target: Database | Reactor = database
    if kind == "a wrapped one":
        database = target = Database.wrap(owned)
    elif kind == "a reactor":
        target = Reactor(dsn)
    with capture(channel, database=target) as captured:
        assert captured.backend_id != database.backend_id
        assert channel not in database.listening_channels()
        admin.notify(channel)
        captured.one()


def test_capture_takes_nothing_else(dsn: str) -> None:
    with pytest.raises(TypeError, match="at least one channel"):
        capture(database=dsn)
    with pytest.raises(TypeError, match="not int"):
        capture("orders", database=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="several databases"):
        capture("orders", database=Reactor(dsn, dsn))
    with pytest.raises(pgsignals.ChannelNameError):
        capture("", database=dsn)
    with pytest.raises(ClosedError):
        capture("orders", database=dsn).wait()


# -- waiting ---------------------------------------------------------------------------------------


def test_wait_until_gives_the_first_true_result() -> None:
    results = iter([0, "", None, "yes", "no"])

    assert wait_until(lambda: next(results)) == "yes"


def test_wait_until_says_why() -> None:
    assert message(lambda: wait_until(list, SOON)) == "it never happened (waited 0.05 s)"
    assert message(lambda: wait_until(list, 0, why="no orders")) == "no orders (waited 0 s)"


@pytest.mark.parametrize(
    ("timeout", "error"), [(None, TypeError), ("1", TypeError), (-1, ValueError)]
)
def test_timeouts_are_checked(timeout: float, error: type[Exception], captured: Capture) -> None:
    for wait in (lambda: wait_until(lambda: True, timeout), lambda: captured.all(timeout)):
        with pytest.raises(error):
            wait()


# -- handlers --------------------------------------------------------------------------------------


class Recorder:
    """A handler that notes payloads."""

    def __init__(self) -> None:
        self.payloads: list[str] = []

    def __call__(self, database: Database, notification: Notification) -> None:
        self.payloads.append(notification.payload)


class Gaps:
    """Receives gaps."""

    def __call__(self, database: Database, *, gap: Gap) -> None: ...


def test_handlers_of_the_block_are_gone_and_those_before_it_are_back(
    channel: str, new_channel: Callable[[], str]
) -> None:
    signal, other = pgsignals.channel(channel), new_channel()
    before, database = [Recorder() for _ in range(3)], Database()
    with isolated_handlers():
        for handler in before:
            signal.connect(handler, sender=database if handler is before[2] else pgsignals.Reactor)
        signal.connect(before[0])
        pgsignals.on("gap")(told := Gaps())
        state = [list(part.items()) for part in state_of(signal)]
        with isolated_handlers():
            signal.disconnect(before[0])
            signal.disconnect(before[2])
            pgsignals.on_channel(channel, other)(Recorder())
            pgsignals.on("gap", "gap")(Gaps())
            signal.connect(before[1], sender=database)
            assert list(signal.receivers_for(database)) != before
        assert [list(part.items()) for part in state_of(signal)] == state
        assert list(signal.receivers_for(database)) == [before[0], before[2]]
        assert not pgsignals.channel(other).receivers
        gap = pgsignals.signals.default.of_reactor["gap"]
        assert list(gap.receivers_for(database)) == [told]
    assert not signal.receivers
    assert not gap.receivers


def test_handlers_and_senders_that_were_collected_do_not_come_back(channel: str) -> None:
    signal, stays = pgsignals.channel(channel), Recorder()
    handler, database = Recorder(), Database()
    with isolated_handlers():
        signal.connect(handler)
        signal.connect(stays, sender=database)
        with isolated_handlers():
            del handler, database
            gc.collect()
        assert not state_of(signal).wanted_by(id_of(None))
        assert not state_of(signal).senders


def test_running_reactor_follows_the_handlers_that_come_back(
    pgsignals_reactor: ReactorFactory, channel: str, new_channel: Callable[[], str]
) -> None:
    other = new_channel()
    handler = pgsignals.on_channel(channel)(Recorder())
    status = pgsignals_reactor(probe_interval=None).status
    with isolated_handlers():
        pgsignals.channel(channel).disconnect(handler)
        pgsignals.on_channel(other)(Recorder())
        wait_until(lambda: status().databases[0].channels == (other,), PATIENCE)
    wait_until(lambda: status().databases[0].channels == (channel,), PATIENCE)


@pytest.mark.parametrize("workers", [1, 3])
def test_settle_returns_when_everything_is_handled(
    workers: int, pgsignals_reactor: ReactorFactory, new_channel: Callable[[], str], admin: Admin
) -> None:
    slow, quick = new_channel(), new_channel()
    reactor = pgsignals_reactor(workers=workers)
    go = threading.Event()
    handled: list[str] = []

    @reactor.on_channel(slow)
    def wait(db: Database, notification: Notification) -> None:
        assert go.wait(PATIENCE)
        handled.append(notification.channel)

    reactor.on_channel(quick)(lambda db, notification: handled.append(notification.channel))
    admin.notify(slow)
    admin.notify(quick, "1", "2")
    assert "were not all handled within" in message(settle, reactor, SOON)
    settling = Background(settle, reactor, PATIENCE)
    assert settling.running
    go.set()
    settling.result()
    assert sorted(handled) == sorted([slow, quick, quick])


def test_settle_covers_every_database(
    dsn: str, pgsignals_reactor: ReactorFactory, channel: str
) -> None:
    reactor = pgsignals_reactor(Database(dsn), Database(dsn), workers=2)
    go = threading.Event()

    @reactor.on_channel(channel)
    def wait(db: Database, notification: Notification) -> None:
        assert db is reactor.databases[0] or go.wait(PATIENCE)

    reactor.notify(channel, database=reactor.databases[1])  # leads to the same place: both get it
    assert "were not all handled within" in message(settle, reactor, SOON)
    go.set()
    settle(reactor, PATIENCE)


def test_settle_leaves_no_handler_and_wants_a_running_reactor(dsn: str) -> None:
    reactor = Reactor(dsn)
    with reactor:
        settle(reactor)
        assert not reactor._engine.interest.wanted(reactor.databases[0])
    with pytest.raises(ClosedError, match="not running"):
        settle(reactor)
    with pytest.raises(ClosedError, match="not running"):
        settle(Reactor(dsn))


def test_running_tells_of_handlers_that_failed(dsn: str, channel: str) -> None:
    reactor = Reactor(dsn)

    recorder = Recorder()

    @reactor.on_channel(channel, decode=int)
    def record(db: Database, notification: Notification, value: int) -> None:
        recorder(db, notification)

    wanted = f"record failed on channel '{channel}', and 1 more"

    def run() -> None:
        with running(reactor):
            reactor.notify((channel, "x"), (channel, "y"))
            settle(reactor, PATIENCE)

    with pytest.raises(AssertionError, match=wanted) as told:
        run()
    assert isinstance(told.value.__cause__, ValueError)
    with running(reactor, handlers_may_fail=True):
        reactor.notify((channel, "x"))
        settle(reactor, PATIENCE)
    assert not reactor.handler_failed.receivers


def test_running_stops_the_reactor_when_the_block_raises(dsn: str) -> None:
    reactor = Reactor(dsn)
    with pytest.raises(ZeroDivisionError), running(reactor):
        raise ZeroDivisionError
    assert not reactor.running


def test_running_tells_of_a_handler_that_does_not_end(
    dsn: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgsignals.testing._handlers.TIMEOUT", SOON)
    reactor, go = Reactor(dsn), threading.Event()
    reactor.on_channel(channel)(lambda db, notification: go.wait(PATIENCE))
    block = running(reactor)
    block.__enter__()
    reactor.notify(channel)
    wait_until(lambda: reactor.status().databases[0].received, PATIENCE)
    assert message(block.__exit__, None, None, None).startswith(
        "a handler was still running 0.05 s"
    )
    go.set()
    assert reactor.join(PATIENCE)


# -- faults ----------------------------------------------------------------------------------------


def test_killed_listener_reconnects(pgsignals_reactor: ReactorFactory, channel: str) -> None:
    reactor = pgsignals_reactor(backoff=(0.01, 0.02))
    recorder = reactor.on_channel(channel)(Recorder())
    before = reactor.databases[0].backend_id
    kill_listener(reactor)
    wait_until(lambda: reactor.status().databases[0].gaps == 1, PATIENCE)
    reactor.notify((channel, "again"))
    settle(reactor)

    assert reactor.databases[0].backend_id != before
    assert recorder.payloads == ["again"]


def test_killed_listener_of_each_database(dsn: str, pgsignals_reactor: ReactorFactory) -> None:
    reactor = pgsignals_reactor(Database(dsn), Database(dsn), backoff=(0.01, 0.02))
    kill_listener(reactor)

    wait_until(lambda: [d.gaps for d in reactor.status().databases] == [1, 1], PATIENCE)


def test_killed_database_has_ended(connect: Connect) -> None:
    database = connect()
    kill_listener(database)

    with pytest.raises(pgsignals.ConnectionLostError):
        database.notify("x")
    assert "had ended already" in message(kill_listener, database)


def test_database_that_was_never_opened_has_no_listener(dsn: str) -> None:
    with pytest.raises(ClosedError):
        kill_listener(Database(dsn))


def test_proxy_leads_to_the_server_and_can_be_frozen(
    pgsignals_proxy: Proxy, dsn: str, connect: Connect, channel: str, admin: Admin
) -> None:
    database = connect(pgsignals_proxy.dsn)
    database.listen(channel)
    pgsignals_proxy.freeze()
    admin.notify(channel, "held")
    wait_until(lambda: pgsignals_proxy.held("to_client"), PATIENCE)
    assert database.drain() == []
    pgsignals_proxy.thaw()
    assert payloads(wait_until(database.drain, PATIENCE)) == ["held"]
    pgsignals_proxy.cut()
    wait_until(lambda: database.drain() or database.closed, PATIENCE)
    assert Database(pgsignals_proxy.dsn).name == f"127.0.0.1:{pgsignals_proxy.port}/postgres"


def test_listener_behind_a_frozen_proxy_is_killed_from_elsewhere(
    pgsignals_proxy: Proxy, dsn: str, connect: Connect, admin: Admin
) -> None:
    database = connect(pgsignals_proxy.dsn)
    pgsignals_proxy.freeze()
    kill_listener(database, dsn=dsn)

    assert database.backend_id not in admin.sessions()


@pytest.mark.usefixtures("_no_settings_from_outside")
def test_proxy_reads_a_connection_string_as_libpq_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "5999")
    with Proxy("postgresql://app:hunter2@db.example/shop?sslmode=verify-full") as proxy:
        assert proxy._forwarder.server == ("db.example", 5999)
        given = dict(pair.split("=") for pair in proxy.dsn.split())
        assert given["host"] == "db.example"  # TLS compares it
        assert (given["hostaddr"], given["port"]) == ("127.0.0.1", str(proxy.port))
    with Proxy("host=db.example hostaddr=192.0.2.7") as proxy:
        assert proxy._forwarder.server == ("192.0.2.7", 5999)
    proxy.close()
    with pytest.raises(ValueError, match="must name one host, not none"):
        Proxy("dbname=shop")
    with pytest.raises(ValueError, match="must name one host, not a,b"):
        Proxy("host=a,b")
    with pytest.raises(ConnectError, match="cannot be read") as refused:
        Proxy("postgresql://app:hunter2@[")
    assert "hunter2" not in str(refused.value)


def test_proxy_leads_to_a_unix_socket(postgres: Postgres) -> None:
    dsn = postgres.dsn_for(host=postgres.directory)
    with Proxy(dsn) as proxy, pgsignals.connect(proxy.dsn) as database:
        assert proxy.links == 1
        assert database.name.startswith("127.0.0.1:")


def test_proxy_rewrites_only_what_is_frozen(pgsignals_proxy: Proxy) -> None:
    with pytest.raises(ValueError, match="freeze 'to_client' first"):
        pgsignals_proxy.rewrite("to_client", bytes.upper)


# -- the plugin, in runs of pytest of their own ----------------------------------------------------


class Runs:
    """Runs users' tests as users do: in a process, where the plugin is found as installed."""

    def __init__(self, pytester: pytest.Pytester, dsn: str) -> None:
        self._pytester = pytester
        self.dsn = dsn

    def run(self, *options: str, **files: str) -> pytest.RunResult:
        self._pytester.makepyfile(**files)
        return self._pytester.runpytest_subprocess("-W", "error", *options, timeout=50)

    def run_with_server(self, *options: str, **files: str) -> pytest.RunResult:
        return self.run("--pgsignals-dsn", self.dsn, *options, **files)


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, dsn: str) -> Runs:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    site = pytester.mkdir("site")
    info = site / "kit-1.dist-info"  # as a wheel has it; the checkout may be installed or not
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kit\nVersion: 1\n")
    [(name, module)] = project["entry-points"]["pytest11"].items()
    (info / "entry_points.txt").write_text(f"[pytest11]\n{name} = {module}\n")
    (info / "RECORD").write_text(f"{module}.py,,\npgsignals/__init__.py,,\n")
    for part in (f"{module}.py", "pgsignals"):
        (site / part).symlink_to(ROOT / part)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PGSIGNALS_TEST_DSN", raising=False)
    return Runs(pytester, dsn)


SHOP = """
    from pgsignals import on_channel

    sold = []

    @on_channel("sold")
    def note(db, notification):
        sold.append(notification.payload)
"""


def test_fixtures_in_a_users_test(runs: Runs) -> None:
    result = runs.run_with_server(
        shop=SHOP,
        test_shop="""
            import pgsignals
            import shop
            from pgsignals.testing import kill_listener, settle, wait_until

            def test_handler(pgsignals_reactor, pgsignals_database):
                reactor = pgsignals_reactor()
                pgsignals.on_channel("extra")(lambda db, notification: None)
                pgsignals_database.notify(sold="42")
                settle(reactor)
                assert shop.sold == ["42"]

            def test_handlers_are_those_of_the_application(pgsignals_reactor):
                reactor = pgsignals_reactor(backoff=(0.01, 0.02))
                assert reactor.status().databases[0].channels == ("sold",)
                kill_listener(reactor)
                wait_until(lambda: reactor.status().databases[0].gaps)

            def test_capture(pgsignals_capture, pgsignals_channel, pgsignals_database):
                captured = pgsignals_capture(pgsignals_channel)
                pgsignals_database.notify(pgsignals_channel)
                assert captured.one().channel == pgsignals_channel
                captured.none()

            def test_proxy(pgsignals_proxy):
                with pgsignals.connect(pgsignals_proxy.dsn):
                    assert pgsignals_proxy.links == 1
        """,
    )

    result.assert_outcomes(passed=4)


def test_tests_of_the_documentation_pass(runs: Runs) -> None:
    shown = files(ROOT / "docs" / "testing.md")
    modules = {name.removesuffix(".py"): text for name, text in shown.items()}

    runs.run_with_server(**modules).assert_outcomes(passed=2)


def test_failures_show_the_users_line_and_what_is_missing(runs: Runs) -> None:
    result = runs.run_with_server(
        test_shop="""
            from pgsignals.testing import settle

            def test_nothing_sold(pgsignals_capture, pgsignals_database, pgsignals_dsn):
                orders = pgsignals_capture("orders")
                pgsignals_database.notify(orders="hunter2")
                orders.none()

            def test_handler(pgsignals_reactor):
                reactor = pgsignals_reactor()
                @reactor.on_channel("orders")
                def ship(db, notification):
                    raise ValueError("no such order")
                reactor.notify("orders")
                settle(reactor)
        """,
    )

    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*handler test_shop.test_handler.<locals>.ship failed on channel 'orders'*",
            "*orders.none()*",
            "E*channel 'orders': expected no notification, not 1",
            "E*Notification(channel='orders', payload=<7 chars>, pid=*)",
            "test_shop.py:6: AssertionError",
        ]
    )
    password = next(part for part in runs.dsn.split() if part.startswith("password="))[10:-1]
    assert password not in result.stdout.str()
    assert "_capture.py" not in result.stdout.str()
    result.stdout.fnmatch_lines(["pgsignals_dsn = <DSN of 127.0.0.1:*/postgres>*"])


@pytest.mark.parametrize("place", ["option", "variable", "file"])
def test_server_that_is_given_is_the_one_that_is_used(
    place: str, runs: Runs, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = []
    wrong = "host=127.0.0.1 port=1"
    pytester.makeini(f"[pytest]\npgsignals_dsn = {runs.dsn if place == 'file' else wrong}")
    if place != "file":
        monkeypatch.setenv("PGSIGNALS_TEST_DSN", runs.dsn if place == "variable" else wrong)
    if place == "option":
        options = ["--pgsignals-dsn", runs.dsn]
    result = runs.run(
        *options, test_it=f"def test_it(pgsignals_dsn): assert pgsignals_dsn == {runs.dsn!r}"
    )

    result.assert_outcomes(passed=1)


def test_server_that_cannot_be_reached_is_an_error(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSIGNALS_TEST_DSN", "postgresql://app:hunter2@127.0.0.1:1/shop")
    result = runs.run(test_it="def test_it(pgsignals_database): pass")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the tests have no server: PGSIGNALS_TEST_DSN: *port 1 failed*"])
    assert "hunter2" not in result.stdout.str()


def test_server_of_its_own_is_started_and_gone_after_the_run(
    runs: Runs, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSIGNALS_PG_BINDIR", str(postgres.bindir))
    result = runs.run(
        "-s",
        test_it="""
            def test_it(pgsignals_database):
                where = pgsignals_database.execute("SHOW data_directory").fetchone()[0]
                print(f"\\nserver in {where};")

            def test_same(pgsignals_database):
                test_it(pgsignals_database)
        """,
    )

    result.assert_outcomes(passed=2)
    [place] = {line for line in result.outlines if line.startswith("server in ")}
    assert not Path(place.removeprefix("server in ").rstrip(";.")).exists()


def test_no_server_at_all_is_an_error_that_says_what_to_do(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSIGNALS_PG_BINDIR", str(tmp_path))
    result = runs.run(test_it="def test_it(pgsignals_dsn): pass")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["the tests have no server: no PostgreSQL server for *; or set --pgsignals-dsn*"]
    )


def test_plugin_costs_nothing_until_a_fixture_is_requested(runs: Runs) -> None:
    result = runs.run(
        test_it="""
            import sys, threading

            def test_it(request):
                assert request.config.pluginmanager.has_plugin("pgsignals")
                foreign = {"pgsignals", "psycopg", "blinker"} & set(sys.modules)
                assert not foreign
                assert threading.active_count() == 1
                assert request.fixturenames == ["request"]
        """,
    )

    result.assert_outcomes(passed=1)


def test_program_may_import_the_package_before_it_starts_pytest(
    runs: Runs, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(test_it="def test_it(): pass")
    program = "import sys, pgsignals, pytest; sys.exit(pytest.main(['-W', 'error']))"
    result = pytester.run(sys.executable, "-c", program)

    assert result.ret == 0
    result.assert_outcomes(passed=1)


def test_plugin_can_be_switched_off(runs: Runs) -> None:
    result = runs.run("-p", "no:pgsignals", test_it="def test_it(pgsignals_dsn): pass")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E*fixture 'pgsignals_dsn' not found"])


def test_kit_needs_no_pytest(runs: Runs, pytester: pytest.Pytester) -> None:
    program = "import sys, pgsignals.testing; sys.exit('pytest' in sys.modules)"

    assert pytester.run(sys.executable, "-c", program).ret == 0
