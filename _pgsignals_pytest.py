"""The pytest plugin `pgsignals`: fixtures, and nothing until one of them is requested.

Outside the package, because pytest imports it at every start, before coverage measures: the
package would bring psycopg along.  See docs/testing.md.
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
    order = f"Before it count --pgsignals-dsn and {VARIABLE}"
    parser.addini("pgsignals_dsn", f"The server of the tests, for libpq. {order}.", default="")
    parser.getgroup("pgsignals").addoption(
        "--pgsignals-dsn",
        metavar="DSN",
        help="The server of the tests that use the fixtures pgsignals_*: a connection string "
        f"for libpq. Default: {VARIABLE}, or pgsignals_dsn in the configuration file, or a server "
        "of their own.",
    )


class _Dsn(str):
    """A connection string that a traceback does not show: it may hold a password."""

    __slots__ = ("name",)
    name: str

    def __repr__(self) -> str:
        return f"<DSN of {self.name}>"


def _given(config: pytest.Config) -> tuple[str, str] | None:
    """The server that the user has chosen, and where."""
    places = {
        "--pgsignals-dsn": config.getoption("pgsignals_dsn", None),
        VARIABLE: os.environ.get(VARIABLE),
        "pgsignals_dsn of the configuration file": config.getini("pgsignals_dsn"),
    }
    return next(((dsn, place) for place, dsn in places.items() if dsn), None)


@pytest.fixture(scope="session")
def pgsignals_dsn(pytestconfig: pytest.Config) -> Iterator[str]:
    """The server of the tests, a connection string.  A project may override this fixture.

    It is that of --pgsignals-dsn, of PGSIGNALS_TEST_DSN or of pgsignals_dsn in the configuration
    file; without them a server is started, and gone after the run.
    """
    from pgsignals import Database, Error
    from pgsignals.embedded import EmbeddedError, Postgres

    with contextlib.ExitStack() as stack:
        dsn, place = _given(pytestconfig) or ("", "a server of their own")
        try:
            dsn = dsn or stack.enter_context(Postgres(tcp=True)).dsn
            with Database(dsn) as database:
                found = _Dsn(dsn)
                found.name = database.name
        except EmbeddedError as error:
            pytest.fail(
                f"the tests have no server: {error}; or name one with --pgsignals-dsn, {VARIABLE} "
                "or pgsignals_dsn in the configuration file",
                pytrace=False,
            )
        except Error as error:
            pytest.fail(f"the tests have no server: {place}: {error}", pytrace=False)
        yield found


@pytest.fixture
def pgsignals_database(pgsignals_dsn: str) -> Iterator[Database]:
    """An open Database on the server of the tests."""
    from pgsignals import Database

    with Database(pgsignals_dsn) as database:
        yield database


@pytest.fixture
def pgsignals_channel() -> str:
    """A channel name that no other test has, nor another run on the same server."""
    return f"test_{secrets.token_hex(8)}"


@pytest.fixture
def pgsignals_handlers() -> Iterator[None]:
    """Handlers of the module level that the test registers are gone after it, and those that it
    disconnects are back."""
    from pgsignals.testing import isolated_handlers

    with isolated_handlers():
        yield


@pytest.fixture
def pgsignals_capture(pgsignals_dsn: str) -> Iterator[CaptureFactory]:
    """``pgsignals_capture("orders")`` collects what is notified from then on: a Capture."""
    from pgsignals.testing import capture

    with contextlib.ExitStack() as stack:

        def collect(*channels: str, database: str | Database | Reactor | None = None) -> Capture:
            where = pgsignals_dsn if database is None else database
            return stack.enter_context(capture(*channels, database=where))

        yield collect


@pytest.fixture
def pgsignals_reactor(pgsignals_dsn: str, pgsignals_handlers: None) -> Iterator[ReactorFactory]:
    """``pgsignals_reactor(**options)`` is a Reactor that runs until the end of the test.

    Without databases, on the server of the tests.  A handler that raises fails the test when it
    ends, unless ``handlers_may_fail=True``.  Brings :func:`pgsignals_handlers` along.
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
    """A Proxy before the server of the tests, whose ``dsn`` leads through it."""
    from pgsignals.testing import Proxy

    with Proxy(pgsignals_dsn) as proxy:
        yield proxy
