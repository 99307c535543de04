"""Handlers of a reactor's own signals, and handlers that would fail in silence."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest

import pgsignals
from pgsignals import ChannelNameError, Database, Gap, Notification, Reactor, on, on_channel
from pgsignals._dispatch import calls as calls_module
from pgsignals._dispatch.calls import named
from pgsignals.testing import Proxy, isolated_handlers
from tests.support.admin import Admin
from tests.support.waiting import PATIENCE, wait_until


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    with isolated_handlers():
        yield


@pytest.fixture
def reactor(request: pytest.FixtureRequest, dsn: str) -> Iterator[Reactor]:
    """Runs, with one worker, and takes no time to come back."""
    with Reactor(dsn, backoff=(0.01, 0.02), channels=["first"]) as reactor:
        yield reactor
    request.node.funcargs.clear()


class Failures:
    """What a reactor's ``handler_failed`` tells."""

    def __init__(self, reactor: Reactor) -> None:
        self.seen: list[tuple[Any, Any, BaseException]] = []
        reactor.on("handler_failed")(self._note)

    def _note(self, _: Database, *, notification: Any, handler: Any, error: BaseException) -> None:
        self.seen.append((notification, handler, error))


def lose(reactor: Reactor, admin: Admin) -> None:
    """End its session, and wait for the next one."""
    before = reactor.status().databases[0].reconnects
    admin.kill(reactor.status().databases[0].backend_id or 0)
    wait_until(lambda: reactor.status().databases[0].reconnects == before + 1)


def settle(reactor: Reactor) -> None:
    """Return when what has happened before has been handled."""
    pgsignals.testing.settle(reactor, PATIENCE)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# What returns what nobody awaits


async def coroutine(db: object, **_: object) -> None: ...


def generator(db: object, **_: object) -> Iterator[int]:
    yield 1


async def async_generator(db: object, **_: object) -> AsyncIterator[int]:
    yield 1


class Asynchronous:
    async def __call__(self, db: object, **_: object) -> None: ...


class Methodical:
    async def handle(self, db: object, **_: object) -> None: ...


class Awaitable:
    """As a future: neither a coroutine nor a generator."""

    cancelled = False

    def cancel(self) -> None:
        Awaitable.cancelled = True

    def __await__(self) -> Iterator[None]:
        yield None


IDLE: dict[str, tuple[Callable[..., Any], str]] = {
    "object": (Asynchronous(), "coroutine.*threadsafe"),
    "lambda": (lambda db, **kw: coroutine(db, **kw), "coroutine.*threadsafe"),
    "partial": (functools.partial(lambda _, db, **kw: coroutine(db), 0), "coroutine.*threadsafe"),
    "awaitable": (lambda *_, **__: Awaitable(), "Awaitable.*threadsafe"),
    "generator": (generator, "generator.*yield"),
    "returns a generator": (lambda db, **kw: generator(db), "generator.*yield"),
    "async generator": (async_generator, "async generator.*yield"),
}


@pytest.mark.parametrize("how", ["alone", "among others", "batch", "decode", "around", "any"])
@pytest.mark.parametrize("what", IDLE)
@pytest.mark.filterwarnings("error")
def test_call_that_leaves_its_work_undone_has_failed(
    reactor: Reactor, channel: str, what: str, how: str
) -> None:
    handler, told = IDLE[what]
    failures = Failures(reactor)
    if how == "any":
        reactor.on("any_channel")(handler)
        reactor.listen(channel)
    else:
        options: dict[str, Any] = {"batch": how == "batch"}
        reactor.on_channel(channel, decode=str if how == "decode" else None, **options)(handler)
    if how == "among others":
        reactor.on_channel(channel)(lambda db, notification: None)
    if how == "around":
        reactor.wrap_handlers(lambda call, db, **given: call(db, **given))
    reactor.notify((channel, "1"))
    wait_until(lambda: failures.seen)

    ((notification, who, error),) = failures.seen
    assert who is handler
    with pytest.raises(TypeError, match=told):
        raise error
    if how == "any":
        assert notification is None
    else:
        assert (notification[0] if how == "batch" else notification).payload == "1"
    assert reactor.status().databases[0].failed == 1
    gc.collect()  # what was not closed would warn


