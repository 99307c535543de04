"""The SQL that publishes events, for any driver.

Placeholders are written as psycopg's; :func:`styled` makes those of other drivers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from pgsignals._pure.publication import Publication
from pgsignals._pure.statements import quote

#: Where ``schema init`` puts durable channels, unless told otherwise.
SCHEMA = "pgsignals"

Style: TypeAlias = Literal["format", "named", "numeric_dollar"]


def check_schema(name: object) -> str:
    """Return the *name* of a schema if every driver and PostgreSQL take it unchanged.

    :raises TypeError: not a ``str``.
    :raises ValueError: not made of letters, digits and underscores, over 63 bytes, or beginning
        with ``pg_``.
    """
    if not isinstance(name, str):
        raise TypeError(f"schema must be a str, not {type(name).__name__}")
    if not name.isidentifier() or len(name.encode()) > 63:
        raise ValueError(
            f"schema must be letters, digits and underscores, at most 63 bytes, not {name!r}"
        )
    if name.startswith("pg_"):
        raise ValueError(f"schema must not begin with pg_, which is PostgreSQL's own: {name!r}")
    return str.__str__(name)


def publish(event: Publication, schema: str) -> tuple[str, list[Any]]:
    """One statement that publishes *event*, and its parameters; its only row is the id."""
    headers = None if event.headers is None else json.dumps(dict(event.headers))
    # Drivers differ in what they take for an interval, and agree on numbers.
    interval = "pg_catalog.make_interval(0, 0, 0, 0, 0, 0, %s::pg_catalog.float8)"
    given: list[tuple[str, str, Any]] = [
        ("channel", "%s::pg_catalog.text", event.channel),
        ("payload", "%s::pg_catalog.text", event.payload),
        ("key", "%s::pg_catalog.text", event.key),
        ("headers", "%s::pg_catalog.jsonb", headers),
        ("delay", interval, event.delay),
        ("dedup", "%s::pg_catalog.text", event.dedup),
    ]
    some = [one for one in given if one[2] is not None]
    named = ", ".join(f"{name} => {value}" for name, value, _ in some)
    turn = ", ordered => true" if event.ordered else ""
    return f"SELECT {quote(schema)}.publish({named}{turn})", [value for _, _, value in some]


def why_refused(sqlstate: str | None, schema: str, name: str) -> str | None:
    """What to tell a user whose publishing was refused with *sqlstate*; None if the server's own
    words say it.

    :param name: of the database.
    """
    if sqlstate in ("3F000", "42883", "42P01"):
        return missing(schema, name)
    if sqlstate == "42501":
        return (
            f"the role may not publish in the schema {schema} of {name}; let it with: "
            f"{command('init', schema)} --grants publisher=ROLE"
        )
    return None


def missing(schema: str, name: str) -> str:
    """The message for a database that has no durable channels."""
    return (
        f"{name} has no schema {schema} for durable channels; install it with: "
        f"{command('init', schema)}"
    )


def command(action: str, schema: str) -> str:
    """The command that does something to a schema."""
    return f"pgsignals schema {action}{'' if schema == SCHEMA else f' --schema {schema}'}"


def publish_many(
    channel: str, payloads: Sequence[str], keys: Sequence[str | None], schema: str
) -> tuple[str, list[Any]]:
    """One statement that publishes them in order; its only row is their number."""
    sql = (
        f"SELECT {quote(schema)}.publish_many(%s::pg_catalog.text, %s::pg_catalog.text[], "
        "%s::pg_catalog.text[])"
    )
    return sql, [channel, list(payloads), list(keys)]


def copy(schema: str) -> str:
    """The COPY that publishes many events, as ``channel, key, payload``."""
    return f"COPY {quote(schema)}.event (channel, key, payload) FROM STDIN"


def styled(sql: str, params: Sequence[Any], style: object) -> tuple[str, Any]:
    """*sql* and its parameters as another driver wants them.

    :param style: of PEP 249's: ``"format"`` is as they are; ``"named"`` has ``:p1`` and a dict;
        ``"numeric_dollar"`` has ``$1``.
    :raises ValueError: another style.
    """
    if style not in get_args(Style):
        raise ValueError(f"paramstyle must be one of {get_args(Style)}, not {style!r}")
    if style == "format":
        return sql, list(params)
    first, *rest = sql.split("%s")
    if style == "named":  # in parentheses, as SQLAlchemy would not see the name before "::"
        text = first + "".join(f"(:p{n}){piece}" for n, piece in enumerate(rest, 1))
        return text, {f"p{n}": value for n, value in enumerate(params, 1)}
    return first + "".join(f"${n}{piece}" for n, piece in enumerate(rest, 1)), list(params)
