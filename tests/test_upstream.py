"""What py-postgresql tested of its notifications, in its order, by our names.

Written anew from a list of scenarios; where the original fell short, what it promised counts.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgsignals import NotificationManager
from pgsignals.errors import ChannelNameError
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.arrivals import Connect, everything
from tests.support.protocol import messages, notification_response
from tests.support.waiting import Background, hangs_fail, wait_until

pytestmark = hangs_fail


@pytest.fixture
def foo(new_channel: Callable[[], str]) -> str:
    return new_channel()


@pytest.fixture
def bar(new_channel: Callable[[], str]) -> str:
    return new_channel()


@pytest.mark.spec("U1")
def test_two_connections_signal_each_other(connect: Connect, foo: str, bar: str) -> None:
    a, b = connect(), connect()
    a.listen(foo)
    b.listen(bar)
    manager = NotificationManager(a, b)
    b.notify(foo)
    a.notify(bar)
    got = {}
    for event in manager:
        assert event is not None
        database, notifications = event
        got[database] = notifications
        manager.connections.discard(database)

    assert got == {a: [(foo, "", b.backend_id)], b: [(bar, "", a.backend_id)]}


@pytest.mark.spec("U2")
def test_idle_events_drive_work(connect: Connect, foo: str) -> None:
    database = connect()
    database.listen(foo)
    events = 0
    for event in NotificationManager(database, timeout=0.1):
        if event is None:
            database.notify(foo)
            continue
        assert event == (database, [(foo, "", database.backend_id)])
        events += 1
        if events == 4:
            break

    assert events == 4


@pytest.mark.spec("U3")
def test_zero_timeout_of_a_manager(connect: Connect, foo: str) -> None:
    database = connect()
    database.listen(foo)
    manager = NotificationManager(database, timeout=0)
    assert list(manager) == []

    database.notify(foo)

    assert list(manager) == [(database, [(foo, "", database.backend_id)])]
    assert list(manager) == []


@pytest.mark.spec("U4")
def test_zero_timeout_of_wait(connect: Connect, foo: str) -> None:
    database = connect()
    database.listen(foo)
    assert list(database.wait(0)) == []

    database.notify(foo)

    assert list(database.wait(0)) == [(foo, "", database.backend_id)]
    assert list(database.iternotifies(0)) == []


@pytest.mark.spec("U5")
def test_wait_in_a_thread(connect: Connect, foo: str, bar: str) -> None:
    a, b = connect(), connect()
    b.listen(foo, bar)

    def collect() -> list[object]:
        got: list[object] = []
        for notification in b.wait():
            assert notification is not None
            if notification.channel == bar:
                break
            got.append(notification)
        return got

    collecting = Background(collect)
    collecting.until_it_waits()
    a.notify(foo)
    a.notify(bar)

    assert collecting.result() == [(foo, "", a.backend_id)]


@pytest.mark.spec("U6")
def test_close_at_an_event(connect: Connect, foo: str) -> None:
    database = connect()
    database.listen(foo)
    database.notify(foo)
    got = []
    for notification in database.wait():
        got.append(notification)
        database.close()

    assert got == [(foo, "", database.backend_id)]
    assert database.closed


@pytest.mark.spec("U7")
def test_close_at_an_idle_event_after_something_was_collected(connect: Connect, foo: str) -> None:
    database = connect()
    database.listen(foo)
    got = []
    for notification in database.wait(0.2):
        if notification is None:
            database.notify(foo)
            database.execute("")
            database.close()
        else:
            got.append(notification)

    assert got == [(foo, "", database.backend_id)]
    assert database.closed


@pytest.mark.spec("U8")
def test_listening_channels(connect: Connect, foo: str, bar: str) -> None:
    database = connect()
    database.listen(foo, bar)
    assert set(database.listening_channels()) == {foo, bar}
    database.unlisten(bar)
    database.listen(foo, bar)
    assert set(database.listening_channels()) == {foo, bar}
    database.unlisten(foo, bar)

    assert set(database.listening_channels()) == set()


@pytest.mark.spec("U9")
def test_notify(connect: Connect, admin: Admin, foo: str, bar: str) -> None:
    database = connect()
    for _ in range(2):
        database.listen(foo, bar)
    for channel in (foo, bar):
        database.notify(channel)
        assert everything(database, admin) == [(channel, "", database.backend_id)]
    database.unlisten(foo)
    database.notify(foo)

    assert everything(database, admin) == []


@pytest.mark.spec("U10")
def test_listen_is_all_or_none(connect: Connect, foo: str) -> None:
    database = connect()
    with pytest.raises(ChannelNameError):
        database.listen(foo, "x" * 64)

    assert list(database.listening_channels()) == []


@pytest.mark.spec("U11")
def test_payloads(connect: Connect, admin: Admin, foo: str) -> None:
    database = connect()
    database.listen(foo)
    database.notify(**{foo: "bar"})
    database.notify((foo, "barred"))
    database.notify((foo, "barred"), foo, (foo, "bleh"), **{foo: "kw"})

    assert [notification.payload for notification in everything(database, admin)] == [
        "bar",
        "barred",
        "barred",
        "",
        "bleh",
        "kw",
    ]


@pytest.mark.spec("U12")
def test_several_keywords(connect: Connect, admin: Admin, foo: str, bar: str) -> None:
    database = connect()
    database.listen(foo, bar)
    database.notify(**{foo: "meh", bar: "foo"})

    assert {(n.channel, n.payload) for n in everything(database, admin)} == {
        (foo, "meh"),
        (bar, "foo"),
    }


@pytest.mark.spec("U13")
def test_notification_in_the_midst_of_a_copy(
    connect: Connect, proxy: Proxy, proxied: str, foo: str
) -> None:
    """No server sends one there, but the protocol allows it.  psycopg keeps a session to itself
    while it copies, so the notification comes when it is done."""
    database = connect(proxied)
    proxy.freeze("to_client")

    def inject(data: bytes) -> bytes:
        answer = messages(data)
        assert [message[:1] for message in answer] == [b"H", *[b"d"] * 9, b"c", b"C", b"Z"]
        return b"".join([*answer[:4], notification_response(4711, foo, "1"), *answer[4:]])

    def copy() -> tuple[list[bytes], list[object]]:
        rows: list[bytes] = []
        got: list[object] = []
        statement = "COPY (SELECT generate_series(1, 9)) TO STDOUT"
        with database.connection.cursor().copy(statement) as copying:
            for row in copying:
                rows.append(bytes(row))
                got += database.wait(0)
        return rows, got + list(database.wait(0))

    copying = Background(copy)
    wait_until(lambda: proxy.held("to_client") and is_complete(proxy))
    proxy.rewrite("to_client", inject)
    proxy.thaw()
    rows, got = copying.result()

    assert rows == [b"%d\n" % number for number in range(1, 10)]
    assert got == [(foo, "1", 4711)]
    assert database.execute("SELECT 1").fetchone() == (1,)


def is_complete(proxy: Proxy) -> bool:
    """Whether the end of an answer is among what is held."""
    kinds: list[bytes] = []

    def look(data: bytes) -> bytes:
        kinds.extend(message[:1] for message in messages(data))
        return data

    proxy.rewrite("to_client", look)
    return kinds[-1:] == [b"Z"]
