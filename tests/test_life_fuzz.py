"""Many threads do everything at once to one reactor while its sessions are ended."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable

import pytest

import pgsignals
from pgsignals import Database, Error, Reactor
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.waiting import Background, wait_until

#: Seconds after which a single call counts as a deadlock: an attempt to connect has less.
STALL = 25.0

THREADS = 6


class Actor:
    """One thread's share: random calls, on channels that nobody else touches."""

    def __init__(self, number: int, seed: int, reactor: Reactor, prefix: str) -> None:
        self.random = random.Random(seed * 100 + number)
        self.reactor = reactor
        self.names = [f"{prefix}_{number}_{letter}" for letter in "abc"]
        self.prefix = prefix
        self.listened: set[str] = set()
        self.handlers: dict[str, Callable[..., None]] = {}
        self.module_level: dict[str, Callable[..., None]] = {}
        self.doing: tuple[str, float] | None = None
        self.calls = 0
        self.unexpected: list[BaseException] = []

    def run(self, until: float) -> None:
        kinds: list[tuple[Callable[[], object], int]] = [
            (self.listen, 4),
            (self.unlisten, 4),
            (self.add_handler, 5),
            (self.remove_handler, 4),
            (self.add_module_level, 2),
            (self.remove_module_level, 2),
            (self.notify, 10),
            (self.start, 3),
            (self.stop, 1),
            (self.stop_in_a_handler, 1),
            (self.ask, 3),
        ]
        functions, weights = zip(*kinds, strict=True)
        while time.monotonic() < until:
            function = self.random.choices(functions, weights)[0]
            self.doing = function.__name__, time.monotonic()
            try:
                function()
            except Error:
                pass  # it does not run now, or the session has just been ended
            except BaseException as error:
                self.unexpected.append(error)
            self.doing = None
            self.calls += 1

    def name(self) -> str:
        return self.random.choice(self.names)

    def listen(self) -> None:
        self.listened.add(name := self.name())
        self.reactor.listen(name)

    def unlisten(self) -> None:
        self.listened.discard(name := self.name())
        self.reactor.unlisten(name)

    def add_handler(self) -> None:
        if (name := self.name()) not in self.handlers:
            self.handlers[name] = self.handler()
            self.reactor.on_channel(name, batch=self.random.random() < 0.3)(self.handlers[name])

    def remove_handler(self) -> None:
        if (handler := self.handlers.pop(name := self.name(), None)) is not None:
            self.reactor.channel(name).disconnect(handler)

    def add_module_level(self) -> None:
        if (name := self.name()) not in self.module_level:
            self.module_level[name] = self.handler()
            pgsignals.channel(name).connect(self.module_level[name], weak=False)

    def remove_module_level(self) -> None:
        if (handler := self.module_level.pop(name := self.name(), None)) is not None:
            pgsignals.channel(name).disconnect(handler)

    def handler(self) -> Callable[..., None]:
        """One that does something itself."""
        kind = self.random.choice(["nothing", "raises", "notifies", "queries", "listens"])
        reactor, other = self.reactor, f"{self.prefix}_from_handlers"

        def handle(db: Database, **_: object) -> None:
            if kind == "raises":
                raise LookupError("on purpose")
            with contextlib.suppress(Error, OSError):
                if kind == "notifies":
                    reactor.notify(other)
                elif kind == "queries":
                    db.listening_channels()
                elif kind == "listens":
                    reactor.listen(other)

        return handle

    def notify(self) -> None:
        items = [(self.name(), str(number)) for number in range(self.random.randrange(1, 20))]
        self.reactor.notify(*items)

    def start(self) -> None:
        self.reactor.start()

    def stop(self) -> None:
        self.reactor.stop(self.random.choice([0, 0.1, 5.0]))

    def stop_in_a_handler(self) -> None:
        self.reactor.notify(f"{self.prefix}_stop")

    def ask(self) -> None:
        self.reactor.status()
        self.reactor.join(0)
        repr(self.reactor)

    def wanted(self) -> set[str]:
        return {*self.listened, *self.handlers, *self.module_level}


def open_files() -> set[str]:
    """What is open; the numbers of sockets and pipes are never used again."""
    files = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that reads the directory
            files.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return files


