"""All SQL that we send, and what its answers mean.

``search_path`` may be under others' control: anyone who may create functions, operators or types in
a schema on it could make statements that name them run arbitrary code, with our role's rights.
Therefore all our statements qualify everything they use with ``pg_catalog``, with exact types, and
avoid syntax that looks operators up by name: ``IN``, ``LIKE``, ``BETWEEN``, ``nullif``,
``CASE x WHEN``, ``IS DISTINCT FROM``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from pgsignals._pure.names import ALL, PROBE_CHANNEL


def quote(channel: str) -> str:
    """*channel* as an SQL identifier: case and every character kept."""
    return '"' + channel.replace('"', '""') + '"'


def listen_sql(listen: Iterable[str] = (), unlisten: Iterable[str] = ()) -> str:
    """Statements for one round trip, one implicit transaction: all of them or none."""
    commands = [f"LISTEN {quote(name)}" for name in listen]
    commands += [f"UNLISTEN {ALL if name == ALL else quote(name)}" for name in unlisten]
    return "; ".join(commands)


# unnest keeps the order of its arrays, and one SELECT is one transaction.
_NOTIFY = (
    "SELECT pg_catalog.count(pg_catalog.pg_notify(t.channel, t.payload)) FROM ROWS FROM ("
    "pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])"
    ") AS t(channel, payload)"
)


def notify(items: Iterable[tuple[str, str]]) -> tuple[str, tuple[list[str], list[str]]]:
    """One statement that issues *items*, in order, and its parameters, for psycopg.

    It is good for any connection, in a transaction or outside; its only row says how many were
    issued.

    :param items: pairs ``(channel, payload)`` of :func:`.names.notify_items`.
    """
    pairs = list(items)
    return _NOTIFY, ([channel for channel, _ in pairs], [payload for _, payload in pairs])


#: Sends a canary: a command, which needs no privilege and which no function can replace.
CANARY = f"NOTIFY {quote(PROBE_CHANNEL)}"

IDENTIFY = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_is_in_recovery()"

# The server drops us when we are gone, so that a ghost of ours never holds its queue; and an idle
# listener does not count as an idle session.  Over a Unix socket the first four have no effect.
GUARDS = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "idle_session_timeout": "0",
}
UNGUARD = "; ".join(f"RESET {name}" for name in GUARDS)


def guard(*, patient: bool, alone: bool) -> str:
    """Set :data:`GUARDS`.

    :param patient: the server should wait for a client that does not read.
    :param alone: only we ever run statements on the session, so it needs no search_path.
    """
    guards = {**GUARDS, "tcp_user_timeout": "0"} if patient else GUARDS
    guards = {**guards, "search_path": "''"} if alone else guards
    return "; ".join(f"SET {name} = {value}" for name, value in guards.items())


def clear_search_path(backend_id: int) -> str:
    """Empty it, unless a pooler is in front of the server: *backend_id* is then the pooler's own
    number, and the setting would outlive us on another client's session."""
    return (
        "SELECT pg_catalog.set_config('search_path'::pg_catalog.text, ''::pg_catalog.text, false) "
        f"WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) {backend_id}"
    )


# A channel's name as bytes: in UTF-8, whatever the client speaks and can hold; of an SQL_ASCII
# database, which converts nothing, as they are.
_NAME = (
    "pg_catalog.convert_to(c, (SELECT CASE WHEN pg_catalog.getdatabaseencoding() "
    "OPERATOR(pg_catalog.=) 'SQL_ASCII'::pg_catalog.name THEN 'SQL_ASCII'::pg_catalog.name "
    "ELSE 'UTF8'::pg_catalog.name END))"
)

#: In hexadecimal; see :meth:`pgsignals._wire.session.Session.channel`.
LISTENING = (
    f"SELECT pg_catalog.encode({_NAME}, 'hex'::pg_catalog.text) "
    "FROM pg_catalog.pg_listening_channels() AS t(c)"
)

# It also repairs a queue that stays full after the session that held it has gone.
QUEUE_USAGE = "pg_catalog.pg_notification_queue_usage()"
IN_RECOVERY = "pg_catalog.pg_is_in_recovery()"
# The hash of all names tells whether the session still listens to what it should, at any number.
DIGEST = (
    "(SELECT pg_catalog.encode(pg_catalog.sha256(coalesce(pg_catalog.string_agg(n, "
    "pg_catalog.decode('00'::pg_catalog.text, 'hex'::pg_catalog.text) ORDER BY n), "
    "pg_catalog.decode(''::pg_catalog.text, 'hex'::pg_catalog.text))), "
    f"'hex'::pg_catalog.text) FROM (SELECT {_NAME} "
    "FROM pg_catalog.pg_listening_channels() AS t(c)) AS t(n))"
)
PARTS = (QUEUE_USAGE, IN_RECOVERY, DIGEST)

#: Identifies our sessions to an operator and to ``pgsignals doctor``.
ROUND_TRIP_BEGINS = "SELECT /* pgsignals */ "


def round_trip(parts: Collection[str] = PARTS) -> str:
    """Ask for those of :data:`PARTS`; the others are NULL in the answer."""
    return ROUND_TRIP_BEGINS + ", ".join(part if part in parts else "NULL" for part in PARTS)


ROUND_TRIP = round_trip()

# A session reads the queue between its transactions, and only as fast as its client reads.
QUEUE_HOLDERS = (
    "SELECT pid, application_name, datname, state, "
    "pg_catalog.to_char(state_change, 'YYYY-MM-DD HH24:MI:SS.MSOF'::pg_catalog.text), wait_event "
    "FROM pg_catalog.pg_stat_activity "
    "WHERE backend_type OPERATOR(pg_catalog.=) 'client backend'::pg_catalog.text "
    "AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() "
    "AND (pg_catalog.starts_with(state, 'idle in transaction'::pg_catalog.text) "
    "OR wait_event OPERATOR(pg_catalog.=) 'ClientWrite'::pg_catalog.text) "
    "ORDER BY coalesce(xact_start, state_change) LIMIT 3"
)


def describe_holder(row: Sequence[object]) -> str:
    """A row of :data:`QUEUE_HOLDERS` in words."""
    pid, application, database, state, since, waits_for = row
    waits = f", waits for {waits_for}" if waits_for else ""
    name = application or "no name"
    return f"pid {pid} ({name}, database {database}), {state} since {since}{waits}"


def digest_of(channels: Iterable[str]) -> str:
    """What :data:`DIGEST` says of a session that listens to *channels*."""
    names = sorted(channel.encode("utf-8", "surrogateescape") for channel in channels)
    return hashlib.sha256(b"\0".join(names)).hexdigest()
