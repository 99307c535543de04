"""Whom to call and what came of it: no thread, no server; and what a source is told of it."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from pgsignals._dispatch import workers
from pgsignals._dispatch.backlog import RUN, Backlog
from pgsignals._dispatch.calls import Calls, Route, Routes, Steps, Watch
from pgsignals._dispatch.ordered import Call, OrderedSignal, ReactorSignal, changes
from pgsignals._dispatch.workers import Workers
from pgsignals._pure.burst import Burst
from pgsignals._pure.lanes import Drops, Outcome
from pgsignals._pure.values import Notification
from pgsignals._runtime import fork
from pgsignals._runtime.fork import ForkGuard
from pgsignals.signals import Channels
from tests.support.waiting import PATIENCE

ONE, TWO = Notification("a", "1", 7), Notification("a", "2", 7)


class Spring:
    """A source, and its database, that writes down what it is told."""

    name = "spring"

    def __init__(self) -> None:
        self.record: list[object] = []
        self.around: Callable[..., object] | None = None

    @property
    def database(self) -> Any:
        return self

    def settle(self, notifications: Sequence[Notification], outcome: Outcome = None) -> None:
        payloads = [notification.payload for notification in notifications]
        self.record.append((payloads, outcome and type(outcome).__name__))

    def dropped(self, count: int) -> None:
        self.record.append(f"dropped {count}")

    def overflowed(self, drops: Drops) -> None:
        self.record.append(f"overflowed {drops.count}")


class Bench:
    """The calls of a reactor that has none of its threads."""

    def __init__(self) -> None:
        self.spring, self.watch = Spring(), Watch()
        self.everywhere, self.own = Channels(), Channels()
        self.any_channel = ReactorSignal("any_channel", None)
        self.handler_failed = OrderedSignal()
        self.routes = Routes((self.everywhere, self.own), self.any_channel)
        self.calls = Calls(self.handler_failed, ForkGuard(), self.watch)
        self.handler_failed.connect(self._failed, weak=False)

    def _failed(self, _: object, *, notification: Any, handler: object, error: object) -> None:
        self.spring.record.append("handler_failed")

    def route(self, channel: str = "a") -> Route:
        return self.routes.resolve(self.spring, channel)

    def make(self, steps: Steps[object]) -> None:
        for handler, called, sender, given in steps:
            self.watch.handler = handler
            try:
                called(sender, **given)
            except Exception as error:
                self.watch.outcome = error

    def deliver(self, *notifications: Notification) -> list[object]:
        """What happened, in order."""
        self.make(self.calls.deliver(self.route(), self.spring, list(notifications)))
        return self.spring.record

    def handle(self, what: object, *, fails: bool = False) -> Callable[..., object]:
        """A handler that says so."""

        def handler(_: object, **given: Any) -> None:
            self.spring.record.append((what, *given.values()))
            if fails:
                raise ValueError(what)

        return handler


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Whom to call


def test_handlers_of_the_module_come_first_and_any_channel_last(bench: Bench) -> None:
    bench.any_channel.connect(bench.handle("any"), weak=False)
    bench.own.on_channel("a")(bench.handle("own"))
    bench.everywhere.on_channel("a")(bench.handle("everywhere"))
    bench.own.on_channel("b")(bench.handle("another channel"))

    assert bench.deliver(ONE) == [("everywhere", ONE), ("own", ONE), ("any", ONE)]


def test_route_is_kept_until_something_changes(bench: Bench) -> None:
    bench.own.on_channel("a")(bench.handle("a"))
    route = bench.route()
    assert bench.routes.of(bench.spring) == {"a": route}

    bench.routes.forget_stale()
    assert bench.routes.of(bench.spring) == {"a": route}

    bench.own.on_channel("b")(bench.handle("b"))
    bench.routes.forget_stale()
    assert bench.routes.of(bench.spring) == {}


def test_route_that_something_changes_while_it_is_resolved_is_stale() -> None:
    """Such as a finalizer, or another thread: what it changes may not be in the route."""

    class Changing:
        arounds = ()

        def calls_for(self, _: str, __: Any) -> list[Call]:
            changes.note()
            return []

    routes = Routes((Changing(),), ReactorSignal("any_channel", None))

    assert routes.resolve(Spring(), "a").made_at < changes.count


def test_only_handler_that_is_called_as_it_is_is_the_fast_way(bench: Bench) -> None:
    handler = bench.handle("a")
    bench.own.on_channel("a")(handler)
    assert bench.route().only is handler

    bench.own.on_channel("b", batch=True)(handler)
    assert (bench.route("b").only, bench.route("b").only_batch) == (None, handler)

    bench.own.on_channel("c", decode=json.loads)(handler)
    assert (bench.route("c").only, bench.route("c").only_batch) == (None, None)

    bench.spring.around = lambda handler, db, **given: handler(db, **given)
    assert bench.route().only is None


# What came of it


def test_failure_is_told_to_the_source_then_to_handler_failed_before_the_next_call(
    bench: Bench,
) -> None:
    bench.own.on_channel("a")(bench.handle("first", fails=True))
    bench.own.on_channel("a")(bench.handle("second"))

    assert bench.deliver(ONE) == [
        ("first", ONE),
        (["1"], "ValueError"),
        "handler_failed",
        ("second", ONE),
    ]
    assert bench.watch.outcome is None


def test_refused_payload_is_told_and_the_handler_is_not_called(bench: Bench) -> None:
    bench.own.on_channel("a", decode=json.loads)(bench.handle("decoded"))
    bad = Notification("a", "x", 7)

    assert bench.deliver(bad, TWO) == [
        (["x"], "JSONDecodeError"),
        "handler_failed",
        ("decoded", TWO, 2),
    ]


def test_batch_is_told_as_a_whole_and_refused_payloads_one_by_one(bench: Bench) -> None:
    bench.own.on_channel("a", decode=json.loads, batch=True)(bench.handle("batch", fails=True))
    bad = Notification("a", "x", 7)

    assert bench.deliver(ONE, bad, TWO) == [
        (["x"], "JSONDecodeError"),
        "handler_failed",
        ("batch", [ONE, TWO], [1, 2]),
        (["1", "x", "2"], "ValueError"),
        "handler_failed",
    ]


def test_batch_of_refused_payloads_alone_is_no_call(bench: Bench) -> None:
    bench.own.on_channel("a", decode=json.loads, batch=True)(bench.handle("batch"))

    assert bench.deliver(Notification("a", "x", 7)) == [
        (["x"], "JSONDecodeError"),
        "handler_failed",
    ]


def test_failure_of_a_receiver_of_the_reactor_is_told_without_notifications(bench: Bench) -> None:
    lost = OrderedSignal()
    lost.connect(bench.handle("lost", fails=True), weak=False)
    bench.make(bench.calls.emit(lost, "db", bench.spring, {}))

    assert bench.spring.record == [("lost",), ([], "ValueError"), "handler_failed"]


def test_failure_of_a_receiver_of_handler_failed_is_told_nobody(bench: Bench) -> None:
    bench.handler_failed.connect(bench.handle("failing", fails=True), weak=False)
    bench.own.on_channel("a")(bench.handle("a", fails=True))
    bench.deliver(ONE)

    assert [entry for entry in bench.spring.record if isinstance(entry, tuple)][1:] == [
        (["1"], "ValueError"),
        ("failing", ONE, *bench.spring.record[3][2:]),  # type: ignore[index]
    ]


def test_handler_that_is_disconnected_meanwhile_is_not_called(bench: Bench) -> None:
    second = bench.handle("second")

    @bench.own.on_channel("a")
    def first(_: object, *, notification: Notification) -> None:
        bench.own.channel("a").disconnect(second)

    bench.own.on_channel("a")(second)

    assert bench.deliver(ONE) == []


# An event loop as another crew


def test_child_that_a_handler_has_forked_makes_none_of_the_other_calls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    @bench.own.on_channel("a")
    def forks(_: object, notification: Notification) -> None:
        bench.spring.record.append("forks")
        monkeypatch.setattr(fork, "_generation", fork._generation + 1)  # as in the child

    bench.own.on_channel("a")(bench.handle("later"))

    assert bench.deliver(ONE, TWO) == ["forks"]


def test_event_loop_makes_the_same_calls_with_an_await(bench: Bench) -> None:
    async def make(steps: Steps[object]) -> None:
        for _, called, sender, given in steps:
            try:
                result = called(sender, **given)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                bench.watch.outcome = error

    @bench.own.on_channel("a", decode=json.loads)
    async def asynchronous(_: object, *, notification: Notification, value: int) -> None:
        await asyncio.sleep(0)
        bench.spring.record.append(("asynchronous", value))
        raise ValueError

    bench.own.on_channel("a")(bench.handle("synchronous"))
    asyncio.run(make(bench.calls.deliver(bench.route(), bench.spring, [ONE])))

    assert bench.spring.record == [
        ("asynchronous", 1),
        (["1"], "ValueError"),
        "handler_failed",
        ("synchronous", ONE),
    ]


# What calls handlers in place of the worker


def wrap(bench: Bench, name: str) -> Callable[..., object]:
    def around(handler: Callable[..., object], database: object, **given: object) -> object:
        bench.spring.record.append(f"{name} begins")
        result = handler(database, **given)
        bench.spring.record.append(f"{name} ends")
        return result

    return around


def test_source_is_around_its_handlers_inside_of_what_wrap_handlers_has_added(
    bench: Bench,
) -> None:
    bench.own.on_channel("a")(bench.handle("a"))
    bench.any_channel.connect(bench.handle("any"), weak=False)
    bench.own.wrap((wrap(bench, "outer"), wrap(bench, "inner")))
    bench.spring.around = wrap(bench, "source")

    assert bench.deliver(ONE) == [
        *("outer begins", "inner begins", "source begins", ("a", ONE)),
        *("source ends", "inner ends", "outer ends"),
        *("outer begins", "inner begins", ("any", ONE), "inner ends", "outer ends"),
    ]


def test_commit_that_fails_is_the_failure_of_its_call(bench: Bench) -> None:
    """As of a source that acknowledges in the handler's own transaction."""

    def around(handler: Callable[..., object], database: object, **given: object) -> object:
        handler(database, **given)
        raise ConnectionError("the commit was refused")

    bench.spring.around = around
    bench.own.on_channel("a")(bench.handle("a"))

    assert bench.deliver(ONE) == [("a", ONE), (["1"], "ConnectionError"), "handler_failed"]