def test_future_that_a_call_returns_is_cancelled_on_its_loop(
    reactor: Reactor, channel: str
) -> None:
    failures = Failures(reactor)

    async def main() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reactor.on_channel(channel)(lambda *_, **__: future)
        await asyncio.to_thread(reactor.notify, channel)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(future, PATIENCE)

    asyncio.run(main())
    wait_until(lambda: failures.seen)


def test_future_of_another_thread_that_a_call_returns_is_left_alone(
    reactor: Reactor, channel: str
) -> None:
    failures, done = Failures(reactor), threading.Event()

    async def work() -> None:
        done.set()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reactor.on_channel(channel)(lambda *_, **__: asyncio.run_coroutine_threadsafe(work(), loop))
        await asyncio.to_thread(reactor.notify, channel)
        assert await asyncio.to_thread(done.wait, PATIENCE)

    asyncio.run(main())
    settle(reactor)
    assert failures.seen == []


@pytest.mark.parametrize("result", [0, "text", object(), [1], {"a": 1}, iter([1])])
def test_any_other_result_is_ignored(reactor: Reactor, channel: str, result: object) -> None:
    failures = Failures(reactor)
    reactor.on_channel(channel)(lambda *_, **__: result)
    reactor.notify(channel)
    settle(reactor)

    assert failures.seen == []
    assert reactor.status().databases[0].dispatched


REGISTERED: dict[str, Callable[[Reactor, Any], object]] = {
    "on_channel": lambda _, handler: on_channel("orders")(handler),
    "on_channel of the reactor": lambda reactor, handler: reactor.on_channel("orders")(handler),
    "on": lambda _, handler: on("gap")(handler),
    "on of the reactor": lambda reactor, handler: reactor.on("gap")(handler),
    "any_channel": lambda _, handler: on("any_channel")(handler),
}


@pytest.mark.parametrize("how", REGISTERED)
@pytest.mark.parametrize(
    "handler",
    [coroutine, functools.partial(coroutine), Methodical().handle],
    ids=["function", "partial", "method"],
)
def test_coroutine_function_keeps_a_reactor_from_starting(dsn: str, how: str, handler: Any) -> None:
    reactor = Reactor(dsn)
    REGISTERED[how](reactor, handler)

    with pytest.raises(TypeError, match=r"coroutine function.*threadsafe"):
        reactor.start()
    assert not reactor.running
    assert reactor.databases[0].closed
    assert reactor.stop()
    pgsignals.signals.default.of_reactor["gap"].disconnect(handler)
    pgsignals.signals.default.of_reactor["any_channel"].disconnect(handler)
    reactor.gap.disconnect(handler)
    for signal in (pgsignals.channel("orders"), reactor.channel("orders")):
        signal.disconnect(handler)
    with reactor:
        assert reactor.running


def test_coroutine_function_that_is_only_connected_fails_when_it_is_called(
    dsn: str, admin: Admin
) -> None:
    reactor = Reactor(dsn, channels=["first"], backoff=(0.01, 0.02))
    failures = Failures(reactor)
    reactor.lost.connect(coroutine)
    with reactor:
        lose(reactor, admin)
        wait_until(lambda: failures.seen)

    ((notification, handler, error),) = failures.seen
    assert (notification, handler, type(error)) == (None, coroutine, TypeError)


@pytest.mark.parametrize("how", REGISTERED)
def test_coroutine_function_is_refused_while_a_reactor_runs(reactor: Reactor, how: str) -> None:
    with pytest.raises(TypeError, match=r"coroutine function.*threadsafe"):
        REGISTERED[how](reactor, coroutine)

    senders = [*reactor.databases, reactor]
    assert pgsignals.signals.default.handlers_for(senders) == {}
    assert reactor._engine.channels.handlers_for(senders) == {}


def test_coroutine_function_for_another_database_is_nobody_elses_business(
    reactor: Reactor, dsn: str, channel: str
) -> None:
    on_channel(channel, sender=Database(dsn))(coroutine)
    reactor.on_channel(channel, sender=Database(dsn))(coroutine)
    reactor.stop()
    reactor.start()


# on


