"""LISTEN follows handlers, and what ``listen`` adds to it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pgsignals
from pgsignals import (
    ChannelNameError,
    ClosedError,
    Database,
    Notification,
    Reactor,
    on_channel,
)
from tests.support.admin import Admin
from tests.support.arrivals import Connect
from tests.support.values import BAD_NAMES, BAD_NAMES_EVERYWHERE, GOOD_NAMES
from tests.support.waiting import PATIENCE, Background, wait_until

QUIET: dict[str, Any] = {"probe_interval": None}  # nothing but what is asked for mends a LISTEN


def nothing(*_: object, **__: object) -> None:
    """A handler."""


def listening(reactor: Reactor, number: int = 0) -> tuple[str, ...]:
    return reactor.status().databases[number].channels


class Ear:
    """Everything that arrives at a reactor."""

    def __init__(self, reactor: Reactor) -> None:
        self.heard: list[tuple[Database, str, str]] = []
        reactor.any_channel.connect(self._hear, weak=False)

    def _hear(self, sender: Database, notification: Notification) -> None:
        self.heard.append((sender, notification.channel, notification.payload))

    @property
    def channels(self) -> list[str]:
        return [channel for _, channel, _ in self.heard]

    def hears(self, admin: Admin, *channels: str) -> list[str]:
        """Which of *channels* arrive when they are notified; the first one has to."""
        self.heard.clear()
        for channel in (*channels[1:], channels[0]):
            admin.notify(channel)
        wait_until(lambda: channels[0] in self.channels)
        return self.channels


@pytest.fixture
def names(new_channel: Callable[[], str]) -> list[str]:
    return [new_channel() for _ in range(4)]


@pytest.fixture
def module_handlers(names: list[str]) -> Iterator[None]:
    """Takes the module's handlers away after the test."""
    yield
    for name in names:
        signal = pgsignals.channel(name)
        for receiver in list(signal.receivers_for(None)):
            signal.disconnect(receiver)


# Handlers


def test_handlers_of_before_the_start_are_listened_to(
    dsn: str, names: list[str], admin: Admin, module_handlers: None
) -> None:
    reactor = Reactor(dsn, **QUIET)
    ear = Ear(reactor)
    reactor.on_channel(names[0])(nothing)
    on_channel(names[1])(nothing)
    with reactor:
        assert listening(reactor) == tuple(sorted(names[:2]))
        assert sorted(ear.hears(admin, *names)) == sorted(names[:2])


@pytest.mark.parametrize("of_module", [False, True])
def test_first_handler_listens_and_the_last_that_leaves_unlistens(
    dsn: str, names: list[str], admin: Admin, of_module: bool, module_handlers: None
) -> None:
    def second(*_: object, **__: object) -> None: ...

    with Reactor(dsn, channels=names[:1], **QUIET) as reactor:
        signal = pgsignals.channel(names[1]) if of_module else reactor.channel(names[1])
        ear = Ear(reactor)
        signal.connect(nothing)
        signal.connect(second)
        wait_until(lambda: names[1] in listening(reactor))
        assert ear.hears(admin, *names) == [names[1], names[0]]
        signal.disconnect(nothing)
        reactor.listen()
        assert ear.hears(admin, *names) == [names[1], names[0]]
        signal.disconnect(second)
        wait_until(lambda: names[1] not in listening(reactor))

        assert ear.hears(admin, *names) == [names[0]]


def test_handler_of_the_module_and_of_the_reactor_count_both(
    dsn: str, names: list[str], module_handlers: None
) -> None:
    with Reactor(dsn, **QUIET) as reactor:
        on_channel(names[0])(nothing)
        reactor.on_channel(names[0])(nothing)
        pgsignals.channel(names[0]).disconnect(nothing)
        reactor.listen()
        assert listening(reactor) == (names[0],)
        reactor.channel(names[0]).disconnect(nothing)
        reactor.listen()

        assert listening(reactor) == ()