def test_source_can_skip_a_call_whose_turn_has_passed(bench: Bench) -> None:
    bench.spring.around = lambda handler, database, **given: None
    bench.own.on_channel("a")(bench.handle("a"))

    assert bench.deliver(ONE, TWO) == []


def test_wrapped_handler_has_its_name_on_each_level(bench: Bench) -> None:
    handler = bench.handle("a")
    names: list[str] = []

    def around(handler: Any, database: object, **given: object) -> object:
        names.append(handler.__qualname__)
        return handler(database, **given)

    bench.own.on_channel("a")(handler)
    bench.own.wrap((around, around))
    bench.deliver(ONE)

    assert names == [handler.__qualname__] * 2


# Slow calls


def test_slow_call_is_said_once() -> None:
    watch = Watch()
    assert watch.slow_for(0.0, 10.0) is None
    watch.handler, watch.at = print, ONE
    assert watch.slow_for(100.0, 10.0) is None  # it may have begun just now
    assert watch.slow_for(109.0, 10.0) is None
    assert watch.slow_for(111.0, 10.0) == 11.0
    assert watch.slow_for(200.0, 10.0) is None

    watch.at = TWO
    assert watch.slow_for(201.0, 10.0) is None
    assert watch.slow_for(211.0, 10.0) == 10.0
    watch.clear()
    assert watch.slow_for(300.0, 10.0) is None
    assert watch.slow_for(400.0, 10.0) is None  # there is none


