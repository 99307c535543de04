"""What ``decode=`` makes of a payload."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys
import typing
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pydantic
import pydantic.dataclasses
import pytest

from pgsignals import Database, Notification, Reactor
from pgsignals._pure.decode import decoder
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Line:
    item: str
    cents: int = 0


@dataclasses.dataclass
class Order:
    number: int
    paid: bool = False
    weight: float = 0.0
    note: str | None = None
    sent: datetime | None = None
    lines: list[Line] = dataclasses.field(default_factory=list)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    more: Any = None
    parent: typing.Optional[Order] = None  # noqa: UP045  # the old way, too
    total: int = dataclasses.field(default=0, init=False)
    LIMIT: ClassVar[int] = 10


class Parcel(pydantic.BaseModel):
    weight: float


@pydantic.dataclasses.dataclass
class Stamp:
    cents: int


# Dataclasses

ORDERS = {
    '{"number": 1}': Order(1),
    ' {"number": 1, "paid": true, "note": null} ': Order(1, paid=True),
    '{"number": 1, "weight": 2}': Order(1, weight=2.0),
    '{"number": 1, "sent": "2026-11-22T21:00:00.5+00:00"}': Order(
        1, sent=datetime(2026, 11, 22, 21, 0, 0, 500_000, UTC)
    ),
    '{"number": 1, "lines": [{"item": "cup", "cents": 3}, {"item": "tea"}]}': Order(
        1, lines=[Line("cup", 3), Line("tea")]
    ),
    '{"number": 1, "tags": {"a": "b"}, "more": [1, {"c": null}]}': Order(
        1, tags={"a": "b"}, more=[1, {"c": None}]
    ),
    '{"number": 2, "parent": {"number": 1}}': Order(2, parent=Order(1)),
}


@pytest.mark.parametrize("payload", ORDERS)
def test_dataclass_is_made_of_a_json_object(payload: str) -> None:
    order = decoder(Order)(payload)

    assert order == ORDERS[payload]
    assert type(order.weight) is float


REFUSED = {
    "": "Order: the payload is not JSON",
    "secret": "Order: the payload is not JSON",
    '{"number": 1} secret': "Order: the payload is not JSON",
    '["secret"]': "Order must be an object, not a list",
    '"secret"': "Order must be an object, not text",
    "null": "Order must be an object, not null",
    "{}": "Order lacks number",
    '{"number": 1, "secret": 2}': "Order has 1 more than number, paid, weight, ",
    '{"number": 1, "total": 2}': "Order has 1 more than ",
    '{"number": "secret"}': "Order.number must be a whole number, not text",
    '{"number": 1.0}': "Order.number must be a whole number, not a number",
    '{"number": true}': "Order.number must be a whole number, not true or false",
    '{"number": null}': "Order.number must be a whole number, not null",
    '{"number": 1, "paid": 1}': "Order.paid must be true or false, not a whole number",
    '{"number": 1, "weight": true}': "Order.weight must be a number, not true or false",
    '{"number": 1, "note": {"secret": 1}}': "Order.note must be text, not an object",
    '{"number": 1, "sent": "secret"}': "Order.sent must be an ISO 8601 time",
    '{"number": 1, "sent": 1}': "Order.sent must be an ISO 8601 time",
    '{"number": 1, "lines": "secret"}': "Order.lines must be a list, not text",
    '{"number": 1, "lines": [{"item": "a"}, {}]}': "Order.lines[1] lacks item",
    '{"number": 1, "tags": {"secret": 1}}': "Order.tags[...] must be text, not a whole number",
    '{"number": 2, "parent": {"number": []}}': "Order.parent.number must be a whole number, not a",
}


@pytest.mark.parametrize("payload", REFUSED)
def test_what_does_not_fit_a_dataclass_is_refused_and_not_repeated(payload: str) -> None:
    with pytest.raises(ValueError, match=r"^Order") as refused:
        decoder(Order)(payload)

    assert str(refused.value).startswith(REFUSED[payload])
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None or refused.value.__suppress_context__


def test_dataclass_may_refuse_by_itself() -> None:
    @dataclasses.dataclass
    class Percent:
        value: int

        def __post_init__(self) -> None:
            if self.value > 100:
                raise OverflowError

    assert decoder(Percent)('{"value": 100}') == Percent(100)
    with pytest.raises(OverflowError):
        decoder(Percent)('{"value": 101}')


@pytest.mark.parametrize(
    "hint", [set[int], tuple[int, ...], int | str, int | str | None, bytes, dict[int, str], list]
)
def test_fields_that_want_more_are_refused_at_registration(hint: Any) -> None:
    cls = dataclasses.make_dataclass("Cls", [("number", hint)])

    with pytest.raises(TypeError, match=r"Cls.number: .* pydantic"):
        Reactor("").on_channel("orders", decode=cls)


def test_field_that_is_only_an_argument_is_refused() -> None:
    cls = dataclasses.make_dataclass("Cls", [("number", dataclasses.InitVar[int])])

    with pytest.raises(TypeError, match=r"Cls.number: .* pydantic"):
        decoder(cls)


def test_annotation_that_cannot_be_resolved_is_named() -> None:
    cls = dataclasses.make_dataclass("Cls", [("number", "Missing")])

    with pytest.raises(TypeError, match=r"Cls: name 'Missing' is not defined"):
        decoder(cls)


# pydantic

OF_PYDANTIC: dict[str, tuple[Any, object]] = {
    "model": (Parcel, Parcel(weight=1.5)),
    "method": (Parcel.model_validate_json, Parcel(weight=1.5)),
    "adapter": (pydantic.TypeAdapter(dict[str, Parcel | float]), {"weight": 1.5}),
    "adapter of a dataclass": (pydantic.TypeAdapter(Line | Parcel), Parcel(weight=1.5)),
}


@pytest.mark.parametrize("kind", OF_PYDANTIC)
def test_pydantic_validates(kind: str) -> None:
    decode, value = OF_PYDANTIC[kind]

    assert decoder(decode)('{"weight": 1.5}') == value
    with pytest.raises(pydantic.ValidationError):
        decoder(decode)('{"weight": "heavy"}')


def test_dataclass_of_pydantic_is_validated_by_it() -> None:
    assert decoder(Stamp)('{"cents": "80"}') == Stamp(80)
    with pytest.raises(pydantic.ValidationError):
        decoder(Stamp)('{"cents": "many"}')


def test_pydantic_is_not_imported() -> None:
    program = "import sys, pgsignals; print('pydantic' in sys.modules)"
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert printed == "False\n"


# Whatever is callable


class Text(str):
    """A class that is called like any callable."""


class Pair(typing.NamedTuple):
    text: str


class Line2(Line):
    """A dataclass, as it inherits from one."""


@pytest.mark.parametrize("decode", [int, float, str, json.loads, Text, Pair, str.upper, len])
def test_any_other_callable_is_called_with_the_payload(decode: Callable[[str], Any]) -> None:
    assert decoder(decode) is decode


def test_heir_of_a_dataclass_is_one() -> None:
    assert decoder(Line2)('{"item": "cup"}') == Line2("cup")


@pytest.mark.parametrize("decode", ["json", 5, Line("cup"), Parcel(weight=1.0)])
def test_what_cannot_be_called_is_a_type_error(decode: Any) -> None:
    with pytest.raises(TypeError, match=f"decode must be .*, not {type(decode).__name__}"):
        decoder(decode)


@pytest.mark.parametrize("decode", [list[int], dict[str, Line], Line | None], ids=repr)
def test_alias_is_no_decode(decode: Any) -> None:
    """``list[int]("12")`` would be ``["1", "2"]``."""
    with pytest.raises(TypeError, match="TypeAdapter"):
        decoder(decode)


# With a server


@pytest.mark.parametrize(
    ("decode", "payload", "value"),
    [
        (Order, '{"number": 1, "lines": [{"item": "cup"}]}', Order(1, lines=[Line("cup")])),
        (Parcel, '{"weight": 1.5}', Parcel(weight=1.5)),
        (pydantic.TypeAdapter(list[int]), "[1, 2]", [1, 2]),
        (int, "7", 7),
    ],
    ids=["dataclass", "model", "adapter", "callable"],
)
def test_handlers_are_given_the_value(
    dsn: str, channel: str, decode: Any, payload: str, value: object
) -> None:
    values: list[object] = []
    batched: list[object] = []

    def take(db: Database, *, notification: Notification, value: object) -> None:
        values.append(value)

    def take_all(db: Database, notifications: list[Notification], values: list[object]) -> None:
        batched.extend(values)

    with Reactor(dsn) as reactor:
        reactor.on_channel(channel, decode=decode)(take)
        reactor.on_channel(channel, decode=decode, batch=True)(take_all)
        reactor.notify((channel, payload))
        wait_until(lambda: values and batched)

    assert values == batched == [value]


def test_payload_that_does_not_fit_goes_to_handler_failed(
    dsn: str, channel: str, caplog: pytest.LogCaptureFixture
) -> None:
    values: list[Order] = []
    failures: list[tuple[Any, BaseException]] = []
    reactor = Reactor(dsn)

    @reactor.on_channel(channel, decode=Order)
    def handler(db: Database, notification: Notification, value: Order) -> None:
        values.append(value)

    @reactor.handler_failed.connect
    def failed(db: Database, *, notification: Any, handler: object, error: BaseException) -> None:
        failures.append((notification.payload, error))

    with reactor, caplog.at_level(logging.ERROR):
        reactor.notify((channel, '{"number": "secret"}'), (channel, '{"number": 2}'))
        wait_until(lambda: values)

    ((payload, error),) = failures
    assert (payload, values) == ('{"number": "secret"}', [Order(2)])
    assert str(error) == "Order.number must be a whole number, not text"
    assert "the decode of" in caplog.text
    assert "secret" not in caplog.text
