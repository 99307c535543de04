"""What handlers are given, in which order, and what they may do."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pgsignals
from pgsignals import Database, Gap, Notification, Reactor, on_channel
from pgsignals._dispatch import workers as _workers
from pgsignals._pure.burst import Burst
from pgsignals._sources import listen as _link
from pgsignals._wire import session as _driver
from tests.support.admin import Admin
from tests.support.waiting import PATIENCE, Background, wait_until


@pytest.fixture
def reactor(request: pytest.FixtureRequest, dsn: str) -> Iterator[Reactor]:
    """Runs, with one worker."""
    with Reactor(dsn) as reactor:
        yield reactor
    request.node.funcargs.clear()  # else pytest keeps it, and it keeps its waker's sockets


def collect(reactor: Reactor, name: str, **options: Any) -> list[str]:
    """The payloads that arrive on channel *name*, as they come."""
    arrived: list[str] = []

    def collect(_: Database, notification: Notification, **__: object) -> None:
        arrived.append(notification.payload)

    reactor.on_channel(name, **options)(collect)
    return arrived


def settle(reactor: Reactor, database: Database | None = None) -> None:
    """Return when what was notified before has been handled; for one worker."""
    database = database or reactor.databases[0]
    marks: list[Database] = []

    @reactor.on_channel("mark of the test")
    def mark(sender: Database, notification: Notification) -> None:
        marks.append(sender)

    reactor.notify("mark of the test", database=database)
    wait_until(lambda: marks)
    reactor.channel("mark of the test").disconnect(mark)


class Gate(threading.Event):
    """Holds handlers until it is set, but not for ever if the test fails before."""

    def __init__(self) -> None:
        super().__init__()
        self._until = time.monotonic() + PATIENCE

    def hold(self, *_: object, **__: object) -> None:
        self.wait(max(0.0, self._until - time.monotonic()))


class Failures:
    """What a reactor's ``handler_failed`` tells."""

    def __init__(self, reactor: Reactor) -> None:
        self.seen: list[tuple[Database, Any, object, BaseException]] = []
        reactor.handler_failed.connect(self._note, weak=False)

    def _note(
        self, sender: Database, notification: object, handler: object, error: BaseException
    ) -> None:
        self.seen.append((sender, notification, handler, error))


@pytest.fixture
def module_handlers(channel: str) -> Iterator[None]:
    """Takes the module's handlers of :func:`channel` away after the test."""
    yield
    signal = pgsignals.channel(channel)
    for receiver in list(signal.receivers_for(None)):
        signal.disconnect(receiver)


# What they are given


def test_handler_is_given_the_database_and_the_notification(
    reactor: Reactor, channel: str, admin: Admin
) -> None:
    seen: list[tuple[object, Notification]] = []

    @reactor.on_channel(channel)
    def handler(sender: Database, notification: Notification) -> None:
        seen.append((sender, notification))

    admin.notify(channel, "43 paid")
    wait_until(lambda: seen)

    assert seen == [(reactor.databases[0], (channel, "43 paid", admin.pid))]
    assert isinstance(seen[0][1], Notification)


def test_handler_runs_on_a_worker(reactor: Reactor, channel: str) -> None:
    seen: list[str] = []
    reactor.on_channel(channel)(lambda *_, **__: seen.append(threading.current_thread().name))
    reactor.notify(channel)
    wait_until(lambda: seen)

    assert seen == ["pgsignals-worker-1"]


def test_handler_may_have_several_channels(
    reactor: Reactor, new_channel: Callable[[], str]
) -> None:
    first, second = new_channel(), new_channel()
    seen: list[str] = []

    @reactor.on_channel(first, second)
    def handler(_: Database, notification: Notification) -> None:
        seen.append(notification.channel)

    reactor.notify(first, second, first)
    wait_until(lambda: len(seen) == 2)  # the server folds equal ones of one transaction
    reactor.notify(first)
    wait_until(lambda: len(seen) == 3)

    assert seen == [first, second, first]


