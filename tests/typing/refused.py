"""What mypy refuses: each line with an ignore, and no other.  Nothing runs it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pydantic

from pgsignals import Database, Gap, Notification, Reactor, on, on_channel


@dataclass
class Order:
    number: int


class Parcel(pydantic.BaseModel):
    weight: float


# The value is another one


@on_channel("orders", decode=Order)  # type: ignore[arg-type]
def takes_a_number(db: Database, notification: Notification, value: int) -> None: ...


@on_channel("orders", decode=Order)  # type: ignore[arg-type]
def takes_a_parcel(db: Database, *, notification: Notification, value: Parcel) -> None: ...


@on_channel("parcels", decode=Parcel)  # type: ignore[arg-type]
def takes_an_order(db: Database, notification: Notification, value: Order) -> None: ...


@on_channel("parcels", decode=Parcel.model_validate_json)  # type: ignore[arg-type]
def takes_a_dict(db: Database, notification: Notification, value: dict[str, float]) -> None: ...


@on_channel("parcels", decode=pydantic.TypeAdapter(list[Parcel]))  # type: ignore[arg-type]
def takes_one(db: Database, notification: Notification, value: Parcel) -> None: ...


@on_channel("numbers", decode=int)  # type: ignore[arg-type]
def takes_text(db: Database, notification: Notification, value: str) -> None: ...


@on_channel("orders", decode=Order, batch=True)  # type: ignore[arg-type]
def takes_numbers(db: Database, notifications: list[Notification], values: list[int]) -> None: ...


# The parameters are others


@on_channel("orders", decode=Order)  # type: ignore[arg-type]
def takes_no_value(db: Database, notification: Notification) -> None: ...


@on_channel("things", decode=json.loads)  # type: ignore[arg-type]
def calls_it_otherwise(db: Database, notification: Notification, thing: object) -> None: ...


@on_channel("things", decode=json.loads)  # type: ignore[arg-type]
def wants_more(db: Database, notification: Notification, value: object, more: int) -> None: ...


@on_channel("orders", decode=Order, batch=True)  # type: ignore[arg-type]
def takes_a_single_one(db: Database, notification: Notification, value: Order) -> None: ...


@on_channel("orders")  # type: ignore[type-var]
def takes_a_value(db: Database, notification: Notification, value: str) -> None: ...


@on_channel("orders")  # type: ignore[type-var]
def takes_a_batch(db: Database, notifications: list[Notification]) -> None: ...


@on_channel("orders", batch=True)  # type: ignore[type-var]
def takes_no_batch(db: Database, notification: Notification) -> None: ...


@on_channel("orders")  # type: ignore[type-var]
def takes_the_payload(payload: str) -> None: ...


@on("gap")  # type: ignore[type-var]
def takes_no_gap(db: Database, notification: Notification) -> None: ...


@on("idle")  # type: ignore[type-var]
def takes_a_gap(reactor: Reactor, gap: Gap) -> None: ...


class Ledger:
    def enter(self, db: Database, notification: Notification, value: int) -> None: ...


def of_a_reactor(reactor: Reactor, ledger: Ledger) -> None:
    @reactor.on_channel("orders", decode=Order)  # type: ignore[arg-type]
    def pack(db: Database, notification: Notification, value: int) -> None: ...

    reactor.on_channel("orders", decode=Order)(ledger.enter)  # type: ignore[arg-type]
    reactor.on_channel("orders", decode=bytes)  # type: ignore[type-var]
    reactor.on_channel("orders", decode=5)  # type: ignore[call-overload]
    reactor.on_channel("orders", sender="db")  # type: ignore[call-overload]
