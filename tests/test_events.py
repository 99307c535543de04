"""What may be published, and the values of durable channels; no server."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgsignals import ChannelNameError, PayloadError
from pgsignals._pure.events import Event, Later, Reject, Retry, check_group
from pgsignals._pure.publication import MAX_EVENT_BYTES, publication, publications
from pgsignals._pure.publishing import check_schema, publish, styled

EVENT = Event(1, "orders", "k", "secret", {"a": "b"}, datetime.now(UTC), 1, "billing")


def test_payload_of_an_event_is_not_shown() -> None:
    assert "secret" not in repr(EVENT)
    assert "orders" in repr(EVENT)


def test_event_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EVENT.id = 2  # type: ignore[misc]


# What is refused before the wire

TOO_LONG = "x" * (MAX_EVENT_BYTES + 1)


@pytest.mark.parametrize(
    ("arguments", "more", "error", "text"),
    [
        ((1, ""), {}, TypeError, "a channel name must be a str, not int"),
        (("", ""), {}, ChannelNameError, "must not be empty"),
        (("c" * 64, ""), {}, ChannelNameError, "64 bytes"),
        (("c", b"x"), {}, TypeError, "must be a str, not bytes; decode it"),
        (("c", {"a": 1}), {}, TypeError, "must be a str, not dict; json.dumps"),
        (("c", TOO_LONG), {}, PayloadError, f"over the limit of {MAX_EVENT_BYTES}"),
        (("c", "a\0b"), {}, PayloadError, "NUL"),
        (("c", "\ud800"), {}, PayloadError, "lone surrogate"),
        (("c", ""), {"key": 42}, TypeError, "key must be a str, not int"),
        (("c", ""), {"key": "k" * 1025}, PayloadError, "1025 bytes"),
        (("c", ""), {"key": "a\0"}, PayloadError, "the key has a NUL"),
        (("c", ""), {"headers": [("a", "b")]}, TypeError, "headers must be a mapping, not list"),
        (("c", ""), {"headers": {"a": 1}}, TypeError, "of str to str, not int"),
        (("c", ""), {"headers": {1: "a"}}, TypeError, "of str to str, not int"),
        (("c", ""), {"headers": {"a": "\0"}}, PayloadError, "a header has a NUL"),
        (("c", ""), {"delay": "1s"}, TypeError, "delay must be a number of seconds, not str"),
        (("c", ""), {"delay": True}, TypeError, "not bool"),
        (("c", ""), {"delay": -0.1}, ValueError, "at least 0 seconds"),
        (("c", ""), {"delay": float("nan")}, ValueError, "at least 0 seconds"),
        (("c", ""), {"delay": float("inf")}, ValueError, "finite"),
        (("c", ""), {"delay": timedelta(seconds=-1)}, ValueError, "at least 0 seconds"),
        (("c", ""), {"dedup": 1}, TypeError, "dedup must be a str, not int"),
        (("c", ""), {"dedup": "\0"}, PayloadError, "the dedup has a NUL"),
        (("c", ""), {"ordered": 1}, TypeError, "ordered must be a bool, not int"),
        (("c", ""), {"ordered": True}, ValueError, "ordered=True needs a key"),
    ],
)
def test_publication_refuses(
    arguments: tuple[Any, Any], more: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        publication(*arguments, **more)


def test_message_of_a_refused_payload_does_not_show_it() -> None:
    with pytest.raises(PayloadError) as refused:
        publication("c", "hush\0")

    assert "hush" not in str(refused.value)
    assert refused.value.__context__ is None


def test_publication_takes_all_that_is_allowed() -> None:
    one = publication(
        "c" * 63,
        "x" * MAX_EVENT_BYTES,
        key="",
        headers={},
        delay=timedelta(minutes=1),
        dedup="",
        ordered=True,
    )

    assert (one.key, one.headers, one.delay, one.dedup) == ("", None, 60.0, "")
    assert "xx" not in repr(one)


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ("abc", "not str"),
        (5, "not int"),
        ([("a", "b", "c")], "a tuple of 3"),
        ([b"a"], "not bytes"),
        ([("a", 1)], "key must be a str, not int"),
        ([None], "not NoneType"),
    ],
)
def test_many_are_checked_too(items: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        publications("c", items)


def test_many_may_be_any_iterable() -> None:
    assert publications("c", iter(["a", ("b", "k"), ("c", None)])) == (
        "c",
        ["a", "b", "c"],
        [None, "k", None],
    )


@pytest.mark.parametrize("name", ["", "x" * 64, "é" * 32, "a\0", "\ud800"])
def test_group_is_a_name_of_1_to_63_bytes(name: str) -> None:
    with pytest.raises(ValueError, match="group"):
        check_group(name)
    with pytest.raises(TypeError, match="group must be a str, not int"):
        check_group(1)
    assert check_group("é" * 31) == "é" * 31


@pytest.mark.parametrize("name", ["", "a b", "a-b", 'a"b', "a%s", "1a", "x" * 64, "pg_x"])
def test_schema_is_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="schema must"):
        check_schema(name)
    assert check_schema("Größe_1") == "Größe_1"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Retry(0), ValueError),
        (lambda: Retry(True), TypeError),
        (lambda: Retry("3"), TypeError),  # type: ignore[arg-type]
        (lambda: Retry(backoff=(0.0, 1.0)), ValueError),
        (lambda: Retry(backoff=(2.0, 1.0)), ValueError),
        (lambda: Retry(backoff=(1.0, float("inf"))), ValueError),
        (lambda: Retry(backoff=5), TypeError),  # type: ignore[arg-type]
        (lambda: Retry(hold=1), TypeError),  # type: ignore[arg-type]
        (lambda: Later(-1), ValueError),
        (lambda: Later("1"), TypeError),  # type: ignore[arg-type]
        (lambda: Later(float("inf")), ValueError),
    ],
    ids=itertools.count(),
)
def test_retries_and_delays_are_checked(make: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_wishes_of_handlers_are_plain_exceptions() -> None:
    from pgsignals import Error

    assert not issubclass(Later, Error)
    assert not issubclass(Reject, Error)
    assert (Later(5).seconds, Reject("no").reason, Reject().reason) == (5.0, "no", "")


# Styles of placeholders


def test_statement_in_each_style() -> None:
    sql, params = publish(publication("c", "p", key="k", delay=2), "s")

    assert sql.count("%s") == len(params) == 4
    named, values = styled(sql, params, "named")
    assert "(:p1)::pg_catalog.text" in named
    assert values == {"p1": "c", "p2": "p", "p3": "k", "p4": 2.0}
    dollar, same = styled(sql, params, "numeric_dollar")
    assert "$4" in dollar
    assert same == params
    assert styled(sql, params, "format") == (sql, params)
    with pytest.raises(ValueError, match="paramstyle must be one of"):
        styled(sql, params, "qmark")
