"""What is compared.  Each function runs in a process of its own, started by :mod:`rig`.

A contender connects, listens, and says so with :meth:`Clock.start`; then it does what its users
do, and counts what arrives.  All of them get the same notifications from the same server.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import select
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

#: Threads that make many connections at a time.
CONNECTING = 8


@dataclass(frozen=True)
class Task:
    """What a contender is told."""

    dsn: str
    host: str
    port: int
    dbname: str
    channels: list[str]
    count: int = 0
    """Notifications that will come."""
    connections: int = 1
    handlers: int = 1
    """Of each channel."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the reactor."""
    dsns: list[str] = field(default_factory=list)
    """Of many databases."""


def say(**facts: Any) -> None:
    """Tell the process that measures."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Clock:
    """The CPU time of all threads of this process, from when it listens to the last of them all."""

    def __init__(self, task: Task) -> None:
        self._expected = task.count
        self._cpu = 0.0
        self.stopped = threading.Event()

    def start(self, **facts: Any) -> None:
        """Say that it listens.  From here on it waits, which costs nothing."""
        gc.collect()
        say(ready=True, **facts)
        self._cpu = time.process_time()

    def stop(self, count: int, payload: str | None = None, **facts: Any) -> None:
        """Tell what was used.  Called for the last notification, with its payload if there is an
        order."""
        cpu, now = time.process_time() - self._cpu, time.monotonic()
        last = self._expected if payload is None else int(payload[-10:])
        say(cpu=cpu, end=now, count=count, last=last, **facts)
        self._cpu = time.process_time()
        self.stopped.set()


# -- others, as their documentation has it ---------------------------------------------------------


def bare(task: Task, clock: Clock) -> None:
    """A bare loop over libpq's own calls: the floor for anything in Python."""
    import psycopg

    with psycopg.connect(task.dsn, autocommit=True) as connection:
        for channel in task.channels:
            connection.execute(f'LISTEN "{channel}"'.encode())
        consume, notifies = connection.pgconn.consume_input, connection.pgconn.notifies
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        count, total = 0, task.count
        channel, payload, pid = "", "", 0
        clock.start()
        while count < total:
            poll.poll()
            consume()
            while (n := notifies()) is not None:
                channel, payload, pid = n.relname.decode(), n.extra.decode(), n.be_pid
                count += 1
        clock.stop(count, payload, seen=(channel, pid))


def psycopg_notifies(task: Task, clock: Clock) -> None:
    """psycopg 3: ``for notify in connection.notifies()``."""
    import psycopg

    with psycopg.connect(task.dsn, autocommit=True) as connection:
        for channel in task.channels:
            connection.execute(f'LISTEN "{channel}"'.encode())
        count, total = 0, task.count
        clock.start()
        for notify in connection.notifies():
            count += 1
            if count == total:
                clock.stop(count, notify.payload)
                break


def psycopg_blinker(task: Task, clock: Clock) -> None:
    """What people write today: psycopg's loop, and a blinker signal of that name."""
    import blinker
    import psycopg

    count, total = 0, task.count

    def handler(sender: Any, *, notification: Any) -> None:
        nonlocal count
        count += 1
        if count == total:
            clock.stop(count, notification.payload)

    others = [idle_handler() for _ in range(task.handlers - 1)]
    with psycopg.connect(task.dsn, autocommit=True) as connection:
        for channel in task.channels:
            connection.execute(f'LISTEN "{channel}"'.encode())
            for other in others:
                blinker.signal(channel).connect(other)
            blinker.signal(channel).connect(handler)
        clock.start()
        for notify in connection.notifies():
            blinker.signal(notify.channel).send(connection, notification=notify)
            if count == total:
                break