def test_handlers_of_the_module_run_before_the_reactors_in_order_of_connection(
    reactor: Reactor, channel: str, module_handlers: None
) -> None:
    seen: list[str] = []

    def say(name: str) -> Callable[..., None]:
        return lambda *_, **__: seen.append(name)

    reactor.any_channel.connect(say("any"), weak=False)
    reactor.on_channel(channel)(say("reactor 1"))
    on_channel(channel)(say("module 1"))
    reactor.on_channel(channel)(say("reactor 2"))
    on_channel(channel)(say("module 2"))
    reactor.notify((channel, "1"))
    wait_until(lambda: "any" in seen)

    assert seen == ["module 1", "module 2", "reactor 1", "reactor 2", "any"]


def test_decoded_payload_becomes_the_value(reactor: Reactor, channel: str) -> None:
    seen: list[object] = []

    @reactor.on_channel(channel, decode=json.loads)
    def handler(_: Database, notification: Notification, value: object) -> None:
        seen.append((notification.payload, value))

    reactor.notify((channel, '{"a": 1}'))
    wait_until(lambda: seen)

    assert seen == [('{"a": 1}', {"a": 1})]


def test_refused_payload_goes_to_handler_failed_and_not_to_the_handler(
    reactor: Reactor, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = Failures(reactor)
    values: list[object] = []

    @reactor.on_channel(channel, decode=json.loads)
    def handler(_: Database, notification: Notification, value: object) -> None:
        values.append(value)

    others = collect(reactor, channel)
    reactor.notify((channel, "top secret"), (channel, "2"))
    wait_until(lambda: len(others) == 2)

    ((sender, notification, who, error),) = failures.seen
    assert (sender, notification.payload, who) == (reactor.databases[0], "top secret", handler)
    assert isinstance(error, json.JSONDecodeError)
    assert values == [2]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, RecursionError, MemoryError])
def test_decode_may_fail_in_any_way(
    reactor: Reactor, channel: str, error: type[BaseException]
) -> None:
    failures = Failures(reactor)

    def decode(text: str) -> str:
        if text == "bad":
            raise error
        return text

    seen = collect(reactor, channel, decode=decode)
    reactor.notify((channel, "bad"), (channel, "good"))
    wait_until(lambda: seen)

    assert seen == ["good"]
    assert [type(failure[3]) for failure in failures.seen] == [error]


# Batches


def test_batch_handler_is_given_what_is_there(reactor: Reactor, channel: str, admin: Admin) -> None:
    batches: list[list[str]] = []

    @reactor.on_channel(channel, batch=True)
    def handler(sender: Database, notifications: list[Notification]) -> None:
        assert sender is reactor.databases[0]
        assert {one.channel for one in notifications} == {channel}
        batches.append([one.payload for one in notifications])

    admin.flood(channel, 5000)
    wait_until(lambda: sum(map(len, batches)) == 5000)

    assert [text for batch in batches for text in batch] == [str(n) for n in range(1, 5001)]
    assert all(batches)
    assert len(batches) < 1000


def test_batch_has_one_channel(reactor: Reactor, new_channel: Callable[[], str]) -> None:
    first, second = new_channel(), new_channel()
    batches: list[list[Notification]] = []

    @reactor.on_channel(first, second, batch=True)
    def handler(_: Database, notifications: list[Notification]) -> None:
        batches.append(notifications)

    reactor.notify(*((name, str(n)) for n in range(50) for name in (first, second)))
    wait_until(lambda: sum(map(len, batches)) == 100)

    assert all(len({one.channel for one in batch}) == 1 for batch in batches)
    for name in (first, second):
        texts = [one.payload for batch in batches for one in batch if one.channel == name]
        assert texts == [str(n) for n in range(50)]


