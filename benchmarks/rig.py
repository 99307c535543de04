"""The server, the processes that are measured, and what is sent to them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict

from benchmarks.contenders import Task
from pgsignals.embedded import Postgres

ROOT = Path(__file__).parents[1]

#: Seconds that a process may take to listen, or to receive what was sent.
PATIENCE = 120.0


class BenchmarkError(Exception):
    """A contender failed, or did not receive what was sent."""


def say(text: str = "") -> None:
    """Tell whoever watches."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until *condition* holds.

    :raises BenchmarkError: it does not come to hold in so many seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.02)


class Rig:
    """A server of its own, that trusts whoever comes over TCP, and a session to send with.

    :param sessions: how many it has to serve at once.
    """

    def __init__(self, sessions: int, *, tls: bool = False) -> None:
        self.server = Postgres(tcp=True, tls=tls, settings={"max_connections": sessions + 60})
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(self.server)
            # py-postgresql knows no SCRAM, and hashing passwords is nothing to be measured.
            hba = server.data_directory / "pg_hba.conf"
            trust = "host all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n"
            hba.write_text(trust + hba.read_text("utf-8"), "utf-8")
            server.restart()
            self._stack = stack.pop_all()
        self.sender = self._stack.enter_context(self.connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[Any]:
        """A session of its own."""
        return psycopg.connect(self.server.dsn_for(dbname), autocommit=True, application_name="rig")

    def create_databases(self, count: int) -> list[str]:
        """The names of databases, made unless they are there."""
        there = {name for (name,) in self.query("SELECT datname FROM pg_catalog.pg_database")}
        names = [f"bench_{number}" for number in range(count)]
        for name in names:
            if name not in there:
                self.query(f"CREATE DATABASE {name}")
        return names

    def task(self, *, channels: int = 1, dbname: str = "postgres", **parameters: Any) -> Task:
        """What a contender is told; the server is ours."""
        tls = parameters.pop("sslmode", None)
        dsn = self.server.dsn_for(dbname, **({"sslmode": tls} if tls else {}))
        return Task(
            dsn=dsn,
            host=str(conninfo_to_dict(dsn)["host"]),
            port=self.server.port,
            dbname=dbname,
            channels=[f"bench_{number}" for number in range(channels)],
            **parameters,
        )

    def settle(self) -> None:
        """Wait until the sessions of those that were killed have ended."""
        others = (
            "SELECT FROM pg_catalog.pg_stat_activity "
            "WHERE backend_type OPERATOR(pg_catalog.=) 'client backend'::pg_catalog.text "
            "AND application_name OPERATOR(pg_catalog.<>) 'rig'::pg_catalog.text LIMIT 1"
        )
        deadline = time.monotonic() + PATIENCE
        while self.query(others):
            if time.monotonic() > deadline:
                raise BenchmarkError("sessions of an ended process are still there")
            time.sleep(0.01)

    def query(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        cursor = self.sender.execute(sql.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def flood(self, count: int, *, channels: int = 1, size: int = 10) -> float:
        """Commit *count* different notifications at once, and return when COMMIT was sent.

        :param channels: they go round, beginning with the second.
        :param size: of each payload, in bytes: 1, 2, 3, filled up with zeros.
        """
        with self.sender.transaction():
            self.query(
                "SELECT pg_catalog.count(pg_catalog.pg_notify("
                "'bench_'::pg_catalog.text OPERATOR(pg_catalog.||) "
                "(i OPERATOR(pg_catalog.%%) %s::pg_catalog.int4)::pg_catalog.text, "
                "pg_catalog.lpad(i::pg_catalog.text, %s::pg_catalog.int4, '0'::pg_catalog.text)))"
                " FROM pg_catalog.generate_series(1, %s::pg_catalog.int4) AS i",
                channels,
                size,
                count,
            )
            committed = time.monotonic()
        return committed


class Child:
    """A process that runs one contender.  Entered, it listens; left, it is killed.

    :ivar started: what it said when it listened.
    """

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - until close()
        command = [sys.executable, "-m", "benchmarks.contenders", name]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(task)) + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        try:
            self.started = self.hear()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()  # it has said all that it had to say
        self._process.communicate()
        self._errors.close()

    def hear(self, patience: float = PATIENCE) -> dict[str, Any]:
        """What it says next."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            reason = f"said nothing for {patience:g} s" if not ready else "ended"
            self._process.kill()
            self._errors.seek(0)
            raise BenchmarkError(f"{self.name} {reason}\n{self._errors.read()[-2000:]}")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def tell(self, **facts: Any) -> None:
        """Give it something to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(facts) + "\n")
        self._process.stdin.flush()

    def cpu(self) -> float:
        """The CPU seconds that it has used, over all threads that live."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((t / "schedstat").read_text("ascii").split()[0]) for t in threads) / 1e9

    def memory(self, name: str) -> int:
        """A size from its status, such as ``VmRSS``, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text("ascii").splitlines():
            if line.startswith(name + ":"):
                return 1024 * int(line.split()[1])
        raise BenchmarkError(f"{self.name} has no {name}")