def watch(actors: list[Actor], threads: list[Actors]) -> None:
    """Until all threads have ended; none may sit in one call for long."""
    while any(thread.running for thread in threads):
        now = time.monotonic()
        for actor in actors:
            doing = actor.doing
            if doing is not None and now - doing[1] > STALL:
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                raise AssertionError(f"{doing[0]} has not returned for {STALL} s")
        threads[0].wait(0.1)


class Actors(Background[None]):
    """A thread that can be waited for."""

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)


@pytest.mark.parametrize(
    "seconds", [6.0, pytest.param(60.0, marks=[pytest.mark.long, pytest.mark.timeout(240)])]
)
@pytest.mark.parametrize("workers", [1, 3])
def test_everything_at_once(
    postgres: Postgres,
    admin: Admin,
    dsn: str,
    proxy: Proxy,
    channel: str,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
    workers: int,
) -> None:
    seed = int(os.environ.get("PGSIGNALS_SEED") or random.randrange(1 << 30))
    sys.stdout.write(f"again with: PGSIGNALS_SEED={seed}\n")
    caplog.set_level(logging.CRITICAL, "pgsignals")
    name, files = f"fuzz_{channel}", open_files()
    database = Database(postgres.dsn_for(port=proxy.port, application_name=name))

    fuzz(database, admin, proxy, name, seed, seconds, workers)

    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.CRITICAL] == []
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("pgsignals")])
    wait_until(lambda: name not in admin.sessions().values(), why="a session was left behind")

    def left() -> set[str]:
        gc.collect()
        return open_files() - files

    # The proxy may hold two for a moment after the end of a session.
    wait_until(lambda: not left() and not proxy.links, why="files were left")


def fuzz(
    database: Database,
    admin: Admin,
    proxy: Proxy,
    name: str,
    seed: int,
    seconds: float,
    workers: int,
) -> None:
    """Everything at once, then the comparison of what is wanted with what is."""
    rng = random.Random(seed)
    reactor = Reactor(
        database,
        workers=workers,
        backoff=(0.01, 0.1),
        probe_interval=1.0,
        probe_timeout=5.0,
        name="pgsignals-fuzz",
        max_backlog=1000,
        overflow=rng.choice(["drop_oldest", "coalesce", "block"]),
    )
    reactor.on_channel(f"{name}_stop")(lambda *_, **__: reactor.stop())
    actors = [Actor(number, seed, reactor, name) for number in range(THREADS)]
    end = time.monotonic() + seconds

    def faults() -> None:
        while time.monotonic() < end:
            kind = rng.randrange(10)
            if kind == 0:
                proxy.reset()
            elif kind == 1:
                proxy.freeze()
                time.sleep(rng.uniform(0.0, 0.2))
                proxy.thaw()
            else:
                pids = [pid for pid, app in admin.sessions().items() if app == name]
                if pids:
                    admin.execute("SELECT pg_terminate_backend(%s)", rng.choice(pids))
            time.sleep(rng.uniform(0.0, 0.3))

    threads = [Actors(actor.run, end) for actor in actors]
    threads.append(Actors(faults))
    try:
        watch(actors, threads)
        for thread in threads:
            thread.result()
        assert [error for actor in actors for error in actor.unexpected] == []
        reactor.stop(20)
        assert not reactor.running
        compare(reactor, actors, name)
    finally:
        reactor.stop(5)
        for actor in actors:
            for one, handler in actor.module_level.items():
                pgsignals.channel(one).disconnect(handler)


def compare(reactor: Reactor, actors: list[Actor], name: str) -> None:
    """What it listens to is what is wanted, and all of it arrives."""
    arrived: list[tuple[str, str]] = []

    @reactor.any_channel.connect
    def note(_: Database, notification: tuple[str, str, int]) -> None:
        arrived.append(notification[:2])

    wanted: set[str] = set().union(*(actor.wanted() for actor in actors))
    with reactor:
        reactor.unlisten(f"{name}_from_handlers")
        (status,) = reactor.status().databases
        assert set(status.channels) == wanted | {f"{name}_stop"}
        silent = sorted(wanted)
        reactor.notify(*((one, "the end") for one in silent))
        wait_until(lambda: sum(payload == "the end" for _, payload in arrived) >= len(silent))
    assert sorted(one for one, payload in arrived if payload == "the end") == silent
