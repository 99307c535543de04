"""OpenTelemetry: a span for each call of a handler, and the status as metrics.

::

    from pgsignals.telemetry import instrument

    instrument(reactor)

Names and attributes follow OpenTelemetry's conventions for messaging.  They never contain a
payload, nor the text of an exception, which may repeat it.

Needs the extra ``opentelemetry``, which installs the API; the program chooses SDK and exporters.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import re
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
from opentelemetry.trace import SpanKind, StatusCode, Tracer, TracerProvider

from pgsignals._dispatch.checks import describe, refuse_result
from pgsignals._pure.metrics import DATABASE, REACTOR, SECONDS
from pgsignals._pure.values import Notification
from pgsignals._sources.reports import DatabaseStatus, Status
from pgsignals.database import Database
from pgsignals.errors import ForkedError
from pgsignals.reactor import Reactor

Attributes: TypeAlias = dict[str, str | int]

SYSTEM = "postgresql"
OPERATION = "process"

_PLACE = re.compile(r"(.*):(\d+)/(.*)", re.DOTALL)


def instrument(
    reactor: Reactor,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Trace the handlers of *reactor* from now on, and observe its status.

    The reactor may be running or not.  This uses :meth:`Reactor.wrap_handlers`, and leaves other
    wrappers in place; a second call replaces the first.

    :param tracer_provider: None for the program's global provider, which may be set later.
    :param meter_provider: likewise.
    """
    tracer = trace.get_tracer(__name__, tracer_provider=tracer_provider)
    meter = metrics.get_meter(__name__, meter_provider=meter_provider)
    uninstrument(reactor)
    _reactors_of(meter_provider, meter).add(reactor)
    around = _arounds[reactor] = _Around(tracer, meter, reactor)
    reactor.wrap_handlers(around)
    reactor.handler_failed.connect(around.note_failure, weak=False)


def uninstrument(reactor: Reactor) -> None:
    """Undo :func:`instrument`; do nothing if the reactor is not instrumented."""
    for reactors in list(_observed.values()):
        reactors.discard(reactor)
    if (around := _arounds.pop(reactor, None)) is not None:
        reactor.unwrap_handlers(around)
        reactor.handler_failed.disconnect(around.note_failure)


# -- calls of handlers ---------------------------------------------------------------------------


class _Around:
    """Calls a handler inside a span and measures it, for :meth:`Reactor.wrap_handlers`."""

    def __init__(self, tracer: Tracer, meter: Meter, reactor: Reactor) -> None:
        self._reactor = weakref.ref(reactor)
        self._tracer = tracer
        self._duration = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "Duration of processing operation.",
            explicit_bucket_boundaries_advisory=SECONDS,
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages",
            "{message}",
            "Number of messages that were delivered to the application.",
        )
        self._failures = meter.create_counter(
            "pgsignals.handler.failures",
            "{failure}",
            "Failures of handlers, of their decodes, and of receivers of a reactor's signals.",
        )

    def __call__(self, handler: Callable[..., Any], database: Database, **given: Any) -> None:
        batch: list[Notification] | None = given.get("notifications")
        channel = (batch[0] if batch else given["notification"]).channel
        common = {
            "messaging.operation.name": OPERATION,
            **self._attributes(channel, handler, database),
        }
        attributes = {
            **common,
            "messaging.destination.name": channel,
            "messaging.operation.type": OPERATION,
        }
        if batch is not None:
            attributes["messaging.batch.message_count"] = len(batch)
        began = time.perf_counter()
        with self._tracer.start_as_current_span(
            f"{OPERATION} {channel}",
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            record_exception=False,  # its text may repeat the payload
            set_status_on_exception=False,
        ) as span:
            try:
                refuse_result(handler(database, **given))
            except BaseException as error:
                common["error.type"] = _type_name(error)
                _record(span, error)
                raise
            finally:
                self._consumed.add(1 if batch is None else len(batch), common)
                self._duration.record(time.perf_counter() - began, common)

    def note_failure(
        self,
        database: Database,
        *,
        notification: Notification | list[Notification] | None,
        handler: Callable[..., Any],
        error: BaseException,
    ) -> None:
        """Count a failure, including payloads that a decode rejected before any handler ran."""
        first = notification[0] if isinstance(notification, list) else notification
        channel = "" if first is None else first.channel
        attributes = self._attributes(channel, handler, database)
        self._failures.add(1, {**attributes, "error.type": _type_name(error)})

    def _attributes(
        self, channel: str, handler: Callable[..., Any], database: Database
    ) -> dict[str, Any]:
        """The attributes of metrics, without the channel if it has no handlers: the number of such
        channels is unbounded."""
        attributes = {
            "messaging.system": SYSTEM,
            "code.function.name": describe(handler),
            **_place(database.name),
        }
        reactor = self._reactor()
        if (
            channel
            and reactor is not None
            and reactor._engine.interest.handlers_of(channel, database)
        ):
            attributes["messaging.destination.name"] = channel
        return attributes


