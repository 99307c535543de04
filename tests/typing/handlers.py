"""Handlers whose ``value`` mypy knows.  mypy --strict reads it; nothing runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, TypeVar, assert_type

import pydantic
import pydantic.dataclasses

from pgsignals import Database, Notification, Reactor, on_channel

T = TypeVar("T")


@dataclass
class Order:
    number: int
    paid: bool = False


@dataclass
class Word:  # its constructor takes a text, which is not what decode= does with it
    text: str


class Parcel(pydantic.BaseModel):
    weight: float


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


@pydantic.dataclasses.dataclass
class Stamp:
    cents: int


def percent(payload: str) -> float:
    return int(payload) / 100


# Each kind of decode, and each way to write the parameters


@on_channel("orders", decode=Order)
def of_a_dataclass(db: Database, notification: Notification, value: Order) -> str:
    assert_type(value, Order)
    return notification.payload


@on_channel("words", decode=Word)
def of_a_dataclass_of_one_text(sender: object, *, notification: Notification, value: Word) -> None:
    """What the sender's parameter is called does not matter."""


@on_channel("parcels", decode=Parcel)
def of_a_model(db: Database, *, value: Parcel, notification: Notification) -> None: ...


@on_channel("parcels", decode=Parcel.model_validate_json)
def of_a_method(db: Database, *, notification: Notification, value: Parcel) -> None: ...


@on_channel("parcels", decode=pydantic.TypeAdapter(list[Parcel]))
def of_an_adapter(db: Database, notification: Notification, value: list[Parcel]) -> None: ...


@on_channel("stamps", decode=Stamp)
def of_a_dataclass_of_pydantic(db: Database, notification: Notification, value: Stamp) -> None: ...


@on_channel("pages", decode=Page[int])
def of_a_generic_model(db: Database, notification: Notification, value: Page[int]) -> None: ...


@on_channel("numbers", decode=int)
def of_a_type(
    db: Database, /, notification: Notification, value: int, more: str = "", **rest: object
) -> None: ...


@on_channel("prices", decode=Decimal)
def of_a_class(db: Database, notification: Notification, value: Decimal | None) -> None: ...


@on_channel("parts", decode=percent)
def of_a_function(db: Database, notification: Notification, value: float) -> None: ...


@on_channel("things", decode=json.loads)
def of_anything(db: Database, notification: Notification, value: dict[str, Any]) -> None: ...


@on_channel("numbers", decode=int)
def of_keywords(*args: Database, **keywords: Any) -> None: ...


@on_channel("orders", decode=Order, batch=True)
def of_batches(db: Database, notifications: list[Notification], values: list[Order]) -> int:
    return len(values)


@on_channel("parcels", decode=Parcel, batch=True)
def of_many_models(
    db: Database, notifications: Sequence[Notification], values: Sequence[Parcel]
) -> None: ...


@on_channel("things", decode=json.loads, batch=True)
def of_many_things(db: Database, notifications: list[Notification], values: list[Any]) -> None: ...


@on_channel("orders")
def plain(db: Database, notification: Notification, again: bool = False) -> bool:
    return again


@on_channel("orders", batch=True)
def plain_batch(db: Database, *, notifications: list[Notification]) -> None: ...


def decorated_functions_keep_their_types(db: Database, notification: Notification) -> None:
    assert_type(of_a_dataclass(db, notification, Order(1)), str)
    assert_type(of_a_dataclass(db=db, notification=notification, value=Order(1)), str)
    assert_type(of_batches(db, [notification], values=[Order(1)]), int)
    assert_type(plain(db, notification, again=True), bool)
    of_a_type(db, notification, 1, "more", beside=True)
    of_a_dataclass(db, notification)  # type: ignore[call-arg]  # it would pass were the type lost


# Whatever is callable


class Ledger:
    def __init__(self, reactor: Reactor) -> None:
        reactor.on_channel("orders", decode=Order)(self.enter)
        reactor.on_channel("orders", decode=Order, batch=True)(self.enter_all)

    def __call__(self, db: Database, *, notification: Notification) -> None: ...

    def enter(self, db: Database, notification: Notification, value: Order) -> None: ...

    def enter_all(
        self, db: Database, notifications: list[Notification], values: list[Order]
    ) -> None: ...


def untyped(db, notification, value):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
    """What has no types is accepted."""


def an_object_keeps_its_type(reactor: Reactor, ledger: Ledger) -> None:
    assert_type(reactor.on_channel("orders")(ledger), Ledger)


def others(reactor: Reactor, anything: Callable[..., object], *, batch: bool) -> None:
    reactor.on_channel("numbers", decode=int)(untyped)
    reactor.on_channel("numbers", decode=int, batch=True)(anything)
    reactor.on_channel("numbers", decode=int)(lambda db, notification, value: None)
    reactor.on_channel("numbers", decode=int)(lambda *_, **__: None)
    reactor.on_channel("numbers")(lambda db, notification: None)
    reactor.on_channel("numbers", batch=batch)(anything)
