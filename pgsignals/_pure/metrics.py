"""The status as metrics: one table that every exporter reads."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One number of the status, and how exporters present it."""

    field: str
    """The attribute of the status that holds it; the metric is left out while that is None."""

    kind: Literal["counter", "gauge"]
    """A counter only grows, and several of one database add up."""

    unit: str
    """In UCUM, as OpenTelemetry writes units."""

    help: str
    """What it measures, in one sentence."""

    prometheus: str
    """Its name for Prometheus, without the ``_total`` that counters end in there."""

    opentelemetry: str | None
    """Its name for OpenTelemetry; None for what has no use there."""


#: Fields of a ``Status``.
REACTOR = (
    Metric("running", "gauge", "1", "1 while the reactor runs, else 0.", "pgsignals_running", None),
    Metric(
        "backlog",
        "gauge",
        "{notification}",
        "Notifications received whose handlers have not begun yet.",
        "pgsignals_backlog",
        "pgsignals.backlog",
    ),
)

#: Fields of a ``DatabaseStatus``.
DATABASE = (
    Metric(
        "received",
        "counter",
        "{notification}",
        "Notifications received.",
        "pgsignals_received",
        "pgsignals.notifications.received",
    ),
    Metric(
        "dispatched",
        "counter",
        "{notification}",
        "Notifications whose handlers have all returned.",
        "pgsignals_dispatched",
        "pgsignals.notifications.dispatched",
    ),
    Metric(
        "dropped",
        "counter",
        "{notification}",
        "Notifications dropped because the backlog was full.",
        "pgsignals_dropped",
        "pgsignals.notifications.dropped",
    ),
    Metric(
        "failed",
        "counter",
        "{failure}",
        "Handler calls that raised, and payloads that a decode refused.",
        "pgsignals_failed",
        "pgsignals.failures",
    ),
    Metric("gaps", "counter", "{gap}", "Gaps reported.", "pgsignals_gaps", "pgsignals.gaps"),
    Metric(
        "reconnects",
        "counter",
        "{session}",
        "Sessions opened after the first one.",
        "pgsignals_reconnects",
        "pgsignals.reconnects",
    ),
    Metric(
        "last_received",
        "gauge",
        "s",
        "Unix time of the last notification received.",
        "pgsignals_last_received_timestamp_seconds",
        None,
    ),
    Metric(
        "probe_seconds",
        "gauge",
        "s",
        "Duration of the last round trip to the server.",
        "pgsignals_probe_seconds",
        "pgsignals.probe.duration",
    ),
    Metric(
        "queue_usage",
        "gauge",
        "1",
        "Fraction of the cluster's notification queue in use, 0 to 1.",
        "pgsignals_queue_usage_ratio",
        "pgsignals.queue.usage",
    ),
)

#: Bounds of the buckets for the duration of a handler call, in seconds: OpenTelemetry's advice.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