def psycopg2_poll(task: Task, clock: Clock) -> None:
    """psycopg2: ``select``, ``poll()``, and its list of notifications."""
    import psycopg2

    connection = psycopg2.connect(task.dsn)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for channel in task.channels:
            cursor.execute(f'LISTEN "{channel}"')
    count, total, payload = 0, task.count, ""
    clock.start()
    while count < total:
        select.select([connection], [], [])
        connection.poll()
        for notify in connection.notifies:
            payload = notify.payload
            count += 1
        connection.notifies.clear()
    clock.stop(count, payload)
    connection.close()


def asyncpg_listener(task: Task, clock: Clock) -> None:
    """asyncpg: ``add_listener`` with a callback for each channel."""
    import asyncpg

    count, total = 0, task.count

    async def main() -> None:
        done = asyncio.Event()

        def callback(connection: Any, pid: int, channel: str, payload: str) -> None:
            nonlocal count
            count += 1
            if count == total:
                clock.stop(count, payload)
                done.set()

        connection = await asyncpg.connect(
            host=task.host, port=task.port, user="postgres", database=task.dbname
        )
        for channel in task.channels:
            await connection.add_listener(channel, callback)
        clock.start()
        await done.wait()
        await connection.close()

    asyncio.run(main())


def py_postgresql(task: Task, clock: Clock) -> None:
    """py-postgresql: ``db.iternotifies()``."""
    import postgresql.versionstring

    split = postgresql.versionstring.split
    # It cannot read the version of a distribution's server, such as "17.5 (Debian 17.5-1)".
    postgresql.versionstring.split = lambda text: split(text.split(" ", 1)[0])
    database = postgresql.open(f"pq://postgres@{task.host}:{task.port}/{task.dbname}")
    database.listen(*task.channels)
    count, total = 0, task.count
    clock.start()
    for _, payload, _ in database.iternotifies():
        count += 1
        if count == total:
            clock.stop(count, payload)
            break
    database.close()


def idle_handler() -> Callable[..., None]:
    """A handler that does nothing, different from any other."""

    def handler(sender: Any, *, notification: Any) -> None:
        pass

    return handler


# -- ours ------------------------------------------------------------------------------------------


def manager(task: Task, clock: Clock) -> None:
    """``for database, notifications in NotificationManager(database)``."""
    import pgsignals

    with pgsignals.connect(task.dsn) as database:
        database.listen(*task.channels)
        count, total = 0, task.count
        clock.start()
        for event in pgsignals.NotificationManager(database):
            assert event is not None
            for notification in event[1]:
                count += 1
            if count >= total:
                clock.stop(count, notification.payload)
                break


def wait(task: Task, clock: Clock) -> None:
    """``for notification in database.wait()``."""
    import pgsignals

    with pgsignals.connect(task.dsn) as database:
        database.listen(*task.channels)
        count, total = 0, task.count
        clock.start()
        for notification in database.wait():
            count += 1
            if count == total:
                assert notification is not None
                clock.stop(count, notification.payload)
                break


def reactor(task: Task, clock: Clock) -> None:
    """``@reactor.on_channel(...)``: a handler is called for each notification."""
    from pgsignals import Database, Gap, Notification, Reactor

    serving = Reactor(task.dsn, **task.options)
    count, dropped, total = 0, 0, task.count
    counter = itertools.count(1)

    def handler(sender: Database, *, notification: Notification) -> None:
        nonlocal count
        count += 1
        if count == total:
            clock.stop(count, notification.payload)

    def on_any_worker(sender: Database, *, notification: Notification) -> None:
        if next(counter) == total:
            clock.stop(total)

    def counting_drops(sender: Database, *, notification: Notification) -> None:
        nonlocal count
        count += 1
        if count + dropped == total:
            clock.stop(count, notification.payload, dropped=dropped)

    @serving.gap.connect
    def missed(sender: Database, gap: Gap) -> None:
        nonlocal dropped
        dropped += gap.dropped or 0

    chosen = handler
    if "max_backlog" not in task.options and task.options.get("overflow") != "block":
        chosen = counting_drops
    elif task.options.get("workers", 1) > 1:
        chosen = on_any_worker
    for _ in range(task.handlers - 1):
        serving.on_channel(*task.channels)(idle_handler())
    serving.on_channel(*task.channels)(chosen)
    began = time.monotonic()
    with serving:
        clock.start(start=time.monotonic() - began)
        clock.stopped.wait()