def test_handler_from_any_thread_is_listened_to_without_a_probe(
    dsn: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    names = [new_channel() for _ in range(40)]
    with Reactor(dsn, **QUIET) as reactor:
        ear = Ear(reactor)
        threads = [Background(reactor.on_channel(name), nothing) for name in names]
        for thread in threads:
            thread.result()
        wait_until(lambda: set(listening(reactor)) == set(names))

        assert sorted(ear.hears(admin, *names)) == sorted(names)


def test_collected_handler_unlistens(dsn: str, names: list[str]) -> None:
    class Cache:
        def clear(self, *_: object, **__: object) -> None: ...

    cache = Cache()
    with Reactor(dsn, **QUIET) as reactor:
        reactor.channel(names[0]).connect(cache.clear)
        wait_until(lambda: listening(reactor) == (names[0],))
        del cache
        gc.collect()
        wait_until(lambda: listening(reactor) == ())


def test_handlers_that_come_and_go_leave_what_is_wanted(
    dsn: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    names = [new_channel() for _ in range(8)]
    with Reactor(dsn, **QUIET) as reactor:
        ear = Ear(reactor)

        def churn(number: int) -> None:
            for turn in range(200):
                name = names[(turn + number) % len(names)]

                def mine(*_: object, **__: object) -> None: ...

                reactor.channel(name).connect(mine, weak=False)
                reactor.channel(name).disconnect(mine)
            reactor.on_channel(names[number])(nothing)

        threads = [Background(churn, number) for number in range(4)]
        for thread in threads:
            thread.result(40)
        reactor.listen()

        assert listening(reactor) == tuple(sorted(names[:4]))
        assert sorted(ear.hears(admin, *names)) == sorted(names[:4])


def test_ten_thousand_channels_are_listened_to(dsn: str, admin: Admin) -> None:
    names = [f"of_many_{number}" for number in range(10_000)]
    with Reactor(dsn, channels=names) as reactor:
        assert len(listening(reactor)) == 10_000
        ear = Ear(reactor)

        assert sorted(ear.hears(admin, names[0], names[5000], "of_many_x", names[-1])) == sorted(
            [names[0], names[5000], names[-1]]
        )


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_any_possible_name_is_heard_as_it_is(dsn: str, name: str) -> None:
    with Reactor(dsn, **QUIET) as reactor:
        ear = Ear(reactor)
        reactor.on_channel(name)(nothing)
        reactor.notify((name, "1"))
        wait_until(lambda: ear.heard)

        assert ear.heard == [(reactor.databases[0], name, "1")]


# listen and unlisten


def test_channels_are_listened_to_handler_or_not(dsn: str, names: list[str], admin: Admin) -> None:
    with Reactor(dsn, channels=iter(names[:2])) as reactor:
        ear = Ear(reactor)

        assert ear.hears(admin, *names) == [names[1], names[0]]


def test_listen_is_acknowledged_when_it_returns(dsn: str, names: list[str], admin: Admin) -> None:
    with Reactor(dsn, **QUIET) as reactor:
        ear = Ear(reactor)
        for name in names:
            reactor.listen(name)
            admin.notify(name)
        wait_until(lambda: len(ear.heard) == len(names))

        assert ear.channels == names


def test_unlisten_takes_back_what_listen_did(dsn: str, names: list[str], admin: Admin) -> None:
    with Reactor(dsn, channels=names, **QUIET) as reactor:
        ear = Ear(reactor)
        reactor.unlisten(names[1], "never listened to")
        assert listening(reactor) == tuple(sorted([names[0], *names[2:]]))
        assert names[1] not in ear.hears(admin, *names)
        reactor.unlisten("*")

        assert listening(reactor) == ()


def test_channel_with_handlers_stays(dsn: str, names: list[str], admin: Admin) -> None:
    with Reactor(dsn, **QUIET) as reactor:
        ear = Ear(reactor)
        reactor.on_channel(names[0])(nothing)
        reactor.listen(*names[:2])
        reactor.unlisten(names[0])
        assert listening(reactor) == tuple(sorted(names[:2]))
        reactor.unlisten("*")
        assert listening(reactor) == (names[0],)

        assert ear.hears(admin, *names) == [names[0]]


def test_channel_that_is_listened_to_stays_without_handlers(dsn: str, names: list[str]) -> None:
    with Reactor(dsn, channels=names[:1], **QUIET) as reactor:
        reactor.on_channel(names[0])(nothing)
        reactor.channel(names[0]).disconnect(nothing)
        reactor.listen()

        assert listening(reactor) == (names[0],)


def test_listen_is_remembered_before_the_start_and_over_lives(
    dsn: str, names: list[str], admin: Admin
) -> None:
    reactor = Reactor(dsn, channels=names[:1], **QUIET)
    ear = Ear(reactor)
    reactor.listen(*names[1:3])
    reactor.unlisten(names[0])
    for _ in range(2):
        with reactor:
            assert ear.hears(admin, names[1], names[2], names[0]) == [names[2], names[1]]
    reactor.unlisten("*")
    with reactor:
        assert listening(reactor) == ()


def test_listen_without_names_waits_for_what_was_asked_for(dsn: str, names: list[str]) -> None:
    with Reactor(dsn, **QUIET) as reactor:
        reactor.on_channel(*names)(nothing)
        reactor.listen()

        assert listening(reactor) == tuple(sorted(names))


@pytest.mark.parametrize("name", BAD_NAMES)
def test_impossible_name_changes_nothing(dsn: str, names: list[str], name: str) -> None:
    reactor = Reactor(dsn, **QUIET)
    with pytest.raises(ChannelNameError):
        reactor.listen(names[0], name)
    with pytest.raises(ChannelNameError):
        reactor.notify(name)
    with reactor:
        assert listening(reactor) == ()


@pytest.mark.parametrize("name", BAD_NAMES_EVERYWHERE)
def test_impossible_name_is_refused_by_unlisten(dsn: str, name: str) -> None:
    with pytest.raises(ChannelNameError):
        Reactor(dsn).unlisten(name)


def test_listen_from_many_threads_loses_none(
    dsn: str, new_channel: Callable[[], str], admin: Admin
) -> None:
    names = [new_channel() for _ in range(30)]
    with Reactor(dsn, **QUIET) as reactor:
        ear = Ear(reactor)
        threads = [Background(reactor.listen, name) for name in names]
        for thread in threads:
            thread.result()
        assert listening(reactor) == tuple(sorted(names))

        assert sorted(ear.hears(admin, *names)) == sorted(names)


# notify


def test_notify_returns_how_many_were_issued(dsn: str, names: list[str]) -> None:
    with Reactor(dsn, channels=names) as reactor:
        ear = Ear(reactor)
        assert reactor.notify() == 0
        keywords: dict[str, Any] = {names[2]: "y"}
        assert reactor.notify(names[0], (names[1], "x"), **keywords) == 3
        wait_until(lambda: len(ear.heard) == 3)

        assert [one[1:] for one in ear.heard] == [
            (names[0], ""),
            (names[1], "x"),
            (names[2], "y"),
        ]


def test_notify_reaches_handlers_registered_before_the_call(
    dsn: str, new_channel: Callable[[], str]
) -> None:
    with Reactor(dsn, **QUIET) as reactor:
        for number in range(30):
            seen: list[str] = []
            name = new_channel()

            @reactor.on_channel(name)
            def handler(_: Database, notification: Notification, seen: list[str] = seen) -> None:
                seen.append(notification.payload)

            reactor.notify((name, str(number)))
            wait_until(seen.copy, why="registered, notified, and not called")

            assert seen == [str(number)]


def test_notify_from_many_threads_sends_everything(dsn: str, names: list[str]) -> None:
    with Reactor(dsn, channels=names[:1]) as reactor:
        ear = Ear(reactor)

        def send(number: int) -> list[int]:
            return [reactor.notify((names[0], f"{number} {n}")) for n in range(50)]

        threads = [Background(send, number) for number in range(8)]
        assert [thread.result(40) for thread in threads] == [[1] * 50] * 8
        wait_until(lambda: len(ear.heard) == 400)

        assert len(set(ear.heard)) == 400


def test_notify_of_a_reactor_that_does_not_run_is_a_closed_error(dsn: str) -> None:
    reactor = Reactor(dsn)
    with pytest.raises(ClosedError, match="start"):
        reactor.notify("x")
    with reactor:
        pass
    with pytest.raises(ClosedError, match="start"):
        reactor.notify("x")


# Several databases


@pytest.fixture
def other_dsn(admin: Admin, dsn: str) -> Iterator[str]:
    """Leads to another database of the same server: what is notified here is not heard there."""
    admin.execute("CREATE DATABASE other")
    yield f"{dsn} dbname=other"
    admin.execute("DROP DATABASE other WITH (FORCE)")


def test_databases_are_told_apart(dsn: str, other_dsn: str, names: list[str]) -> None:
    with Reactor(dsn, other_dsn, channels=names[:1]) as reactor:
        first, second = reactor.databases
        ear = Ear(reactor)
        reactor.notify((names[0], "1"), database=first)
        reactor.notify((names[0], "2"), database=second)
        wait_until(lambda: len(ear.heard) == 2)

        assert set(ear.heard) == {(first, names[0], "1"), (second, names[0], "2")}
        assert [one.received for one in reactor.status().databases] == [1, 1]


def test_notify_without_a_database_is_a_value_error_when_there_are_several(dsn: str) -> None:
    with Reactor(dsn, dsn) as reactor, pytest.raises(ValueError, match="database"):
        reactor.notify("x")


def test_foreign_database_is_a_value_error(dsn: str, connect: Connect) -> None:
    foreign = connect()
    with Reactor(dsn) as reactor:
        for call in (reactor.listen, reactor.unlisten, reactor.notify):
            with pytest.raises(ValueError, match="not one of"):
                call("x", database=foreign)


def test_listen_without_a_database_means_all_of_them(dsn: str, names: list[str]) -> None:
    with Reactor(dsn, dsn, **QUIET) as reactor:
        first, second = reactor.databases
        reactor.listen(names[0])
        reactor.listen(names[1], database=first)
        assert listening(reactor, 0) == tuple(sorted(names[:2]))
        assert listening(reactor, 1) == (names[0],)
        reactor.unlisten(names[0], database=second)
        assert listening(reactor, 0) == tuple(sorted(names[:2]))
        assert listening(reactor, 1) == ()
        reactor.unlisten("*")

        assert listening(reactor, 0) == ()


def test_handler_of_one_sender_listens_only_there(dsn: str, names: list[str]) -> None:
    with Reactor(dsn, dsn, **QUIET) as reactor:
        first, second = reactor.databases
        reactor.on_channel(names[0], sender=second)(nothing)
        reactor.on_channel(names[1])(nothing)
        reactor.listen()
        assert listening(reactor, 0) == (names[1],)
        assert listening(reactor, 1) == tuple(sorted(names[:2]))
        reactor.channel(names[0]).disconnect(nothing, sender=second)
        reactor.channel(names[1]).disconnect(nothing, sender=first)  # is not what was connected
        reactor.listen()

        assert listening(reactor, 1) == (names[1],)


def test_database_that_is_down_does_not_delay_another(
    dsn: str, proxied: str, names: list[str], request: pytest.FixtureRequest
) -> None:
    proxy = request.getfixturevalue("proxy")
    reactor = Reactor(dsn, proxied, backoff=(0.05, 0.1), probe_interval=1.0, probe_timeout=1.0)
    with reactor:
        ear = Ear(reactor)
        proxy.freeze()
        proxy.cut()
        wait_until(lambda: reactor.status().databases[1].state != "listening")
        reactor.on_channel(names[0])(nothing)
        reactor.notify((names[0], "1"), database=reactor.databases[0])
        wait_until(lambda: ear.heard)
        reactor.listen(names[1], database=reactor.databases[0])
        assert listening(reactor, 0) == tuple(sorted(names[:2]))
        proxy.thaw()
        wait_until(lambda: reactor.status().databases[1].state == "listening", PATIENCE + 10)

        assert listening(reactor, 1) == (names[0],)


def test_listen_while_disconnected_counts_from_the_reconnect(
    proxied: str, names: list[str], request: pytest.FixtureRequest, admin: Admin
) -> None:
    proxy = request.getfixturevalue("proxy")
    with Reactor(proxied, backoff=(0.01, 0.05), **QUIET) as reactor:
        ear = Ear(reactor)
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: reactor.status().databases[0].state == "lost")
        reactor.listen(names[0])
        reactor.on_channel(names[1])(nothing)
        proxy.accept()
        wait_until(lambda: reactor.status().databases[0].state == "listening")

        assert listening(reactor) == tuple(sorted(names[:2]))
        assert sorted(ear.hears(admin, *names)) == sorted(names[:2])
