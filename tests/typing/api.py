"""A typed program that uses all of pgsignals.  mypy --strict reads it; nothing runs it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, assert_type

import psycopg
from blinker import Signal

import pgsignals
from pgsignals import (
    ChannelNameError,
    ClosedError,
    ConnectError,
    ConnectionLostError,
    ConnectionStateError,
    Database,
    EncodingError,
    Error,
    ForkedError,
    Gap,
    Notification,
    NotificationManager,
    PayloadError,
    PoolerError,
    Reactor,
    StandbyError,
    UnsupportedServerError,
    channel,
    connect,
    on,
    on_channel,
)

DSN = "postgresql://app@localhost/shop"

OF_A_VALUE: list[type[ValueError]] = [ChannelNameError, PayloadError]
OF_A_CONNECTION: list[type[ConnectionError]] = [ConnectError, ConnectionLostError]
OF_A_SERVER: list[type[UnsupportedServerError]] = [PoolerError, StandbyError, EncodingError]
OF_USE: list[type[RuntimeError]] = [
    ClosedError,
    ConnectionStateError,
    ForkedError,
    UnsupportedServerError,
]
OURS: list[type[Error]] = [ChannelNameError, ConnectError, ForkedError, PoolerError]


def takes_text(value: str) -> None: ...


def takes_signal(value: Signal) -> None: ...


def opening() -> None:
    assert_type(connect(), Database)
    assert_type(connect(DSN, connect_timeout=3), Database)
    assert_type(connect(host="localhost", dbname="shop"), Database)

    def fresh() -> psycopg.Connection[Any]:
        return psycopg.connect(DSN, autocommit=True)

    db = Database(connect=fresh)
    assert_type(db.open(), Database)
    assert_type(Database.wrap(psycopg.connect(DSN, autocommit=True)), Database)
    with Database(DSN, dbname="shop") as opened:
        assert_type(opened, Database)


def one_database(db: Database) -> None:
    db.listen("orders", "stock")
    db.unlisten("*")
    assert_type(set(db.listening_channels()), set[str])

    assert_type(db.notify(), int)
    assert_type(db.notify("stock", ("orders", "42 paid"), prices="EUR 9.99", empty=None), int)

    for notification in db.wait(timeout=0.5):
        assert_type(notification, Notification | None)
        if notification is not None:
            forward(db, notification)
    again: Iterator[Notification | None] = db.iternotifies(1)
    next(again)
    assert_type(db.drain(), list[Notification])

    assert_type(db.backend_id, int)
    assert_type(db.fileno(), int)
    assert_type(db.closed, bool)
    db.close()


def forward(db: Database, notification: Notification) -> None:
    name, payload, pid = notification
    assert_type(name, str)
    assert_type(payload, str)
    assert_type(pid, int)
    db.notify((notification.channel, notification.payload))


def sql(db: Database) -> None:
    db.execute("SELECT * FROM orders WHERE id = %s", (42,)).fetchall()
    with db.transaction():
        db.execute("DELETE FROM orders")
    assert_type(db.connection.info.server_version, int)


def many_databases(first: Database, second: Database) -> None:
    manager = NotificationManager(first, second, timeout=1.5)
    for pair in manager:
        if pair is None:
            manager.settimeout(None)
            continue
        db, notifications = pair
        assert_type(notifications, list[Notification])
        if db.closed:
            manager.connections.discard(db)
    manager.connections.add(first)
    manager.garbage.clear()
    assert_type(manager.gettimeout(), float | None)
    manager.interrupt()


@on_channel("orders")
def ship(db: Database, notification: Notification) -> str:
    return notification.payload


@on_channel("orders", decode=json.loads, weak=True)
def charge(db: Database, *, notification: Notification, value: dict[str, Any]) -> None: ...


@on_channel("stock", "prices", batch=True, decode=json.loads)
def restock(db: Database, *, notifications: list[Notification], values: list[Any]) -> None: ...


def decorated_function_keeps_its_type(db: Database, notification: Notification) -> None:
    assert_type(ship(db, notification), str)
    ship(db)  # type: ignore[call-arg]  # it would pass if the type were lost


def channel_is_a_blinker_signal(db: Database) -> None:
    orders: Signal = channel("orders")
    orders.connect(ship, sender=db)
    with orders.connected_to(ship):
        orders.send(db, notification=Notification("orders", "", 1))
    orders.disconnect(ship)


def reactor(db: Database) -> None:
    reactor = Reactor(
        db,
        DSN,
        channels=("orders", "stock"),
        timeout=1,
        workers=4,
        max_backlog=1000,
        overflow="coalesce",
        backoff=(0.1, 30.0),
        probe_interval=None,
        probe_timeout=5.0,
        name="shop",
    )

    @reactor.on_channel("orders", sender=db)
    def pack(db: Database, *, notification: Notification) -> None: ...

    private: Signal = reactor.channel("orders")
    private.disconnect(pack)

    reactor.start()
    assert_type(reactor.running, bool)
    assert_type(reactor.notify("stock", ("orders", "42"), database=db, prices="1"), int)
    reactor.listen("orders", database=db)
    reactor.unlisten("orders")
    assert_type(reactor.databases, tuple[Database, ...])
    assert_type(reactor.stop(timeout=5), bool)
    reactor.join()
    with Reactor(DSN) as running:
        assert_type(running, Reactor)
    Reactor(DSN).run(stop_timeout=2.0)


def signals(reactor: Reactor) -> None:
    @reactor.connected.connect
    def connected(db: Database, *, resumed: bool) -> None: ...

    @reactor.lost.connect
    def lost(db: Database, *, reason: str, error: ConnectionLostError) -> None: ...

    @reactor.gap.connect
    def stale(db: Database, *, gap: Gap) -> None:
        assert_type(gap.database, Database)
        assert_type(gap.since, datetime)
        assert_type(gap.until, datetime)
        assert_type(gap.dropped, int | None)
        assert_type(gap.channels, frozenset[str] | None)
        takes_text(gap.reason)

    @reactor.idle.connect
    def idle(reactor: Reactor) -> None: ...

    @reactor.any_channel.connect
    def audit(db: Database, *, notification: Notification) -> None: ...

    @reactor.handler_failed.connect
    def failed(
        db: Database,
        *,
        notification: Notification | list[Notification] | None,
        handler: Callable[..., object],
        error: BaseException,
    ) -> None: ...

    @reactor.stopped.connect
    def stopped(reactor: Reactor, *, error: Exception | None) -> None: ...

    takes_signal(reactor.connected)
    reactor.gap.disconnect(stale)


@on("gap")
def reload(db: Database, gap: Gap) -> str:
    return gap.reason


@on("connected", "lost")
def note(db: Database, **_: object) -> None: ...


def on_keeps_the_type(db: Database, gap: Gap, reactor: Reactor) -> None:
    assert_type(reload(db, gap), str)
    note(db, resumed=True)

    @reactor.on("connected")
    def connected(db: Database, *, resumed: bool) -> None: ...

    @reactor.on("lost")
    def lost(db: Database, *, reason: str, error: ConnectionLostError) -> None: ...

    @reactor.on("idle")
    def idle(reactor: Reactor) -> None: ...

    @reactor.on("handler_failed")
    def failed(
        db: Database,
        *,
        notification: Notification | list[Notification] | None,
        handler: Callable[..., object],
        error: BaseException,
    ) -> None: ...

    @reactor.on("stopped")
    def stopped(reactor: Reactor, *, error: BaseException | None) -> None: ...

    @reactor.on("any_channel")
    def audit(db: Database, *, notification: Notification) -> None: ...


def status(reactor: Reactor) -> str:
    status = reactor.status()
    assert_type(status.running, bool)
    assert_type(status.backlog, int)
    for database in status.databases:
        assert_type(database.name, str)
        assert_type(database.channels, tuple[str, ...])
        assert_type(database.backend_id, int | None)
        assert_type(database.last_received, float | None)
        assert_type(database.probe_seconds, float | None)
        assert_type(database.queue_usage, float | None)
        assert_type(database.last_error, str | None)
        takes_text(database.state)
        counts = (
            database.received,
            database.dispatched,
            database.dropped,
            database.failed,
            database.gaps,
            database.reconnects,
        )
        assert_type(counts, tuple[int, int, int, int, int, int])
    return json.dumps(dataclasses.asdict(status))


def errors(db: Database) -> None:
    try:
        db.listen("orders")
    except ConnectionLostError as error:
        assert_type(error.sqlstate, str | None)
    except pgsignals.Error as error:
        takes_text(str(error))


def wrong_types(db: Database, reactor: Reactor) -> None:
    # Each of these would be an unused ignore, and so an error, if the type were accepted.
    db.listen(1)  # type: ignore[arg-type]  # a name is text
    db.notify(("orders", "42", 7))  # type: ignore[arg-type]  # a pair, not a Notification
    db.wait(timeout="1")  # type: ignore[arg-type]  # seconds
    on("gaps")  # type: ignore[call-overload]  # no such signal
    on()  # type: ignore[call-overload]  # which one?
    Reactor(DSN, overflow="fail")  # type: ignore[arg-type]  # no such policy
    reactor.notify(orders=b"43")  # type: ignore[arg-type]  # a payload is text
