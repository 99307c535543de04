"""Opening connections: what a connection string means, without its secrets, and which encoding is
spoken.

Whatever goes wrong here is reported without a value of the connection string: libpq's messages
repeat what they could not read, which may be a password.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgsignals._pure import conninfo as _conninfo
from pgsignals._pure.conninfo import one_line, place
from pgsignals._runtime.reentry import calls_out
from pgsignals._wire import hooks
from pgsignals._wire.session import Connection
from pgsignals.errors import ConnectError, EncodingError, Error

#: In seconds.  libpq waits forever by default, psycopg 130 seconds.
CONNECT_TIMEOUT = 10

_PSYCOPG_KEYWORDS = {"prepare_threshold", "context", "row_factory", "cursor_factory"}

_REFUSED = re.compile(
    r"authentication failed|no pg_hba\.conf entry|no password supplied|pg_hba\.conf rejects|"
    r"(role|database|user) \S+ does not exist|not permitted to log in|"
    r"permission denied for database"
)

#: What libpq refuses before it opens anything: see :func:`_resolved`.
_REFUSED_AT_ONCE = {"sslmode": "none of them", "password": "none"}

# Words of a message that may be part of a connection string or URL.
_QUOTED_BACK = re.compile(r"""(?<=invalid port number: )\S+|[^\s'"]*(?:@|=|://)[^\s'"]*""")

_UNRESOLVED = {
    socket.EAI_AGAIN: "Temporary failure in name resolution",
    socket.EAI_FAIL: "Non-recoverable failure in name resolution",
    socket.EAI_NODATA: "No address associated with hostname",
    socket.EAI_NONAME: "Name or service not known",
}


def open_connection(
    conninfo: str, params: Mapping[str, Any], name: str, within: float | None = None
) -> Connection:
    """Connect in autocommit and speak UTF8.  Blocks.

    :param name: of the database; errors begin with it.
    :param within: seconds for all hosts together; None leaves each its ``connect_timeout``.

    :raises ConnectError: with the reason in one line and without secrets.
    :raises EncodingError: the database's encoding has no conversion to UTF8.
    """
    settings = _settings(conninfo, params)
    if within is not None:
        settings["connect_timeout"] = _share(settings, within)
    try:
        return _set_client_encoding(psycopg.connect(autocommit=True, **settings))
    except (psycopg.Error, OSError) as exc:
        reason = _without_secrets(one_line(exc), settings)
    # Every translation of the message names the only encoding without a conversion to UTF8.
    if "MULE_INTERNAL" in reason and "UTF8" in reason:
        raise _no_conversion(name, "MULE_INTERNAL")
    raise ConnectError(f"{name}: {reason}")


@calls_out
def call_connect(connect: Callable[[], object], name: str, *, logged: bool) -> Connection:
    """A fresh connection from the user's *connect*, made to speak UTF8.  Blocks.

    What *connect* raises may hold a secret in its text, such as a token in a URL.

    :param name: of the database, for errors.
    :param logged: whether the reason may go anywhere but to the caller of our API.
    :raises ConnectError: with a reason that is ours, libpq's or the system's.
    :raises TypeError: it returned something else.
    """
    try:
        connection = connect()
    except (psycopg.OperationalError, psycopg.ProgrammingError, OSError, Error) as exc:
        reason = _reason(exc, logged=logged)
    else:
        given = check_connection(connection, "connect must return")
        if hooks.are_installed(given):
            reason = "it must return a fresh connection each time, not one that is already in use"
        elif given.closed:
            reason = "it must return an open connection, not a closed one"
        else:
            return _set_client_encoding(given)
    raise ConnectError(f"{name}: connect failed: {reason}")


def _reason(exc: Exception, *, logged: bool) -> str:
    """Why a user's *connect* has failed, without secrets."""
    kind = type(exc).__name__
    if isinstance(exc, psycopg.ProgrammingError):
        return "the connection string cannot be read"  # which psycopg's message repeats
    if isinstance(exc, Error):
        return str(exc) if _raised_in(exc, "pgsignals") else kind
    if isinstance(exc, psycopg.OperationalError):
        words = not logged or _raised_in(exc, "psycopg")
        return one_line(_QUOTED_BACK.sub("***", str(exc))) if words else kind
    number = exc.errno if isinstance(exc, OSError) else None
    known = _UNRESOLVED.get(number or 0) if isinstance(exc, socket.gaierror) else None
    if known is None and number is not None and number in errno.errorcode:
        known = os.strerror(number)
    return f"{kind}: {known}" if known else kind