def test_handlers_of_the_module_hear_the_signals_of_every_reactor_before_its_own(
    dsn: str, admin: Admin
) -> None:
    told: list[tuple[str, str, object]] = []

    def note(where: str, name: str, reactor: Any = pgsignals) -> None:
        def handler(sender: object, **_: object) -> None:
            told.append((where, name, sender))

        reactor.on(name)(handler)

    names = ["connected", "lost", "gap", "idle", "stopped", "any_channel", "handler_failed"]
    for where in ("module", "again"):
        for name in names:
            note(where, name)
    reactor = Reactor(dsn, timeout=0.05, backoff=(0.01, 0.02), channels=["first"])
    for name in names:
        note("own", name, reactor)
    reactor.on_channel("first")(lambda db, notification: 1 / 0)
    with reactor:
        reactor.notify("first")
        wait_until(lambda: ("own", "any_channel", reactor.databases[0]) in told)
        lose(reactor, admin)
        wait_until(lambda: ("own", "gap", reactor.databases[0]) in told)
        wait_until(lambda: ("own", "idle", reactor) in told)

    for name in names:
        sender = reactor if name in ("idle", "stopped") else reactor.databases[0]
        mine = [one for one in told if one[1] == name]
        assert mine[:3] == [(where, name, sender) for where in ("module", "again", "own")]
    order = list(dict.fromkeys(name for where, name, _ in told if name != "idle"))
    assert order == ["connected", "handler_failed", "any_channel", "lost", "gap", "stopped"]


def test_handler_of_the_module_hears_two_reactors(dsn: str) -> None:
    heard: list[object] = []
    on("connected")(lambda db, resumed: heard.append(db))
    with Reactor(dsn, channels=["x"]) as first, Reactor(dsn, channels=["x"]) as second:
        wait_until(lambda: len(heard) == 2)

    assert set(heard) == {*first.databases, *second.databases}


def test_any_channel_of_the_module_makes_nobody_listen(reactor: Reactor, channel: str) -> None:
    heard: list[str] = []
    before = reactor.status().databases[0].channels
    on("any_channel")(lambda db, notification: heard.append(notification.payload))
    reactor.listen()
    assert reactor.status().databases[0].channels == before
    reactor.notify(first="1")
    wait_until(lambda: heard)

    assert heard == ["1"]


