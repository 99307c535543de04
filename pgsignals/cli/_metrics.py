"""What ``pgsignals run --metrics`` serves: a reactor's status, for Prometheus and health checks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pgsignals._dispatch.checks import describe, refuse_result
from pgsignals._pure.metrics import DATABASE, REACTOR, SECONDS
from pgsignals._pure.values import Notification
from pgsignals._sources.reports import DatabaseStatus
from pgsignals.database import Database
from pgsignals.errors import Error
from pgsignals.reactor import Reactor

STATES = ("connecting", "listening", "lost", "stopped")

#: Most pairs of channel and handler to tell apart: a program may create channels without limit.
MOST_LABELS = 1000


class ReactorCollector(Collector):
    """Exports the status, read at each request."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the reactor and of its databases."""
        status = self._reactor.status()
        for metric in REACTOR:
            value = float(getattr(status, metric.field))
            yield GaugeMetricFamily(metric.prometheus, metric.help, value)
        databases = dict(zip(names(status.databases), status.databases, strict=True))
        for metric in DATABASE:
            make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = make(metric.prometheus, metric.help, labels=["database"])
            for name, database in databases.items():
                if (value := getattr(database, metric.field)) is not None:
                    family.add_metric([name], value)
            yield family
        states = StateSetMetricFamily(
            "pgsignals_state", "State of the database.", labels=["database"]
        )
        for name, database in databases.items():
            states.add_metric([name], {state: state == database.state for state in STATES})
        yield states


class HandlerMetrics:
    """Measures handlers by channel; called on the workers.

    The label ``channel`` is a channel with handlers.  It is ``""`` for channels that only receivers
    of ``any_channel`` handle, for failures of receivers of the reactor's signals, and for new pairs
    beyond :data:`MOST_LABELS`, so that the number of time series is bounded.
    """

    def __init__(self, reactor: Reactor, registry: CollectorRegistry) -> None:
        labels = ("channel", "handler")
        text = "Notifications handled without an error."
        self._handled = Counter("pgsignals_handled", text, labels, registry=registry)
        text = "Failures of a handler, of its decode, or of a receiver of the reactor's signals."
        self._failed = Counter("pgsignals_handler_failures", text, labels, registry=registry)
        text = "Duration of a handler call."
        self._seconds = Histogram(
            "pgsignals_handler_seconds", text, labels, registry=registry, buckets=SECONDS
        )
        self._reactor = reactor
        self._known: set[tuple[str, str]] = set()

    def __enter__(self) -> None:
        self._reactor.wrap_handlers(self._around)
        self._reactor.handler_failed.connect(self._note_failure, weak=False)

    def __exit__(self, *_: object) -> None:
        self._reactor.unwrap_handlers(self._around)
        self._reactor.handler_failed.disconnect(self._note_failure)

    def _around(self, handler: Callable[..., Any], database: Database, **given: Any) -> None:
        batch: list[Notification] | None = given.get("notifications")
        count, first = (1, given["notification"]) if batch is None else (len(batch), batch[0])
        labels = self._labels(first, handler, database)
        began = time.perf_counter()
        try:
            refuse_result(handler(database, **given))
        finally:
            self._seconds.labels(*labels).observe(time.perf_counter() - began)
        self._handled.labels(*labels).inc(count)

    def _note_failure(
        self,
        database: Database,
        *,
        notification: Notification | list[Notification] | None,
        handler: Callable[..., Any],
        error: BaseException,
    ) -> None:
        first = notification[0] if isinstance(notification, list) else notification
        self._failed.labels(*self._labels(first, handler, database)).inc()

    def _labels(
        self, notification: Notification | None, handler: Callable[..., Any], database: Database
    ) -> tuple[str, str]:
        channel = "" if notification is None else notification.channel
        if channel and not self._reactor._engine.interest.handlers_of(channel, database):
            channel = ""
        labels = channel, describe(handler)
        if labels not in self._known:
            if len(self._known) >= MOST_LABELS:
                return "", labels[1]
            self._known.add(labels)
        return labels


def names(databases: tuple[DatabaseStatus, ...]) -> list[str]:
    """The names of *databases*; duplicates get a number."""
    found: list[str] = []
    for database in databases:
        name, number = database.name, 2
        while name in found:
            name, number = f"{database.name} #{number}", number + 1
        found.append(name)
    return found


def health(reactor: Reactor) -> tuple[bool, dict[str, object]]:
    """Whether every database is listened to, and the body that says which one is not."""
    status = reactor.status()
    shown = ("name", "state", "last_error")
    databases = [
        {key: value for key, value in dataclasses.asdict(database).items() if key in shown}
        for database in status.databases
    ]
    healthy = status.running and all(one.state == "listening" for one in status.databases)
    return healthy, {"healthy": healthy, "running": status.running, "databases": databases}


class Server(ThreadingHTTPServer):
    """Serves ``/metrics`` and ``/healthz``."""

    daemon_threads = True
    block_on_close = False  # do not wait for slow clients at exit

    def __init__(self, reactor: Reactor, address: tuple[str, int]) -> None:
        self.reactor = reactor
        self.registry = CollectorRegistry()
        self.registry.register(ReactorCollector(reactor))
        for standard in (ProcessCollector, PlatformCollector, GCCollector):
            standard(registry=self.registry)
        [(self.address_family, *_), *_] = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        super().__init__(address, Handler)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    server_version = "pgsignals"
    sys_version = ""
    timeout = 10  # seconds for a request to arrive

    def do_GET(self) -> None:
        """Answer a request for ``/metrics`` or ``/healthz``."""
        answers: dict[str, Callable[[], None]] = {
            "/metrics": self._metrics,
            "/healthz": self._health,
        }
        answer = answers.get(self.path.partition("?")[0])
        if answer is None:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics or /healthz\n")
        else:
            answer()

    do_HEAD = do_GET

    def _metrics(self) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._send(HTTPStatus.OK, content_type, encode(self.server.registry))

    def _health(self) -> None:
        healthy, body = health(self.server.reactor)
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        self._send(status, "application/json", json.dumps(body).encode() + b"\n")

    def _send(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: requests come every few seconds."""


@contextlib.contextmanager
def serve(reactor: Reactor, address: tuple[str, int]) -> Iterator[None]:
    """Serve on a thread during the block.

    :raises Error: *address* cannot be bound.
    """
    try:
        server = Server(reactor, address)
    except OSError as error:
        reason = error.strerror
        raise Error(f"--metrics {address[0]}:{address[1]}: {reason}") from None
    with server, HandlerMetrics(reactor, server.registry):
        thread = threading.Thread(
            target=server.serve_forever, name="pgsignals-metrics", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