def _raised_in(exc: BaseException, package: str) -> bool:
    """Whether *exc* was raised by *package*, not only with a type of it."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__") if trace is not None else ""
    return str(module).partition(".")[0] == package


def open_like(connection: Connection) -> Connection:
    """Another connection to where *connection* leads, as the same user.  Blocks."""
    info, name = connection.info, _place_of(connection)
    params = {"password": info.password or None, "client_encoding": "UTF8"}
    return open_connection(info.dsn, params, name)


def check_connection(connection: object, what: str) -> Connection:
    """Return *connection* if it is psycopg's.

    :param what: how the message begins.
    :raises TypeError: it is not.
    """
    if not isinstance(connection, psycopg.Connection):
        raise TypeError(f"{what} a psycopg.Connection, not {type(connection).__name__}")
    return connection


def describe(conninfo: str, params: Mapping[str, Any]) -> str:
    """Where *conninfo* leads: host, port and database name, without connecting."""
    try:
        settings = _parse(conninfo, params)
    except ConnectError:
        return "(unreadable conninfo)"
    found = _resolved(settings)
    if "port" not in found:  # an unknown service, which opening it will report
        return f"service={settings.get('service') or os.environ.get('PGSERVICE')}"
    host = found.get("host") or found.get("hostaddr") or found["default host"]
    return place(host, found["port"], found.get("dbname") or found.get("user", ""))


def endpoint(conninfo: str) -> tuple[str, int]:
    """The one host, or directory of a Unix socket, and the port that *conninfo* leads to.

    :raises ConnectError: it cannot be read.
    :raises ValueError: it names no host, or several.
    """
    settings = _parse(conninfo, {})
    found = _resolved(settings)
    host, port = found.get("hostaddr") or found.get("host", ""), found.get("port", "")
    if not host or not port or "," in host + port:
        raise ValueError(f"the connection string must name one host, not {host or 'none'}")
    return host, int(port)


def redirected(conninfo: str, port: int) -> str:
    """*conninfo*, led to *port* on 127.0.0.1.  A host's name stays: TLS compares it."""
    settings = _parse(conninfo, {})
    host = _resolved(settings).get("host")
    settings |= {"hostaddr": "127.0.0.1", "port": port}
    if not host or host.startswith("/"):
        settings["host"] = "127.0.0.1"
    return make_conninfo("", **settings)


def _resolved(settings: Mapping[str, Any]) -> dict[str, str]:
    """What libpq makes of *settings*, with its service file, variables and defaults: it shows that
    for an attempt that it refuses before anything is opened.  Empty for an unknown service;
    "default host" is where it looks for a server if nothing names a host."""
    conninfo = make_conninfo("", **{**settings, **_REFUSED_AT_ONCE})
    pgconn = pq.PGconn.connect_start(conninfo.encode())
    found = {
        option.keyword.decode(): option.val.decode(errors="replace")
        for option in pgconn.info
        if option.val
    }
    if found:
        found["default host"] = pgconn.host.decode(errors="replace")
    pgconn.finish()
    return found


def _place_of(connection: Connection) -> str:
    # psycopg's own properties decode by an encoding that Python may lack.
    pgconn = connection.pgconn
    return place(pgconn.host, pgconn.port, pgconn.db)


