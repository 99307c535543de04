"""Spans and metrics, as OpenTelemetry's SDK exports them."""

from __future__ import annotations

import functools
import gc
import operator
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes as messaging
from opentelemetry.semconv.attributes import code_attributes, db_attributes, error_attributes
from opentelemetry.trace import SpanKind, StatusCode

from pgsignals import Database, Notification, Reactor
from pgsignals import channel as channel_signal
from pgsignals._dispatch.checks import describe
from pgsignals.embedded import Postgres
from pgsignals.telemetry import instrument, uninstrument
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[1]


class Telescope:
    """Providers of OpenTelemetry, and what they export."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._metrics = InMemoryMetricReader()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.meter_provider = MeterProvider([self._metrics])

    def point(self, reactor: Reactor) -> None:
        """Instrument a reactor for these providers."""
        instrument(
            reactor, tracer_provider=self.tracer_provider, meter_provider=self.meter_provider
        )

    def spans(self, count: int) -> tuple[ReadableSpan, ...]:
        """The spans that have ended, which are as many as that."""
        wait_until(lambda: len(self._spans.get_finished_spans()) >= count)
        spans = self._spans.get_finished_spans()
        assert len(spans) == count
        return spans

    def metrics(self) -> dict[str, Any]:
        """The points of each metric, by its name."""
        data = self._metrics.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def shutdown(self) -> None:
        """End the providers."""
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


@pytest.fixture
def telescope() -> Iterator[Telescope]:
    telescope = Telescope()
    yield telescope
    telescope.shutdown()


@pytest.fixture
def reactor(request: pytest.FixtureRequest, dsn: str, telescope: Telescope) -> Iterator[Reactor]:
    """Runs, with telemetry."""
    reactor = Reactor(dsn)
    telescope.point(reactor)
    with reactor:
        yield reactor
    request.node.funcargs.clear()  # else pytest keeps it, and it keeps its waker's sockets


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# Spans


def test_each_call_of_a_handler_is_a_span(
    reactor: Reactor, channel: str, telescope: Telescope, postgres: Postgres
) -> None:
    inside: list[trace.Span] = []

    @reactor.on_channel(channel)
    def ship(db: Database, notification: Notification) -> None:
        inside.append(trace.get_current_span())

    reactor.notify((channel, "1"), (channel, "2"))
    first, second = telescope.spans(2)

    assert first.name == second.name == f"process {channel}"
    assert first.kind is SpanKind.CONSUMER
    assert first.status.status_code is StatusCode.UNSET
    assert not first.events
    assert first.parent is None
    assert [span.get_span_context() for span in inside] == [first.context, second.context]
    assert attributes(first) == {
        messaging.MESSAGING_SYSTEM: "postgresql",
        messaging.MESSAGING_OPERATION_NAME: "process",
        messaging.MESSAGING_OPERATION_TYPE: messaging.MessagingOperationTypeValues.PROCESS.value,
        messaging.MESSAGING_DESTINATION_NAME: channel,
        "server.address": "127.0.0.1",
        "server.port": postgres.port,
        db_attributes.DB_NAMESPACE: "postgres",
        code_attributes.CODE_FUNCTION_NAME: f"{__name__}.{ship.__qualname__}",
    }


def test_every_kind_of_handler_has_spans(
    reactor: Reactor, channel: str, telescope: Telescope
) -> None:
    class Shelf:
        def __init__(self) -> None:
            self.seen: list[object] = []

        def one(self, db: Database, notification: Notification) -> None:
            self.seen.append(notification.payload)

        def value(self, db: Database, *, notification: Notification, value: int) -> None:
            self.seen.append(value)

        def many(
            self, db: Database, *, notifications: list[Notification], values: list[int]
        ) -> None:
            self.seen.append(values)

        def any(self, db: Database, *, notification: Notification) -> None:
            self.seen.append(notification)

    shelf = Shelf()
    channel_signal(channel).connect(shelf.one)  # weak, and for every reactor
    reactor.on_channel(channel, decode=int)(shelf.value)
    reactor.on_channel(channel, decode=int, batch=True)(shelf.many)
    reactor.any_channel.connect(shelf.any)
    reactor.notify((channel, "7"))
    spans = telescope.spans(4)

    assert shelf.seen[:3] == ["7", 7, [7]]
    names = [str(attributes(span)["code.function.name"]).rpartition(".")[2] for span in spans]
    assert names == ["one", "value", "many", "any"]
    counts = [attributes(span).get(messaging.MESSAGING_BATCH_MESSAGE_COUNT) for span in spans]
    assert counts == [None, None, 1, None]


class Refused(Exception):
    """What a handler raises here."""


@pytest.mark.parametrize("error", [Refused("secret"), ValueError("secret"), SystemExit("secret")])
def test_failed_handler_is_an_error_without_the_payload(
    reactor: Reactor, channel: str, telescope: Telescope, error: BaseException
) -> None:
    failures: list[tuple[object, BaseException]] = []

    @reactor.handler_failed.connect
    def failed(db: Database, *, handler: object, error: BaseException, **_: object) -> None:
        failures.append((handler, error))

    @reactor.on_channel(channel)
    def ship(db: Database, notification: Notification) -> None:
        raise error

    reactor.notify((channel, "secret"))
    (span,) = telescope.spans(1)
    wait_until(lambda: failures)

    name = f"{__name__}.Refused" if isinstance(error, Refused) else type(error).__name__
    assert failures == [(ship, error)]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == name
    assert attributes(span)[error_attributes.ERROR_TYPE] == name
    (event,) = span.events
    told = dict(event.attributes or {})
    assert (event.name, told["exception.type"]) == ("exception", name)
    assert "raise error" in str(told["exception.stacktrace"])
    assert "secret" not in span.to_json()


def test_handlers_that_come_later_have_spans_and_uninstrument_ends_them(
    dsn: str, channel: str, telescope: Telescope
) -> None:
    seen: list[str] = []
    with Reactor(dsn) as reactor:

        @reactor.on_channel(channel)
        def ship(db: Database, notification: Notification) -> None:
            seen.append(notification.payload)

        def notify(payload: str) -> None:
            reactor.notify((channel, payload))
            wait_until(lambda: payload in seen)
            wait_until(lambda: reactor.status().databases[0].dispatched == len(seen))

        notify("before")
        telescope.point(reactor)
        notify("with")
        telescope.point(reactor)  # replaces the first
        notify("with again")
        uninstrument(reactor)
        uninstrument(reactor)
        notify("after")

    telescope.spans(2)
    assert "pgsignals.gaps" not in telescope.metrics()


def test_wrapper_of_handlers_is_told_what_they_are_given(
    dsn: str, channel: str, telescope: Telescope
) -> None:
    telescope.point(other := Reactor(dsn))
    told: list[tuple[object, Database, dict[str, object]]] = []
    results: list[int] = []
    reactor = Reactor(dsn)

    @reactor.on_channel(channel, decode=int)
    def add(db: Database, notification: Notification, value: int) -> None:
        results.append(value)

    def around(handler: Callable[..., object], database: Database, **given: object) -> None:
        told.append((handler, database, given))
        handler(database, **given)

    reactor.wrap_handlers(around)
    with reactor:
        reactor.notify((channel, "7"))
        wait_until(lambda: results)
        uninstrument(reactor)  # which it was not, as the other one is, so the wrapper stays
        reactor.notify((channel, "8"))
        wait_until(lambda: len(results) == 2)

    assert [(one[0], one[1]) for one in told] == 2 * [(add, reactor.databases[0])]
    assert told[0][2].keys() == {"notification", "value"}
    uninstrument(other)


# Metrics


def test_status_is_observed(
    dsn: str, channel: str, telescope: Telescope, postgres: Postgres
) -> None:
    reactor = Reactor(dsn, probe_interval=0.1)
    telescope.point(reactor)

    @reactor.on_channel(channel, decode=int)
    def half(db: Database, notification: Notification, value: int) -> float:
        return 1 / value

    with reactor:
        reactor.notify((channel, "1"), (channel, "0"), (channel, "x"))
        wait_until(lambda: reactor.status().databases[0].dispatched == 3)
        wait_until(lambda: reactor.status().databases[0].probe_seconds)
        points = telescope.metrics()

    values = {
        "pgsignals.notifications.received": 3,
        "pgsignals.notifications.dispatched": 3,
        "pgsignals.notifications.dropped": 0,
        "pgsignals.failures": 2,
        "pgsignals.gaps": 0,
        "pgsignals.reconnects": 0,
        "pgsignals.listening": 1,
    }
    place = {
        "messaging.system": "postgresql",
        "server.address": "127.0.0.1",
        "server.port": postgres.port,
        "db.namespace": "postgres",
    }
    for name, value in values.items():
        (point,) = points[name]
        assert (name, point.value, dict(point.attributes)) == (name, value, place)
    assert 0 < points["pgsignals.probe.duration"][0].value < 60
    assert 0 <= points["pgsignals.queue.usage"][0].value < 1
    assert points["pgsignals.backlog"][0].value == 0
    assert not points["pgsignals.backlog"][0].attributes


def test_calls_are_measured(reactor: Reactor, channel: str, telescope: Telescope) -> None:
    calls: list[int] = []

    @reactor.on_channel(channel, batch=True)
    def handler(db: Database, notifications: list[Notification]) -> None:
        calls.append(len(notifications))
        if notifications[-1].payload == "3":
            raise ValueError

    reactor.notify((channel, "1"), (channel, "2"))
    wait_until(lambda: sum(calls) == 2)
    good = len(calls)
    reactor.notify((channel, "3"))
    wait_until(lambda: reactor.status().databases[0].dispatched == 3)
    points = telescope.metrics()

    well, badly = points["messaging.process.duration"]
    assert (well.count, badly.count) == (good, 1)
    assert well.sum > 0
    assert well.explicit_bounds[0] == 0.005
    assert "error.type" not in well.attributes
    assert badly.attributes["error.type"] == "ValueError"
    assert badly.attributes[messaging.MESSAGING_DESTINATION_NAME] == channel
    assert badly.attributes["code.function.name"].endswith(
        "test_calls_are_measured.<locals>.handler"
    )
    counted = points["messaging.client.consumed.messages"]
    assert [point.value for point in counted] == [2, 1]


def test_failures_are_counted_by_channel_and_handler(
    reactor: Reactor, channel: str, telescope: Telescope
) -> None:
    @reactor.on_channel(channel, decode=int)
    def half(db: Database, notification: Notification, value: int) -> float:
        return 1 / value

    heard: list[str] = []

    def anything(db: Database, notification: Notification) -> None:
        heard.append(notification.channel)

    reactor.any_channel.connect(anything)
    unhandled = f"{channel}_unhandled"
    reactor.listen(unhandled)
    reactor.notify((channel, "1"), (channel, "0"), (channel, "x"), (unhandled, ""))
    wait_until(lambda: reactor.status().databases[0].dispatched == 4)
    assert sorted(heard) == [channel] * 3 + [unhandled]
    reactor.handler_failed.send(
        reactor.databases[0], notification=None, handler=anything, error=KeyError()
    )
    points = telescope.metrics()

    failures = {
        (
            point.attributes.get(messaging.MESSAGING_DESTINATION_NAME, ""),
            point.attributes["code.function.name"].rpartition(".")[2],
            point.attributes["error.type"],
        ): point.value
        for point in points["pgsignals.handler.failures"]
    }
    assert failures == {
        (channel, "half", "ZeroDivisionError"): 1,
        (channel, "half", "ValueError"): 1,
        ("", "anything", "KeyError"): 1,
    }
    calls = {
        (
            point.attributes.get(messaging.MESSAGING_DESTINATION_NAME, ""),
            point.attributes["code.function.name"].rpartition(".")[2],
        )
        for point in points["messaging.process.duration"]
    }
    assert calls == {(channel, "half"), (channel, "anything"), ("", "anything")}


def test_several_wrappers_are_called_one_within_the_other(
    dsn: str, channel: str, telescope: Telescope
) -> None:
    reactor = Reactor(dsn)
    order: list[str] = []

    class Ship:
        def __call__(self, db: Database, notification: Notification) -> None:
            order.append(f"ship {notification.payload}")

    ship = Ship()
    reactor.on_channel(channel)(ship)

    def wrapper(name: str) -> Callable[..., object]:
        def around(handler: Callable[..., object], database: Database, **given: object) -> object:
            order.append(f"{name} {describe(handler).rpartition('.')[2]}")
            return handler(database, **given)

        return around

    outer, inner = wrapper("outer"), wrapper("inner")
    steps: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: reactor.wrap_handlers(outer), ["outer Ship"]),
        (lambda: telescope.point(reactor), ["outer Ship"]),
        (lambda: reactor.wrap_handlers(inner), ["outer Ship", "inner Ship"]),
        (lambda: reactor.unwrap_handlers(outer), ["inner Ship"]),
        (lambda: reactor.unwrap_handlers(outer), ["inner Ship"]),
        (lambda: uninstrument(reactor), ["inner Ship"]),
        (lambda: reactor.wrap_handlers(None), []),
    ]
    with reactor:
        for number, (change, called) in enumerate(steps):
            change()
            order.clear()
            reactor.notify((channel, str(number)))
            wait_until(functools.partial(operator.contains, order, f"ship {number}"))
            assert order == [*called, f"ship {number}"]

    telescope.spans(4)  # of steps 1 to 4


def test_several_reactors_are_observed_together(
    dsn: str, channel: str, telescope: Telescope, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("postgres", "template1")
    first = Reactor(dsn, channels=[channel])
    second = Reactor(dsn, Database(dsn, dbname=names[1]), channels=[channel])
    with first, second:
        telescope.point(first)
        telescope.point(second)
        points = telescope.metrics()["pgsignals.listening"]
        assert [(one.attributes["db.namespace"], one.value) for one in points] == [
            (name, 1) for name in names
        ]
        first.notify(channel)
        wait_until(
            lambda: (
                [one.value for one in telescope.metrics()["pgsignals.notifications.received"]]
                == [2, 0]
            )  # two of them have received it
        )
        uninstrument(second)
        assert len(telescope.metrics()["pgsignals.listening"]) == 1

    assert not caplog.records  # the SDK warns of an instrument that is made twice


def test_reactor_is_not_kept(telescope: Telescope) -> None:
    reactor = Reactor("host=localhost port=5432 dbname=shop")
    telescope.point(reactor)
    assert telescope.metrics()["pgsignals.listening"][0].value == 0
    gone = weakref.ref(reactor)
    del reactor
    gc.collect()

    assert gone() is None
    assert "pgsignals.listening" not in telescope.metrics()


GLOBAL = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from pgsignals import Reactor
from pgsignals._dispatch.checks import describe
from pgsignals.telemetry import instrument

first, second = (Reactor(f"host=localhost port=5432 dbname={name}") for name in ("a", "b"))
instrument(first)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
instrument(second, meter_provider=metrics.get_meter_provider())
(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
(listening,) = [metric for metric in scope.metrics if metric.name == "pgsignals.listening"]
print(*(point.attributes["db.namespace"] for point in listening.data.data_points))
"""


def test_global_provider_may_be_set_later() -> None:
    command = [sys.executable, "-c", GLOBAL]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert sorted(printed.split()) == ["a", "b"]


def test_opentelemetry_is_not_imported_by_the_package() -> None:
    program = "import sys, pgsignals; print('opentelemetry' in sys.modules)"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert printed == "False\n"