def reactor_batch(task: Task, clock: Clock) -> None:
    """``@reactor.on_channel(..., batch=True)``: a handler is given what is there at once."""
    from pgsignals import Database, Notification, Reactor

    serving = Reactor(task.dsn, **task.options)
    count, total = 0, task.count

    @serving.on_channel(*task.channels, batch=True)
    def handler(sender: Database, *, notifications: list[Notification]) -> None:
        nonlocal count
        for notification in notifications:
            count += 1
        if count >= total:
            clock.stop(count, notification.payload if len(task.channels) == 1 else None)

    with serving:
        clock.start()
        clock.stopped.wait()


# -- latency ---------------------------------------------------------------------------------------


def latency_bare(task: Task, clock: Clock) -> None:
    """The time that each payload names, until it is there."""
    import psycopg

    with psycopg.connect(task.dsn, autocommit=True) as connection:
        connection.execute(f'LISTEN "{task.channels[0]}"'.encode())
        consume, notifies = connection.pgconn.consume_input, connection.pgconn.notifies
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        taken: list[int] = []
        channel, pid = "", 0
        clock.start()
        while len(taken) < task.count:
            poll.poll()
            consume()
            while (n := notifies()) is not None:
                channel, payload, pid = n.relname.decode(), n.extra.decode(), n.be_pid
                taken.append(time.monotonic_ns() - int(payload))
    say(taken=taken, seen=(channel, pid))


def latency_psycopg(task: Task, clock: Clock) -> None:
    import psycopg

    with psycopg.connect(task.dsn, autocommit=True) as connection:
        connection.execute(f'LISTEN "{task.channels[0]}"'.encode())
        taken: list[int] = []
        clock.start()
        for notify in connection.notifies():
            taken.append(time.monotonic_ns() - int(notify.payload))
            if len(taken) == task.count:
                break
    say(taken=taken)


def latency_asyncpg(task: Task, clock: Clock) -> None:
    import asyncpg

    taken: list[int] = []

    async def main() -> None:
        done = asyncio.Event()

        def callback(connection: Any, pid: int, channel: str, payload: str) -> None:
            taken.append(time.monotonic_ns() - int(payload))
            if len(taken) == task.count:
                done.set()

        connection = await asyncpg.connect(
            host=task.host, port=task.port, user="postgres", database=task.dbname
        )
        await connection.add_listener(task.channels[0], callback)
        clock.start()
        await done.wait()
        await connection.close()

    asyncio.run(main())
    say(taken=taken)


def latency_manager(task: Task, clock: Clock) -> None:
    import pgsignals

    with pgsignals.connect(task.dsn) as database:
        database.listen(*task.channels)
        taken: list[int] = []
        clock.start()
        for event in pgsignals.NotificationManager(database):
            assert event is not None
            for notification in event[1]:
                taken.append(time.monotonic_ns() - int(notification.payload))
            if len(taken) == task.count:
                break
    say(taken=taken)


def latency_reactor(task: Task, clock: Clock) -> None:
    from pgsignals import Database, Notification, Reactor

    serving = Reactor(task.dsn)
    taken: list[int] = []
    done = threading.Event()

    @serving.on_channel(*task.channels)
    def handler(sender: Database, *, notification: Notification) -> None:
        taken.append(time.monotonic_ns() - int(notification.payload))
        if len(taken) == task.count:
            done.set()

    with serving:
        clock.start()
        done.wait()
    say(taken=taken)


# -- many connections ------------------------------------------------------------------------------


def many(task: Task, connect: Callable[[], T]) -> list[T]:
    """Make the connections, several at a time."""
    with ThreadPoolExecutor(CONNECTING) as pool:
        return list(pool.map(lambda _: connect(), range(task.connections)))