def _record(span: trace.Span, error: BaseException) -> None:
    kind = _type_name(error)
    frames = "".join(traceback.format_tb(error.__traceback__))
    event = {"exception.type": kind, "exception.stacktrace": f"{frames}{kind}"}
    span.add_event("exception", event)
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, kind)


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else describe(kind)


@functools.lru_cache(maxsize=1024)
def _place(name: str) -> Attributes:
    """The attributes for the name of a database; none while the name is not known yet."""
    found = _PLACE.fullmatch(name)
    if found is None:
        return {}
    host, port, namespace = found.groups()
    return {"server.address": host, "server.port": int(port), "db.namespace": namespace}


# -- metrics -------------------------------------------------------------------------------------

#: The reactors that each provider's instruments observe: the SDK keeps only the callbacks of the
#: first caller that creates an instrument.  The module of metrics stands for the global provider.
_observed: weakref.WeakKeyDictionary[object, weakref.WeakSet[Reactor]] = weakref.WeakKeyDictionary()

_arounds: weakref.WeakKeyDictionary[Reactor, _Around] = weakref.WeakKeyDictionary()


def _reactors_of(provider: MeterProvider | None, meter: Meter) -> weakref.WeakSet[Reactor]:
    """The reactors observed for *provider*; the first call creates its instruments."""
    key = metrics if provider in (None, metrics.get_meter_provider()) else provider
    if key not in _observed:
        _observed[key] = weakref.WeakSet()
        _observe(_observed[key], meter)
    return _observed[key]


def _observe(reactors: weakref.WeakSet[Reactor], meter: Meter) -> None:
    for metric in DATABASE:
        if metric.opentelemetry is None:
            continue
        read = operator.attrgetter(metric.field)
        is_counter = metric.kind == "counter"
        callback = functools.partial(_observations, reactors, read, sum if is_counter else max)
        make = meter.create_observable_counter if is_counter else meter.create_observable_gauge
        make(metric.opentelemetry, [callback], unit=metric.unit, description=metric.help)
    meter.create_observable_gauge(
        "pgsignals.listening",
        [functools.partial(_observations, reactors, _is_listening, max)],
        unit="1",
        description="1 while the database is listened to, else 0.",
    )
    (backlog,) = (metric for metric in REACTOR if metric.field == "backlog")
    meter.create_observable_up_down_counter(
        str(backlog.opentelemetry),
        [functools.partial(_backlog, reactors)],
        unit=backlog.unit,
        description=backlog.help,
    )


def _is_listening(status: DatabaseStatus) -> int:
    return int(status.state == "listening")


def _observations(
    reactors: weakref.WeakSet[Reactor],
    read: Callable[[DatabaseStatus], float | None],
    merge: Callable[[Iterable[float]], float],
    _: CallbackOptions,
) -> Iterator[Observation]:
    """Yield one per database; what several reactors see of the same one is merged."""
    values: dict[str, list[float]] = {}
    for database in [one for status in _statuses(reactors) for one in status.databases]:
        if (value := read(database)) is not None:
            values.setdefault(database.name, []).append(value)
    for name, found in values.items():
        yield Observation(merge(found), {"messaging.system": SYSTEM, **_place(name)})


def _backlog(reactors: weakref.WeakSet[Reactor], _: CallbackOptions) -> Iterator[Observation]:
    yield Observation(sum(status.backlog for status in _statuses(reactors)))


def _statuses(reactors: weakref.WeakSet[Reactor]) -> Iterator[Status]:
    for reactor in list(reactors):
        with contextlib.suppress(ForkedError):  # it belongs to the parent process
            yield reactor.status()
