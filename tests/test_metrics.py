"""The table of metrics, against the status that it describes."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pgsignals import DatabaseStatus, Status
from pgsignals._pure.metrics import DATABASE, REACTOR, Metric

#: Numbers of the status that are no metrics: an identity, and a setting.
NOT_MEASURED = {"backend_id", "workers"}


@pytest.mark.parametrize(("status", "table"), [(Status, REACTOR), (DatabaseStatus, DATABASE)])
def test_every_number_of_the_status_is_in_the_table(
    status: type[Status | DatabaseStatus], table: tuple[Metric, ...]
) -> None:
    numbers = [
        field.name
        for field in dataclasses.fields(status)
        if re.match(r"int|float|bool", str(field.type)) and field.name not in NOT_MEASURED
    ]

    assert [metric.field for metric in table] == numbers


@pytest.mark.parametrize("metric", [*REACTOR, *DATABASE], ids=lambda metric: metric.field)
def test_names_follow_the_rules_of_each_exporter(metric: Metric) -> None:
    assert re.fullmatch(r"pgsignals_[a-z_]+(?<!_total)", metric.prometheus)
    assert re.fullmatch(r"pgsignals(\.[a-z]+)+", metric.opentelemetry or "pgsignals.none")
    assert metric.help.endswith(".")


def test_names_are_unique() -> None:
    metrics = [*REACTOR, *DATABASE]

    for names in (
        [metric.prometheus for metric in metrics],
        [metric.opentelemetry for metric in metrics if metric.opentelemetry],
    ):
        assert len(set(names)) == len(names)