def test_nothing_is_left_of_a_call_that_the_worker_itself_has_failed_in() -> None:
    """Else the next call would have failed, and what was handled would stay in memory."""
    watch = Watch()
    watch.handler, watch.at, watch.outcome = print, ONE, ValueError()
    watch.clear()

    assert [watch.handler, watch.at, watch.outcome] == [None] * 3


# What a source is told by the workers


def run_all(bench: Bench, *payloads: str, before: int = 0) -> list[object]:
    """Have the workers run these, of which each put is one argument."""
    backlog = Backlog(10_000, "drop_oldest", parallel=False)
    crew = Workers(
        "test", 1, backlog, (bench.own,), bench.any_channel, bench.handler_failed, home=None
    )
    now = datetime.now(UTC)
    for text in payloads:
        burst = Burst(Notification(one[0], one, 7) for one in text.split())
        backlog.put(bench.spring, burst, now, now)
    crew.start()
    assert backlog.join(lambda: None)
    backlog.end()
    crew.join(PATIENCE)
    return bench.spring.record


def settled(record: list[object]) -> list[str]:
    """The payloads for which all calls have been made, in order."""
    return [
        payload
        for entry in record
        if isinstance(entry, tuple) and isinstance(entry[0], list) and entry[1] is None
        for payload in entry[0]
    ]


