"""One server for all tests, and what every test must leave behind: nothing.

The numbers in ``@pytest.mark.spec("6.11", "N5")`` are those of the list of behaviours that this
library took over from py-postgresql, with the flaws of the original mended.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import _pgsignals_pytest
from pgsignals import Database
from pgsignals.embedded import Postgres
from pgsignals.testing import Proxy
from tests.support.admin import Admin
from tests.support.arrivals import Connect
from tests.support.waiting import PATIENCE

pytest_plugins = ["pytester", "tests.support.pages"]

_FAILED = pytest.StashKey[bool]()
_numbers = itertools.count(1)


# On a slow machine an example may take its time.
hypothesis.settings.register_profile(
    "pgsignals", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("pgsignals")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.has_plugin("pgsignals"):  # a checkout that is not installed
        config.pluginmanager.register(_pgsignals_pytest, "pgsignals")
    _take_signals()
    config.addinivalue_line("markers", "spec(*numbers): the behaviours that this test shows")


def _take_signals() -> None:
    """What nohup, or the ``&`` of a script, has us ignore, no program of a test shall ignore."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _go_on)


def _go_on(_: int, __: object) -> None:
    """Ignore a signal as a handler does, which no other program inherits."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """libpq reads variables; what is set for another program must not change a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("PG") and not name.startswith("PGSIGNALS_"):
                patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """No thread of the library's, no open file, and no session on the server of the run."""
    admin = request.getfixturevalue("admin") if "dsn" in request.fixturenames else None

    def here() -> set[object]:
        threads = {t for t in threading.enumerate() if t.name.startswith("pgsignals")}
        return threads | set(_open_files())

    def there() -> set[object]:
        return set(admin.sessions().items()) if admin else set()

    before = here() | there()
    yield
    if request.node.stash.get(_FAILED, False):
        return  # the traceback still holds what the test had made
    deadline = time.monotonic() + PATIENCE
    while left := here() - before:
        assert time.monotonic() < deadline, f"the test left behind: {left}"
        # What only a cycle keeps, or the traceback of a log record, is not left behind.
        caplog.get_records("call").clear()
        gc.collect()
        time.sleep(0.001)
    while left := there() - before:
        assert time.monotonic() < deadline, f"the test left behind on the server: {left}"
        time.sleep(0.001)


def _open_files() -> Iterator[tuple[str, str]]:
    """Every file number with what it leads to; none where the system does not tell."""
    for number in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # the number by which the directory itself was read
            yield number.name, os.readlink(number)


# -- the server ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server of the whole run.  A test that stops one makes its own."""
    with Postgres(tcp=True, settings={"max_connections": 300}) as server:
        yield server


@pytest.fixture(scope="session")
def dsn(postgres: Postgres) -> str:
    """Leads to the server, over TCP."""
    return postgres.dsn


@pytest.fixture(scope="session")
def admin(dsn: str) -> Iterator[Admin]:
    """Looks and acts from outside the library, with an open session of plain psycopg."""
    admin = Admin(dsn)
    yield admin
    admin.close()


@pytest.fixture(scope="session")
def pgsignals_dsn(dsn: str) -> str:
    """The fixtures of the kit use the same server."""
    return dsn


@pytest.fixture
def proxy(pgsignals_proxy: Proxy) -> Proxy:
    """Stands before the server, for the faults of networks."""
    return pgsignals_proxy


@pytest.fixture
def proxied(proxy: Proxy) -> str:
    """Leads to the server through :func:`proxy`."""
    return proxy.dsn


# -- databases -----------------------------------------------------------------------------------


@pytest.fixture
def connect(dsn: str) -> Iterator[Connect]:
    """Opens databases, by default on the server of the run, and closes them after the test."""
    opened = []

    def connect(conninfo: str = dsn, **params: Any) -> Database:
        database = Database(conninfo, **params).open()
        opened.append(database)
        return database

    yield connect
    for database in opened:
        database.close()


@pytest.fixture
def new_channel() -> Callable[[], str]:
    """Gives a channel name that no other test has."""
    return lambda: f"channel_{next(_numbers)}"


@pytest.fixture
def channel(new_channel: Callable[[], str]) -> str:
    """A channel name that no other test has."""
    return new_channel()


@pytest.fixture
def listener(connect: Connect, channel: str) -> Database:
    """An open database that listens to :func:`channel`."""
    database = connect()
    database.listen(channel)
    return database