def test_batch_with_decode_has_values_and_lacks_what_was_refused(
    reactor: Reactor, channel: str
) -> None:
    failures = Failures(reactor)
    texts: list[str] = []
    decoded: list[int] = []

    @reactor.on_channel(channel, batch=True, decode=int)
    def handler(_: Database, notifications: list[Notification], values: list[int]) -> None:
        assert len(notifications) == len(values)
        assert values
        texts.extend(one.payload for one in notifications)
        decoded.extend(values)

    reactor.notify((channel, "1"), (channel, "x"), (channel, "2"))
    wait_until(lambda: len(decoded) == 2)
    reactor.notify((channel, "y"))
    settle(reactor)

    assert (texts, decoded) == (["1", "2"], [1, 2])
    assert [one.payload for _, given, _, _ in failures.seen for one in given] == ["x", "y"]


def test_batch_that_fails_is_told_with_its_list(reactor: Reactor, channel: str) -> None:
    failures = Failures(reactor)
    seen: list[str] = []

    @reactor.on_channel(channel, batch=True)
    def handler(_: Database, notifications: list[Notification]) -> None:
        seen.extend(one.payload for one in notifications)
        raise RuntimeError("on purpose")

    reactor.notify((channel, "1"), (channel, "2"))
    wait_until(lambda: len(seen) == 2)
    settle(reactor)

    told = [one.payload for _, given, _, _ in failures.seen for one in given]
    assert told == ["1", "2"]
    assert {who for _, _, who, _ in failures.seen} == {handler}


@pytest.mark.parametrize("others", [0, 1])
def test_failed_batch_is_nobody_elses_to_change(
    reactor: Reactor, channel: str, others: int
) -> None:
    given: list[int] = []

    def handler(_: Database, notifications: list[Notification]) -> None:
        given.append(len(notifications))
        raise RuntimeError("on purpose")

    def clear(_: Database, *, notification: list[Notification], **__: object) -> None:
        notification.clear()

    reactor.handler_failed.connect(clear)
    for _ in range(1 + others):
        reactor.on_channel(channel, batch=True)(functools.partial(handler))
    reactor.notify((channel, "1"), (channel, "2"))
    wait_until(lambda: reactor.status().databases[0].dispatched == 2)

    assert sum(given) == 2 * (1 + others)


def test_batch_and_single_handlers_of_one_channel_get_everything(
    reactor: Reactor, channel: str, admin: Admin
) -> None:
    single = collect(reactor, channel)
    batched: list[str] = []

    @reactor.on_channel(channel, batch=True)
    def handler(_: Database, notifications: list[Notification]) -> None:
        batched.extend(one.payload for one in notifications)

    admin.flood(channel, 300)
    wait_until(lambda: len(single) == len(batched) == 300)

    assert single == batched == [str(n) for n in range(1, 301)]


def test_single_handler_that_disconnects_itself_is_not_called_for_the_rest_of_a_batch(
    reactor: Reactor, channel: str, admin: Admin
) -> None:
    seen: list[str] = []
    batched: list[str] = []
    busy, gate = threading.Event(), Gate()

    @reactor.on_channel("gate of the test")
    def hold(*_: object, **__: object) -> None:
        busy.set()
        gate.hold()

    @reactor.on_channel(channel)
    def once(_: Database, notification: Notification) -> None:
        seen.append(notification.payload)
        reactor.channel(channel).disconnect(once)

    @reactor.on_channel(channel, batch=True)
    def batch(_: Database, notifications: list[Notification]) -> None:
        batched.extend(one.payload for one in notifications)

    reactor.notify("gate of the test")
    assert busy.wait(PATIENCE)
    reactor.notify(*((channel, str(n)) for n in range(5)))
    wait_until(lambda: reactor.status().backlog == 5)
    gate.set()
    wait_until(lambda: len(batched) == 5)

    assert seen == ["0"]


# Senders, weak references


def test_handler_of_one_sender_gets_only_its_notifications(dsn: str, channel: str) -> None:
    with Reactor(dsn, dsn) as reactor:
        first, second = reactor.databases
        of_first = collect(reactor, channel, sender=first)
        of_all = collect(reactor, channel)
        reactor.notify((channel, "x"), database=first)
        wait_until(lambda: len(of_all) == 2)  # both listen to the same server
        assert of_first == ["x"]
        reactor.listen()
        reactor.channel(channel).send(second, notification=Notification(channel, "own", 1))

        assert (of_first, of_all[-1]) == (["x"], "own")