def connections_bare(task: Task, clock: Clock) -> None:
    """A bare loop over epoll and libpq's own calls.  Tells each time that all have received."""
    import psycopg

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(task.dsn, autocommit=True)
        connection.execute(f'LISTEN "{task.channels[0]}"'.encode())
        return connection

    connections = {connection.fileno(): connection for connection in many(task, connect)}
    with select.epoll() as epoll:
        for fileno in connections:
            epoll.register(fileno, select.EPOLLIN)
        count = 0
        channel, payload, pid = "", "", 0
        clock.start()
        while True:
            for fileno, _ in epoll.poll():
                pgconn = connections[fileno].pgconn
                pgconn.consume_input()
                while (n := pgconn.notifies()) is not None:
                    channel, payload, pid = n.relname.decode(), n.extra.decode(), n.be_pid
                    count += 1
            if count >= task.count:
                clock.stop(count, seen=(channel, payload, pid))
                count = 0


def connections_manager(task: Task, clock: Clock) -> None:
    """The same with a manager."""
    import pgsignals

    def connect() -> pgsignals.Database:
        database = pgsignals.connect(task.dsn)
        database.listen(*task.channels)
        return database

    databases = many(task, connect)
    count = 0
    clock.start()
    for event in pgsignals.NotificationManager(*databases):
        assert event is not None
        for channel, payload, pid in event[1]:
            count += 1
        if count >= task.count:
            clock.stop(count, seen=(channel, payload, pid))
            count = 0


# -- reactors that do something else ---------------------------------------------------------------


def reactor_many_databases(task: Task, clock: Clock) -> None:
    """Listens to many databases, with default probes."""
    from pgsignals import Reactor

    with Reactor(*task.dsns, channels=task.channels):
        clock.start()
        threading.Event().wait()


def reactor_slow(task: Task, clock: Clock) -> None:
    """Default options, and a handler that is slower than any flood."""
    from pgsignals import Database, Notification, Reactor

    serving = Reactor(task.dsn)

    @serving.on_channel(*task.channels)
    def handler(sender: Database, *, notification: Notification) -> None:
        time.sleep(0.001)

    with serving:
        clock.start()
        while (status := serving.status().databases[0]).received < task.count:
            time.sleep(0.02)
        clock.stop(status.received, dropped=status.dropped)
        threading.Event().wait()


def notify(task: Task, clock: Clock) -> None:
    """Sends pairs, in one call and in a call each."""
    import pgsignals

    pairs = [(task.channels[0], f"payload {number}") for number in range(task.count)]
    with pgsignals.connect(task.dsn) as database:
        clock.start()
        for line in sys.stdin:
            began = time.monotonic(), time.process_time()
            if json.loads(line)["at_once"]:
                issued = database.notify(*pairs)
            else:
                issued = sum(database.notify(pair) for pair in pairs)
            say(
                wall=time.monotonic() - began[0],
                cpu=time.process_time() - began[1],
                issued=issued,
            )


CONTENDERS: dict[str, Callable[[Task, Clock], None]] = {
    "bare": bare,
    "psycopg": psycopg_notifies,
    "psycopg+blinker": psycopg_blinker,
    "psycopg2": psycopg2_poll,
    "asyncpg": asyncpg_listener,
    "py-postgresql": py_postgresql,
    "manager": manager,
    "wait": wait,
    "reactor": reactor,
    "reactor-batch": reactor_batch,
    "latency-bare": latency_bare,
    "latency-psycopg": latency_psycopg,
    "latency-asyncpg": latency_asyncpg,
    "latency-manager": latency_manager,
    "latency-reactor": latency_reactor,
    "connections-bare": connections_bare,
    "connections-manager": connections_manager,
    "reactor-many-databases": reactor_many_databases,
    "reactor-slow": reactor_slow,
    "notify": notify,
}


def main() -> None:
    task = Task(**json.loads(sys.stdin.readline()))
    CONTENDERS[sys.argv[1]](task, Clock(task))


if __name__ == "__main__":
    main()