# Receivers that fail


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("how", ["on", "connect", "module"])
@pytest.mark.parametrize("name", ["connected", "lost", "gap", "any_channel"])
def test_receiver_that_fails_is_counted_and_told(
    dsn: str, admin: Admin, name: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    reactor = Reactor(dsn, backoff=(0.01, 0.02), channels=["first"])
    failures = Failures(reactor)
    if how == "connect":
        getattr(reactor, name).connect(fails)
    else:
        register: Any = on if how == "module" else reactor.on
        register(name)(fails)
    with reactor:
        reactor.notify("first")
        if name == "any_channel":  # else the loss may take it along
            wait_until(lambda: failures.seen)
        lose(reactor, admin)
        reactor.notify("first")
        wait_until(lambda: failures.seen)
    failed = reactor.status().databases[0].failed

    assert {(notification, who) for notification, who, _ in failures.seen} == {(None, fails)}
    assert failed == len(failures.seen)
    assert [r for r in caplog.records if r.exc_info and r.levelno == logging.ERROR]


@pytest.mark.parametrize("name", ["idle", "stopped", "handler_failed"])
def test_receiver_without_a_database_that_fails_is_logged_alone(
    dsn: str, name: Any, caplog: pytest.LogCaptureFixture
) -> None:
    reactor = Reactor(dsn, timeout=0.01)
    failures = Failures(reactor)
    called = threading.Event()

    def fail(*_: object, **__: object) -> None:
        called.set()
        raise RuntimeError("on purpose")

    register: Any = reactor.on(name)
    register(fail)
    reactor.on_channel("first")(fails)
    with reactor:
        reactor.notify("first")
        wait_until(lambda: failures.seen)
        if name != "stopped":
            assert called.wait(PATIENCE)
    assert called.is_set()

    assert [who for _, who, _ in failures.seen] == [fails]
    assert reactor.status().databases[0].failed == 1
    logged = [r for r in caplog.records if r.exc_info and "receiver" in r.getMessage()]
    assert logged
    assert logged[0].exc_info is not None


@pytest.mark.parametrize("name", ["connected", "lost", "gap", "idle", "handler_failed"])
def test_transaction_that_a_receiver_leaves_open_is_rolled_back(
    dsn: str, admin: Admin, name: Any, caplog: pytest.LogCaptureFixture
) -> None:
    admin.execute("CREATE TABLE IF NOT EXISTS left_open (n int)")
    admin.execute("TRUNCATE left_open")
    reactor = Reactor(dsn, timeout=0.05, backoff=(0.01, 0.02))
    left, stored = threading.Event(), threading.Event()

    def leave(sender: Any, **_: object) -> None:
        if not left.is_set():
            database = sender if isinstance(sender, Database) else sender.databases[0]
            database.execute("BEGIN")
            database.execute("INSERT INTO left_open VALUES (1)")
            left.set()

    @reactor.on_channel("store")
    def store(db: Database, notification: Notification) -> None:
        if notification.payload == "fail":
            raise RuntimeError
        db.execute("INSERT INTO left_open VALUES (2)")
        stored.set()

    register: Any = reactor.on(name)
    register(leave)
    with reactor:
        reactor.notify(store="fail")
        wait_until(lambda: reactor.status().databases[0].failed)
        lose(reactor, admin)
        assert left.wait(PATIENCE)
        wait_until(lambda: reactor.status().databases[0].state == "listening")
        reactor.notify(store="")
        assert stored.wait(PATIENCE)

    assert admin.execute("SELECT n FROM left_open") == [(2,)]
    assert "leave left a transaction open" in caplog.text
    admin.execute("DROP TABLE left_open")


def test_receiver_of_handler_failed_works_outside_the_transaction_that_failed(
    reactor: Reactor, channel: str, admin: Admin
) -> None:
    admin.execute("CREATE TABLE failures (payload text)")

    @reactor.on_channel(channel)
    def fail(db: Database, notification: Notification) -> None:
        db.execute("BEGIN")
        db.execute("SELECT 1 / 0")

    errors: list[BaseException] = []

    @reactor.on("handler_failed")
    def keep(db: Database, *, notification: Any, handler: object, error: BaseException) -> None:
        try:
            db.execute("INSERT INTO failures VALUES (%s)", (notification.payload,))
        except psycopg.Error as exc:
            errors.append(exc)

    reactor.notify((channel, "1"), (channel, "2"))
    settle(reactor)

    assert errors == []
    assert admin.execute("SELECT payload FROM failures") == [("1",), ("2",)]
    admin.execute("DROP TABLE failures")


def test_receiver_that_is_stuck_is_named(
    dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, begun = threading.Event(), threading.Event()
    reactor = Reactor(dsn, channels=["first"])

    @reactor.on("connected")
    def stuck(db: Database, *, resumed: bool) -> None:
        begun.set()
        go.wait(PATIENCE)

    reactor.start()
    assert begun.wait(PATIENCE)
    assert reactor.stop(0) is False
    go.set()

    assert "stuck" in caplog.text


def test_filter_of_the_log_that_raises_keeps_nothing_from_being_told(
    reactor: Reactor, channel: str, admin: Admin
) -> None:
    class Bad(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("a filter of the user's")

    failures, gaps = Failures(reactor), []
    reactor.on("gap")(lambda db, gap: gaps.append(gap))
    reactor.on("gap")(fails)
    reactor.on_channel(channel)(fails)
    after: list[str] = []
    reactor.on_channel(channel)(lambda db, notification: after.append(notification.payload))
    bad = Bad()
    calls_module.logger.logger.addFilter(bad)
    try:
        reactor.notify((channel, "1"), (channel, "2"))
        wait_until(lambda: after == ["1", "2"])
        lose(reactor, admin)
        wait_until(lambda: len(failures.seen) == 3)
    finally:
        calls_module.logger.logger.removeFilter(bad)

    assert [who for _, who, _ in failures.seen] == [fails] * 3
    assert len(gaps) == 1
    assert reactor.status().databases[0].failed == 3


# Gaps and drops in the log


def test_gap_is_a_line_in_the_log(
    reactor: Reactor, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    gaps: list[Gap] = []
    reactor.on("gap")(lambda db, gap: gaps.append(gap))
    lose(reactor, admin)
    wait_until(lambda: gaps)

    (line,) = [line for line in warnings(caplog) if "gap" in line]
    assert reactor.databases[0].name in line
    assert "(reconnect)" in line
    assert gaps[0].since.isoformat() in line
    assert gaps[0].until.isoformat() in line
    assert "+00:00" in line
    assert "all channels" in line


def test_drops_and_their_gap_are_lines_in_the_log(
    dsn: str, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    go, begun = threading.Event(), threading.Event()
    told: list[Gap] = []
    reactor = Reactor(dsn, max_backlog=10)
    reactor.on("gap")(lambda db, gap: told.append(gap))

    @reactor.on_channel(channel)
    def handler(db: Database, notification: Notification) -> None:
        begun.set()
        go.wait(PATIENCE)

    with reactor:
        admin.notify(channel, "1")
        assert begun.wait(PATIENCE)
        try:
            admin.flood(channel, 1000)
            # While no worker is free for the gap.
            wait_until(lambda: any("backlog is full" in line for line in warnings(caplog)))
            wait_until(lambda: reactor.status().databases[0].received == 1001)
        finally:
            go.set()
        wait_until(lambda: told)
        dropped = reactor.status().databases[0].dropped

    lines = [line for line in warnings(caplog) if "backlog is full" in line]
    assert len(lines) <= 2  # the first, and the rest at the end at the latest
    assert f"{dropped} in all" in lines[-1]
    (gap,) = [line for line in warnings(caplog) if "gap (overflow)" in line]
    assert f"{dropped} missed" in gap
    assert channel in gap


def test_gap_of_many_channels_names_some(dsn: str) -> None:
    names = frozenset(f"channel {number:03}" for number in range(100))
    text = named(names)

    assert "'channel 000'" in text
    assert text.endswith(" and 90 more")


def test_gap_that_nobody_hears_any_more_is_a_warning(
    dsn: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    def made_by_a_factory() -> Reactor:
        reactor = Reactor(dsn, backoff=(0.01, 0.02), channels=["first"])

        @reactor.gap.connect
        def reload(db: Database, *, gap: Gap) -> None: ...

        return reactor

    with made_by_a_factory() as reactor:
        gc.collect()
        lose(reactor, admin)
        wait_until(lambda: "no receiver is left for the gap" in caplog.text)


@pytest.mark.parametrize("how", ["never", "disconnected", "another", "module", "other sender"])
def test_gap_that_nobody_was_to_hear_is_no_such_warning(
    dsn: str, admin: Admin, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    reactor = Reactor(dsn, backoff=(0.01, 0.02), channels=["first"])

    def reload(*_: object, **__: object) -> None: ...

    if how == "disconnected":
        reactor.gap.connect(reload)
        reactor.gap.disconnect(reload)
    elif how != "never":
        sender = "nobody" if how == "other sender" else reactor.databases[0]
        reactor.gap.connect(lambda *_, **__: None, sender)
        gc.collect()
    if how == "another":
        reactor.gap.connect(reload)
    if how == "module":
        on("gap")(reload)
    with reactor:
        lose(reactor, admin)
        wait_until(lambda: "gap (reconnect)" in caplog.text)
        settle(reactor)

    assert "no receiver is left" not in caplog.text


# What can never fire


def test_reactor_without_channels_and_handlers_is_a_warning(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Reactor(dsn) as reactor:
        (line,) = warnings(caplog)
        assert "nothing will arrive until" in line
        assert reactor.databases[0].name in line


@pytest.mark.parametrize(
    "prepare",
    [
        lambda reactor: reactor.listen("first"),
        lambda reactor: reactor.on_channel("first")(fails),
        lambda _: on_channel("first")(fails),
        lambda _: on("connected")(lambda db, resumed: None),
        lambda reactor: reactor.idle.connect(fails),
    ],
    ids=["listen", "on_channel", "module", "on", "connect"],
)
def test_reactor_that_has_something_is_no_warning(
    dsn: str, caplog: pytest.LogCaptureFixture, prepare: Callable[[Reactor], object]
) -> None:
    reactor = Reactor(dsn)
    prepare(reactor)
    with reactor:
        pass

    assert warnings(caplog) == []


def test_sender_that_no_running_reactor_has_is_a_warning(
    reactor: Reactor, dsn: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = Database(dsn)
    on_channel(channel, sender=reactor.databases[0])(generator)
    reactor.on_channel(channel, sender=reactor.databases[0])(generator)
    assert warnings(caplog) == []
    on_channel(channel, sender=other)(generator)
    reactor.on_channel(channel, sender=other)(generator)

    assert len(warnings(caplog)) == 2
    assert all("generator is never called" in line for line in warnings(caplog))


def test_sender_that_no_reactor_has_is_a_warning_at_the_start(
    dsn: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    served, other = Database(dsn), Database(dsn)
    reactor = Reactor(served)
    for sender in (served, other):
        on_channel(channel, sender=sender)(fails)
        reactor.on_channel(channel, sender=sender)(fails)
    assert warnings(caplog) == []
    with reactor:
        pass

    assert len([line for line in warnings(caplog) if "fails is never called" in line]) == 2


def test_channel_of_the_probes_is_nobody_elses(reactor: Reactor, dsn: str) -> None:
    for call in (
        lambda: Reactor(dsn, channels=["pgsignals.probe"]),
        lambda: reactor.listen("pgsignals.probe"),
        lambda: reactor.databases[0].listen("pgsignals.probe"),
        lambda: reactor.channel("pgsignals.probe"),
        lambda: pgsignals.channel("pgsignals.probe"),
        lambda: reactor.on_channel("orders", "pgsignals.probe"),
    ):
        with pytest.raises(ChannelNameError, match="probes"):
            call()
    with Database(dsn) as watching:  # who wants to see them may
        watching.listen("pgsignals.probe")
        watching.notify("pgsignals.probe")


# Registering where waiting would hurt


def test_registering_on_a_running_loop_does_not_wait_for_the_server(
    proxied: str, proxy: Proxy, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Reactor(proxied, channels=["first"], probe_interval=None) as reactor:
        proxy.freeze()

        async def register() -> None:
            on_channel(channel)(fails)
            reactor.on_channel(channel)(fails)
            reactor.channel("another").connect(fails)

        asyncio.run(register())
        assert channel not in reactor.status().databases[0].channels
        proxy.thaw()
        wait_until(lambda: channel in reactor.status().databases[0].channels)

    assert "not acknowledged" not in caplog.text


def test_finalizer_on_the_reader_registers_without_waiting(
    reactor: Reactor, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    life, done = reactor._engine.life, threading.Event()
    assert life is not None

    def finalize() -> None:
        reactor.on_channel(channel)(fails)
        on_channel(channel, "another")(fails)
        done.set()

    life.reader.command(finalize)
    assert done.wait(PATIENCE)
    wait_until(lambda: channel in reactor.status().databases[0].channels)

    assert "not acknowledged" not in caplog.text


def test_finalizer_on_an_idle_worker_registers_without_waiting(
    proxied: str, proxy: Proxy, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()
    with Reactor(proxied, channels=["first"], probe_interval=None) as reactor:
        life = reactor._engine.life
        assert life is not None
        proxy.freeze()

        def finalize() -> None:
            reactor.on_channel(channel)(fails)
            done.set()

        life.backlog.announce(None, finalize)
        assert done.wait(PATIENCE)
        assert channel not in reactor.status().databases[0].channels
        proxy.thaw()

    assert "not acknowledged" not in caplog.text


# Channels that come and go


def test_what_was_kept_of_channels_that_had_handlers_is_forgotten(
    reactor: Reactor, new_channel: Callable[[], str]
) -> None:
    seen: list[str] = []

    def handler(db: Database, notification: Notification) -> None:
        seen.append(notification.channel)

    for _ in range(50):
        name = new_channel()
        reactor.on_channel(name, batch=False)(handler)
        reactor.notify(name)
        wait_until(lambda name=name: name in seen)  # type: ignore[misc]
        reactor.channel(name).disconnect(handler)
    life = reactor._engine.life
    assert life is not None
    (link,) = life.reader.links

    def forgotten() -> bool:
        gc.collect()
        return not reactor._engine.channels._signals and len(life.workers._routes.of(link)) < 3

    wait_until(forgotten)