def test_weak_handler_is_forgotten_and_its_channel_unlistened(
    reactor: Reactor, channel: str
) -> None:
    class Cache:
        def clear(self, _: Database, notification: Notification) -> None: ...

    cache = Cache()
    reactor.on_channel(channel, weak=True)(cache.clear)
    reactor.listen()  # waits for what was asked for before
    assert reactor.status().databases[0].channels == (channel,)
    del cache
    gc.collect()

    wait_until(lambda: reactor.status().databases[0].channels == ())


def test_muted_channel_calls_nobody(reactor: Reactor, channel: str) -> None:
    arrived = collect(reactor, channel)
    with reactor.channel(channel).muted():
        reactor.notify((channel, "1"))
        settle(reactor)
    reactor.notify((channel, "2"))
    wait_until(lambda: arrived)

    assert arrived == ["2"]


def test_connected_to_hears_within_its_block(reactor: Reactor, channel: str) -> None:
    seen: list[str] = []

    def handler(_: Database, notification: Notification) -> None:
        seen.append(notification.payload)

    with reactor.channel(channel).connected_to(handler):
        reactor.notify((channel, "1"))
        wait_until(lambda: seen)
    reactor.notify((channel, "2"))
    settle(reactor)

    assert seen == ["1"]


def test_any_channel_hears_every_notification(
    reactor: Reactor, new_channel: Callable[[], str]
) -> None:
    first, second = new_channel(), new_channel()
    seen: list[tuple[str, str]] = []
    reactor.any_channel.connect(lambda _, notification: seen.append(notification[:2]), weak=False)
    collect(reactor, first)
    reactor.listen(second)
    reactor.notify((first, "1"), (second, "2"))
    wait_until(lambda: len(seen) == 2)

    assert seen == [(first, "1"), (second, "2")]


# A handler cannot hurt it