@pytest.mark.parametrize("count", [1, 2, 10 * RUN])
@pytest.mark.parametrize("handled", [False, True])
def test_every_notification_is_settled_once_in_order(
    bench: Bench, count: int, handled: bool
) -> None:
    sent = [f"a{number}" for number in range(count)]
    if handled:
        bench.own.on_channel("a")(lambda *_, **__: None)
    record = run_all(bench, " ".join(sent), "b1 b2")

    assert settled(record) == [*sent, "b1", "b2"]
    assert len(record) <= 2 * len(sent) + 2


def test_batches_and_what_is_between_them_are_settled_in_order(bench: Bench) -> None:
    bench.own.on_channel("a", batch=True)(lambda *_, **__: None)
    bench.own.on_channel("b")(lambda *_, **__: None)
    sent = [f"{channel}{number}" for number in range(300) for channel in "abbaab"]
    record = run_all(bench, " ".join(sent[:700]), " ".join(sent[700:]))

    assert settled(record) == sent


def test_what_failed_is_told_when_it_does_and_settled_with_its_run(bench: Bench) -> None:
    @bench.own.on_channel("a")
    def handler(_: object, *, notification: Notification) -> None:
        if notification.payload == "a2":
            raise KeyError

    record = run_all(bench, "a1 a2 a3")

    assert settled(record) == ["a1", "a2", "a3"]
    told = record.index((["a2"], "KeyError"))
    assert record[told + 1] == "handler_failed"
    assert settled(record[:told]) == ["a1"]


@pytest.mark.parametrize("batch", [False, True])
def test_what_a_worker_fails_with_itself_is_told_with_the_bug(
    bench: Bench, batch: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Calls, "failed", bug)

    def handler(_: object, **given: Any) -> None:
        payloads = [one.payload for one in given.get("notifications", given.values())]
        if "a2" in payloads:
            raise KeyError

    bench.own.on_channel("a", batch=batch)(handler)
    bench.own.on_channel("b")(handler)

    monkeypatch.setattr(workers, "INSTANT", 1000.0)  # it takes 1, 2 and 4 at once

    assert run_all(bench, "b1 b2 b3 b4 b5 a2 b6") == [
        (["b1"], None),
        (["b2", "b3"], None),
        (["b4", "b5"], None),
        (["a2"], "ZeroDivisionError"),
        (["b6"], None),
    ]
    assert "bug in pgsignals" in caplog.text
