"""The pytest plugin `pgsignals`: fixtures, which do nothing until one is requested.

It is outside the package because pytest imports it at every start, before coverage begins to
measure, and the package would import psycopg.  See docs/testing.md.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pgsignals import Database, Reactor
    from pgsignals.testing import Capture, CaptureFactory, Proxy, ReactorFactory

VARIABLE = "PGSIGNALS_TEST_DSN"


def pytest_addoption(parser: pytest.Parser) -> None:
    order = f"Overridden by --pgsignals-dsn and {VARIABLE}"
    parser.addini("pgsignals_dsn", f"Connection string of the tests' server. {order}.", default="")
    parser.getgroup("pgsignals").addoption(
        "--pgsignals-dsn",
        metavar="DSN",
        help="Connection string of the server for tests with the fixtures pgsignals_*. Default: "
        f"{VARIABLE}, or pgsignals_dsn in the configuration file, or a throwaway server.",
    )


class _Dsn(str):
    """A connection string hidden from tracebacks, as it may contain a password."""

    __slots__ = ("name",)
    name: str

    def __repr__(self) -> str:
        return f"<DSN of {self.name}>"


def _given(config: pytest.Config) -> tuple[str, str] | None:
    """The server that the user has chosen, and where that was."""
    places = {
        "--pgsignals-dsn": config.getoption("pgsignals_dsn", None),
        VARIABLE: os.environ.get(VARIABLE),
        "pgsignals_dsn of the configuration file": config.getini("pgsignals_dsn"),
    }
    return next(((dsn, place) for place, dsn in places.items() if dsn), None)


@pytest.fixture(scope="session")
def pgsignals_dsn(pytestconfig: pytest.Config) -> Iterator[str]:
    """Connection string of the tests' server.  A project may override this fixture.

    It comes from --pgsignals-dsn, PGSIGNALS_TEST_DSN or pgsignals_dsn in the configuration file;
    without them, a throwaway server is started for the run.
    """
    from pgsignals import Database, Error
    from pgsignals.embedded import EmbeddedError, Postgres

    with contextlib.ExitStack() as stack:
        dsn, place = _given(pytestconfig) or ("", "a throwaway server")
        try:
            dsn = dsn or stack.enter_context(Postgres(tcp=True)).dsn
            with Database(dsn) as database:
                found = _Dsn(dsn)
                found.name = database.name
        except EmbeddedError as error:
            pytest.fail(
                f"the tests have no server: {error}; or set --pgsignals-dsn, {VARIABLE} or "
                "pgsignals_dsn in the configuration file",
                pytrace=False,
            )
        except Error as error:
            pytest.fail(f"the tests have no server: {place}: {error}", pytrace=False)
        yield found


@pytest.fixture
def pgsignals_database(pgsignals_dsn: str) -> Iterator[Database]:
    """An open Database on the tests' server."""
    from pgsignals import Database

    with Database(pgsignals_dsn) as database:
        yield database


@pytest.fixture
def pgsignals_channel() -> str:
    """A channel name that no other test uses, nor another run on the same server."""
    return f"test_{secrets.token_hex(8)}"


@pytest.fixture
def pgsignals_handlers() -> Iterator[None]:
    """Module-level handlers that the test registers are removed after it, and those that it
    disconnects are restored."""
    from pgsignals.testing import isolated_handlers

    with isolated_handlers():
        yield


@pytest.fixture
def pgsignals_capture(pgsignals_dsn: str) -> Iterator[CaptureFactory]:
    """``pgsignals_capture("orders")`` returns a Capture of what is notified from then on."""
    from pgsignals.testing import capture

    with contextlib.ExitStack() as stack:

        def collect(*channels: str, database: str | Database | Reactor | None = None) -> Capture:
            where = pgsignals_dsn if database is None else database
            return stack.enter_context(capture(*channels, database=where))

        yield collect


@pytest.fixture
def pgsignals_reactor(pgsignals_dsn: str, pgsignals_handlers: None) -> Iterator[ReactorFactory]:
    """``pgsignals_reactor(**options)`` returns a Reactor that runs until the end of the test.

    Without databases, it uses the tests' server.  A handler that raises fails the test at its end,
    unless ``handlers_may_fail=True``.  Includes :func:`pgsignals_handlers`.
    """
    from pgsignals import Reactor
    from pgsignals.testing import running

    with contextlib.ExitStack() as stack:

        def start(
            *databases: str | Database, handlers_may_fail: bool = False, **options: Any
        ) -> Reactor:
            reactor = Reactor(*(databases or (pgsignals_dsn,)), **options)
            return stack.enter_context(running(reactor, handlers_may_fail=handlers_may_fail))

        yield start


@pytest.fixture
def pgsignals_proxy(pgsignals_dsn: str) -> Iterator[Proxy]:
    """A Proxy in front of the tests' server; its ``dsn`` leads through it."""
    from pgsignals.testing import Proxy

    with Proxy(pgsignals_dsn) as proxy:
        yield proxy