def _parse(conninfo: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of *conninfo* and *params*, without defaults.

    :raises ConnectError: it cannot be read; names the scheme or keyword, and no value.
    """
    libpq = {key: value for key, value in params.items() if key not in _PSYCOPG_KEYWORDS}
    text = _conninfo.tidy(conninfo)
    merged = readable = None
    try:
        readable = conninfo_to_dict(text)
        merged = conninfo_to_dict(text, **libpq)
        make_conninfo("", **merged).encode()
    except (psycopg.Error, UnicodeError, ValueError):
        merged = None  # libpq's message repeats what it could not read, which may be a password
    if merged is not None:
        reason = _conninfo.suspicion(text, merged)
        if reason is None:
            return dict(merged)
    else:
        known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
        reason = "the value of a keyword holds something that libpq does not accept"
        if readable is None:
            reason = _conninfo.fault(text, known)
        elif strange := sorted(libpq.keys() - known):
            reason = f"it has {_conninfo.unknown(strange[0], known, 'keyword')}"
    raise ConnectError(
        f"the connection string cannot be read: {reason}; it should look like "
        f"{_conninfo.EXAMPLES} (yours is not shown, as it may hold a password)"
    )


def _settings(conninfo: str, params: Mapping[str, Any]) -> dict[str, Any]:
    settings = _parse(conninfo, params)
    found = _resolved(settings)
    # psycopg looks neither for several hosts nor for a timeout in a service file.
    settings |= {key: found[key] for key in ("host", "hostaddr", "port") if found.get(key)}
    settings["connect_timeout"] = found.get("connect_timeout") or CONNECT_TIMEOUT
    asked = found.get("client_encoding")
    if asked and str(asked).replace("-", "").replace("_", "").lower() not in ("utf8", "unicode"):
        warnings.warn(
            f"client_encoding={asked!r} is overridden with UTF8: a payload that it cannot hold "
            "would end the session",
            UserWarning,
            stacklevel=_caller_stacklevel(),
        )
    settings["client_encoding"] = "UTF8"
    settings.setdefault("fallback_application_name", "pgsignals")
    settings.update((key, params[key]) for key in params.keys() & _PSYCOPG_KEYWORDS)
    return settings


def _caller_stacklevel() -> int:
    """For ``warnings.warn`` in the calling function: the first frame that is not ours."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "pgsignals":
        level, frame = level + 1, frame.f_back
    return level


def _set_client_encoding(connection: Connection) -> Connection:
    """Set the client's encoding: UTF8, or SQL_ASCII where the database is SQL_ASCII.

    A UTF8 client of an SQL_ASCII database loses its session to the first payload that is not
    UTF-8; an SQL_ASCII client receives the bytes as they are.
    """
    pgconn = connection.pgconn
    server = pgconn.parameter_status(b"server_encoding")
    wanted = b"SQL_ASCII" if server == b"SQL_ASCII" else b"UTF8"
    if server == b"MULE_INTERNAL":
        where = _place_of(connection)
        connection.close()
        raise _no_conversion(where, "MULE_INTERNAL")
    idle = pgconn.transaction_status == pq.TransactionStatus.IDLE
    if pgconn.parameter_status(b"client_encoding") != wanted and idle:
        pgconn.exec_(b"SET client_encoding TO " + wanted)
    return connection


def _share(settings: Mapping[str, Any], within: float) -> int:
    """Each host's share of the seconds *within*, or less when the user asks for less."""
    hosts = str(settings.get("hostaddr") or settings.get("host") or "").count(",") + 1
    share = max(2, int(within / hosts))  # libpq takes whole seconds, and less than 2 as 2
    try:
        wanted = int(float(settings.get("connect_timeout", share)))
    except ValueError:
        return share
    return min(share, wanted) if wanted > 0 else share


def _no_conversion(name: str, encoding: str) -> EncodingError:
    return EncodingError(
        f"{name}: the database's encoding {encoding} has no conversion to UTF8; "
        "use a database with encoding UTF8"
    )


def versions() -> tuple[str, str]:
    """The versions of psycopg and of the libpq that it uses."""
    major, minor = divmod(pq.version(), 10_000)
    return psycopg.__version__, f"{major}.{minor}"


def needs_care(error: Exception) -> bool:
    """Whether trying again soon would only fail again, and might lock an account.

    libpq gives no SQLSTATE for a refused connection; a server that answers in another language
    than English is tried again as after any other failure.
    """
    return isinstance(error, ConnectError) and _REFUSED.search(str(error)) is not None


def _without_secrets(text: str, settings: Mapping[str, Any]) -> str:
    for key in ("password", "sslpassword"):
        if secret := settings.get(key):
            text = text.replace(str(secret), "***")
    return text