@pytest.mark.parametrize(
    "error", [RuntimeError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError]
)
def test_handler_that_raises_hurts_nobody(
    reactor: Reactor,
    channel: str,
    error: type[BaseException],
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = Failures(reactor)
    before = collect(reactor, channel)

    @reactor.on_channel(channel)
    def fail(_: Database, notification: Notification) -> None:
        raise error("on purpose")

    after = collect(reactor, channel)
    with caplog.at_level(logging.ERROR, "pgsignals"):
        reactor.notify((channel, "1"), (channel, "2"))
        wait_until(lambda: len(after) == 2)

    assert before == after == ["1", "2"]
    assert [(n.payload, who, type(e)) for _, n, who, e in failures.seen] == [
        ("1", fail, error),
        ("2", fail, error),
    ]
    assert len([r for r in caplog.records if r.exc_info]) == 2
    assert reactor.status().databases[0].failed == 2


def test_only_handler_that_raises_is_told_and_the_next_notification_runs(
    reactor: Reactor, channel: str
) -> None:
    failures = Failures(reactor)
    calls: list[str] = []

    @reactor.on_channel(channel)
    def fail(_: Database, notification: Notification) -> None:
        calls.append(notification.payload)
        raise SystemExit(3)

    reactor.notify(*((channel, str(n)) for n in range(1000)))
    wait_until(lambda: len(failures.seen) == 1000)

    assert calls == [str(n) for n in range(1000)]
    assert reactor.running


def test_receiver_of_handler_failed_that_raises_hurts_nobody(
    reactor: Reactor, channel: str
) -> None:
    @reactor.handler_failed.connect
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("twice")

    def useless() -> None: ...

    reactor.channel(channel).connect(useless)  # a TypeError for each
    after = collect(reactor, channel)
    reactor.notify((channel, "1"), (channel, "2"))
    wait_until(lambda: len(after) == 2)

    assert after == ["1", "2"]


@pytest.mark.parametrize("name", ["connected", "idle", "any_channel"])
def test_receiver_of_a_signal_of_the_reactor_that_raises_hurts_nobody(
    dsn: str, channel: str, name: str
) -> None:
    reactor = Reactor(dsn, timeout=0.01)
    calls: list[object] = []

    def fail(*_: object, **__: object) -> None:
        calls.append(True)
        raise RuntimeError("on purpose")

    getattr(reactor, name).connect(fail)
    arrived = collect(reactor, channel)
    with reactor:
        reactor.notify((channel, "1"))
        wait_until(lambda: arrived and calls)

    assert arrived == ["1"]


def test_coroutine_function_is_refused_also_by_the_signal(reactor: Reactor, channel: str) -> None:
    failures = Failures(reactor)

    async def handler(_: Database, notification: Notification) -> None: ...

    with pytest.raises(TypeError, match=r"handler is a coroutine function.*threadsafe"):
        reactor.on_channel(channel)(handler)
    assert not reactor.channel(channel).receivers
    reactor.channel(channel).connect(handler)
    after = collect(reactor, channel)
    reactor.notify((channel, "1"))
    wait_until(lambda: after)

    ((_, notification, _, error),) = failures.seen
    assert notification.payload == "1"
    assert isinstance(error, TypeError)
    assert "coroutine" in str(error)
    assert "threadsafe" in str(error)


def test_stuck_handler_does_not_keep_the_reader_from_reading(
    reactor: Reactor, channel: str, admin: Admin
) -> None:
    gate = Gate()
    reactor.on_channel(channel)(gate.hold)
    try:
        reactor.listen()
        admin.flood(channel, 20_000, 100)
        wait_until(lambda: reactor.status().databases[0].received >= 20_000)
        assert reactor.status().databases[0].dispatched == 0
    finally:
        gate.set()


def test_stuck_handler_does_not_keep_another_worker_from_working(
    dsn: str, new_channel: Callable[[], str]
) -> None:
    slow, quick = new_channel(), new_channel()
    with Reactor(dsn, workers=2) as reactor:
        gate = Gate()
        reactor.on_channel(slow)(gate.hold)
        arrived = collect(reactor, quick)
        reactor.notify((slow, "1"), (slow, "2"))
        try:
            for number in range(100):
                reactor.notify((quick, str(number)))
            wait_until(lambda: len(arrived) == 100)
        finally:
            gate.set()

    assert arrived == [str(n) for n in range(100)]


# What a handler may do


def test_handler_may_register_another_one(reactor: Reactor, channel: str) -> None:
    late: list[str] = []

    @reactor.on_channel(channel)
    def handler(_: Database, notification: Notification) -> None:
        if notification.payload == "1":
            reactor.on_channel(channel)(lambda _, notification: late.append(notification.payload))

    reactor.notify((channel, "1"))
    settle(reactor)
    reactor.notify((channel, "2"))
    wait_until(lambda: late)

    assert late == ["2"]


def test_handler_may_remove_itself(reactor: Reactor, channel: str) -> None:
    seen: list[str] = []

    @reactor.on_channel(channel)
    def once(_: Database, notification: Notification) -> None:
        seen.append(notification.payload)
        reactor.channel(channel).disconnect(once)

    reactor.notify((channel, "1"), (channel, "2"))
    settle(reactor)

    assert seen == ["1"]


def test_handler_that_removes_another_one_keeps_it_from_being_called(
    reactor: Reactor, channel: str
) -> None:
    seen: list[str] = []

    def victim(_: Database, notification: Notification) -> None:
        seen.append(notification.payload)

    reactor.on_channel(channel)(lambda *_, **__: reactor.channel(channel).disconnect(victim))
    reactor.on_channel(channel)(victim)
    after = collect(reactor, channel)
    reactor.notify((channel, "1"))
    wait_until(lambda: after)

    assert seen == []


def test_handler_may_notify_its_own_channel(reactor: Reactor, channel: str) -> None:
    depths: list[int] = []

    @reactor.on_channel(channel)
    def ping(_: Database, notification: Notification) -> None:
        depths.append(int(notification.payload))
        if len(depths) < 200:
            assert reactor.notify((channel, str(len(depths)))) == 1

    reactor.notify((channel, "0"))
    wait_until(lambda: len(depths) == 200)

    assert depths == list(range(200))


def test_handler_may_notify_through_its_database(reactor: Reactor, channel: str) -> None:
    reply = collect(reactor, "reply")

    @reactor.on_channel(channel)
    def handler(sender: Database, notification: Notification) -> None:
        sender.notify(reply=notification.payload)

    reactor.notify((channel, "1"))
    wait_until(lambda: reply)

    assert reply == ["1"]


def test_handler_may_listen_and_unlisten(
    reactor: Reactor, channel: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    more = new_channel()
    heard: list[str] = []
    channels: list[tuple[str, ...]] = []
    reactor.any_channel.connect(lambda _, notification: heard.append(notification[1]), weak=False)

    @reactor.on_channel(channel)
    def handler(_: Database, notification: Notification) -> None:
        (reactor.listen if notification.payload == "listen" else reactor.unlisten)(more)
        channels.append(reactor.status().databases[0].channels)

    admin.notify(channel, "listen")
    wait_until(lambda: len(channels) == 1)
    admin.notify(more, "heard")
    admin.notify(channel, "unlisten")
    wait_until(lambda: len(channels) == 2)
    admin.notify(more, "not heard")
    settle(reactor)

    assert channels == [tuple(sorted([channel, more])), (channel,)]
    assert heard == ["listen", "heard", "unlisten", ""]


@pytest.mark.parametrize("workers", [1, 3])
def test_handler_may_stop(dsn: str, channel: str, workers: int, admin: Admin) -> None:
    reactor = Reactor(dsn, workers=workers)
    answers: list[bool] = []
    ended: list[object] = []
    reactor.on_channel(channel)(lambda *_, **__: answers.append(reactor.stop()))
    reactor.stopped.connect(lambda _, error: ended.append(error), weak=False)
    reactor.start()
    admin.notify(channel, "1")

    assert reactor.join(PATIENCE)
    assert answers == [True]
    assert ended == [None]
    assert not reactor.running


def test_handlers_still_notify_while_a_stop_drains(dsn: str, channel: str, admin: Admin) -> None:
    reactor = Reactor(dsn)
    gate, begun = Gate(), threading.Event()
    counts: list[int] = []

    @reactor.on_channel(channel)
    def handler(_: Database, notification: Notification) -> None:
        begun.set()
        gate.hold()
        counts.append(reactor.notify("elsewhere"))
        reactor.listen("elsewhere")
        reactor.unlisten("*")

    reactor.start()
    admin.flood(channel, 3)
    assert begun.wait(PATIENCE)
    wait_until(lambda: reactor.status().databases[0].received == 3)
    stopping = Background(reactor.stop)
    wait_until(lambda: reactor.status().databases[0].state == "stopped")
    gate.set()

    assert stopping.result()
    assert counts == [1, 1, 1]


def test_no_lock_is_held_while_a_handler_runs(reactor: Reactor, channel: str) -> None:
    """Everything that a handler might wait for is done by another thread meanwhile."""
    errors: list[BaseException] = []
    done: list[bool] = []

    def work() -> None:
        gate = Gate()
        other: Callable[..., None] = gate.hold
        reactor.on_channel("another")(other)
        reactor.channel("another").disconnect(other)
        reactor.listen("one more")
        reactor.unlisten("*")
        reactor.notify("nobody")
        reactor.status()
        reactor.start()

    @reactor.on_channel(channel)
    def handler(_: Database, notification: Notification) -> None:
        try:
            Background(work).result()
            done.append(True)
        except BaseException as error:
            errors.append(error)

    reactor.notify(channel)
    wait_until(lambda: done or errors)

    assert not errors


# Order, completeness


def test_hundred_thousand_of_one_transaction_arrive_in_order(
    reactor: Reactor, channel: str, admin: Admin
) -> None:
    arrived = collect(reactor, channel)
    reactor.listen()
    admin.flood(channel, 100_000)
    wait_until(lambda: len(arrived) >= 100_000, 40)

    assert arrived == [str(n) for n in range(1, 100_001)]
    status = reactor.status().databases[0]
    assert (status.received, status.dropped, status.gaps) == (100_000, 0, 0)


@pytest.mark.parametrize("workers", [1, 4])
def test_notifications_of_many_senders_keep_the_order_of_each(
    dsn: str, new_channel: Callable[[], str], workers: int
) -> None:
    names = [new_channel() for _ in range(4)]
    with Reactor(dsn, workers=workers) as reactor:
        arrived = {name: collect(reactor, name) for name in names}

        def send(number: int) -> None:
            for count in range(100):
                for name in names:
                    reactor.notify((name, f"{number} {count}"))

        threads = [Background(send, number) for number in range(5)]
        for thread in threads:
            thread.result(40)
        wait_until(lambda: all(len(texts) == 500 for texts in arrived.values()))

    for texts in arrived.values():
        for number in range(5):
            mine = [text for text in texts if text.startswith(f"{number} ")]
            assert mine == [f"{number} {count}" for count in range(100)]


def test_handlers_come_and_go_under_load_and_the_reactor_lives(
    dsn: str, new_channel: Callable[[], str]
) -> None:
    names = [new_channel() for _ in range(5)]
    errors: list[object] = []
    with Reactor(dsn, workers=3, probe_interval=0.5) as reactor:
        reactor.handler_failed.connect(lambda *_, **kw: errors.append(kw), weak=False)
        stop = threading.Event()

        def churn(number: int) -> None:
            for round_ in range(60):
                name = names[(number + round_) % len(names)]
                seen: list[object] = []

                def handler(_: Database, seen: list[object] = seen, **__: object) -> None:
                    seen.append(True)

                reactor.on_channel(name)(handler)
                reactor.notify(name)
                wait_until(seen.copy, why=f"{name} was deaf")
                with contextlib.suppress(KeyError):
                    reactor.channel(name).disconnect(handler)

        churners = [Background(churn, number) for number in range(4)]
        for churner in churners:
            churner.result(45)
        stop.set()
        wait_until(lambda: reactor.status().databases[0].channels == ())
    assert errors == []


# Floods, of which the reader takes a share, and a worker what it handles in an instant


@pytest.fixture
def in_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the first 16 kB is read in shares, and workers take all they may."""
    monkeypatch.setattr(_link, "READS", 1)
    monkeypatch.setattr(_workers, "INSTANT", 1000.0)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("max_backlog", [1, 16, 1000])
@pytest.mark.usefixtures("in_shares")
def test_what_is_handled_and_what_is_dropped_are_all_that_was_sent(
    dsn: str, channel: str, workers: int, max_backlog: int, admin: Admin
) -> None:
    count = 5000
    gate = Gate()
    seen: list[int] = []
    gaps: list[Gap] = []
    order: list[object] = []
    with Reactor(dsn, workers=workers, max_backlog=max_backlog) as reactor:

        @reactor.gap.connect
        def note(_: Database, gap: Gap) -> None:
            gaps.append(gap)
            order.append(gap)

        @reactor.on_channel(channel)
        def handler(_: Database, notification: Notification) -> None:
            seen.append(int(notification.payload))
            order.append(seen[-1])
            if len(seen) in (1, 100):
                gate.hold()

        admin.flood(channel, count - 1)
        wait_until(lambda: seen)  # perhaps only after all of them have been received
        admin.notify(channel, str(count))
        wait_until(lambda: reactor.status().databases[0].received == count)
        # The last share is counted before it is queued, and queued before its oldest are dropped.
        wait_until(lambda: reactor.status().backlog == min(max_backlog, count - 1))
        status = reactor.status()
        assert len(seen) + status.backlog + status.databases[0].dropped == count
        gate.set()
        wait_until(lambda: seen[-1:] == [count])

    assert len(seen) + sum(gap.dropped or 0 for gap in gaps) == count
    assert seen == sorted(seen)
    for before, after in itertools.pairwise(order):  # no hole without its gap
        assert not isinstance(before, int) or after == before + 1 or isinstance(after, Gap)


@pytest.mark.usefixtures("in_shares")
def test_stop_whose_time_runs_out_counts_what_a_worker_has_taken(
    dsn: str, channel: str, admin: Admin, caplog: pytest.LogCaptureFixture
) -> None:
    reactor = Reactor(dsn)
    gate = Gate()
    seen: list[str] = []

    @reactor.on_channel(channel)
    def handler(_: Database, notification: Notification) -> None:
        seen.append(notification.payload)
        if len(seen) == 100:
            gate.hold()

    reactor.start()
    admin.flood(channel, 1000)
    wait_until(lambda: reactor.status().backlog == 900 and len(seen) == 100)

    assert reactor.stop(timeout=0) is False
    workers = [thread for thread in threading.enumerate() if "-worker-" in thread.name]
    gate.set()
    for worker in workers:
        worker.join(PATIENCE)

    assert "with 900 notifications left" in caplog.text
    assert len(seen) == 100


@pytest.mark.usefixtures("in_shares")
def test_stop_in_a_flood_drains_what_has_been_received(
    dsn: str, channel: str, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    reactor = Reactor(dsn)
    left: list[object] = []
    reads: list[bool] = []
    close, read = _driver.Session.close, _driver.Session.read_into

    def read_and_stop(session: _driver.Session, fresh: Burst, share: int, *rest: int) -> None:
        read(session, fresh, share, *rest)
        if session.more:
            reads.append(True)
            if len(reads) == 5:
                reactor.stop()  # on the reader's own thread, so it is told and no more

    def look_and_close(session: _driver.Session, *within: float) -> None:
        if not session.connection.closed:
            left.append(session.pgconn.notifies())
        close(session, *within)

    monkeypatch.setattr(_driver.Session, "close", look_and_close)
    monkeypatch.setattr(_driver.Session, "read_into", read_and_stop)
    seen: list[int] = []

    @reactor.on_channel(channel)
    def handler(_: Database, notification: Notification) -> None:
        seen.append(int(notification.payload))

    reactor.start()
    admin.flood(channel, 100_000)

    assert reactor.join(PATIENCE)
    assert seen == list(range(1, len(seen) + 1))
    assert left
    assert set(left) == {None}


@pytest.mark.usefixtures("in_shares")
def test_owner_of_a_session_goes_on_where_the_reactor_has_stopped_in_a_flood(
    dsn: str, channel: str, admin: Admin
) -> None:
    count = 20_000
    seen: list[str] = []
    with Database(dsn) as database:
        database.listen(channel)
        reactor = Reactor(database)

        @reactor.on_channel(channel)
        def handler(_: Database, notification: Notification) -> None:
            seen.append(notification.payload)
            if len(seen) == 1:
                reactor.stop()

        reactor.start()
        admin.flood(channel, count)
        assert reactor.join(PATIENCE)
        for notification in database.wait(PATIENCE) if len(seen) < count else ():
            assert notification is not None, f"the rest was lost after {len(seen)}"
            seen.append(notification.payload)
            if len(seen) == count:
                break

    assert seen == [str(number) for number in range(1, count + 1)]


def test_handler_in_several_wrappers_uses_its_session_and_notifies(
    reactor: Reactor, channel: str
) -> None:
    """Such as those of telemetry and of ``run --metrics``."""
    answers: list[object] = []

    def around(handler: Callable[..., object], db: Database, **given: object) -> object:
        return handler(db, **given)

    @reactor.on_channel(channel)
    def handle(db: Database, *, notification: Notification) -> None:
        if notification.payload == "first":
            answers.append(db.execute("SELECT 42").fetchone())
            with db.transaction():
                reactor.notify((channel, "second"))
        else:
            answers.append(notification.payload)

    for _ in range(3):
        reactor.wrap_handlers(around)
    reactor.notify((channel, "first"))
    wait_until(lambda: len(answers) == 2)

    assert answers == [(42,), "second"]
    assert reactor.status().databases[0].failed == 0
