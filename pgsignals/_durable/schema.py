"""The schema of durable channels: installed, checked and removed on request, never by itself."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

from pgsignals._pure.publication import MAX_EVENT_BYTES
from pgsignals._pure.publishing import check_schema, command, missing
from pgsignals._pure.statements import quote
from pgsignals.database import Database
from pgsignals.errors import SchemaError

#: The version that this release installs, and the oldest that it works with.
VERSION = 1
OLDEST = 1

DAY = 86_400.0

#: What publishers and consumers need.
PUBLISHER = (
    "GRANT USAGE ON SCHEMA {schema}",
    "GRANT INSERT (channel, key, headers, payload), SELECT (id) ON {schema}.event",
    "GRANT INSERT (due_at, channel, key, headers, payload), SELECT (id) ON {schema}.delayed",
    "GRANT SELECT, INSERT, UPDATE (event_id) ON {schema}.dedup",
    "GRANT USAGE ON SEQUENCE {schema}.event_id",
)
CONSUMER = (
    "GRANT USAGE ON SCHEMA {schema}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema}",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema}",
)


@dataclass(frozen=True)
class Limits:
    """What ``schema init`` may be given; None leaves what is there, or the default."""

    keep: float | None = None
    """Seconds that an event stays after the last group has handled it; a day by default."""

    max_age: float | None = None
    """Seconds that an event stays that some group has not handled; seven days by default."""

    max_payload: int | None = None
    """Bytes of a payload; 1 MiB by default."""


def install_sql(schema: str, limits: Limits) -> str:
    """Everything that a new *schema* is made of, as one script."""
    text = resources.files("pgsignals._durable").joinpath("schema.sql").read_text("utf-8")
    values = {
        "schema": quote(schema),
        "keep": f"{DAY if limits.keep is None else limits.keep:.3f}",
        "max_age": f"{7 * DAY if limits.max_age is None else limits.max_age:.3f}",
        "max_payload": str(limits.max_payload or MAX_EVENT_BYTES),
    }
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def grants_sql(schema: str, publisher: str | None = None, consumer: str | None = None) -> str:
    """The ``GRANT``\\ s for a role that publishes and one that consumes; both may be None."""
    lines = [
        f"{right.format(schema=quote(schema))} TO {quote(role)};"
        for role, rights in ((publisher, PUBLISHER), (consumer, CONSUMER))
        if role is not None
        for right in rights
    ]
    return "\n".join(lines)


def init(
    db: Database,
    schema: str,
    limits: Limits,
    *,
    publisher: str | None = None,
    consumer: str | None = None,
) -> bool:
    """Install *schema*, or change the limits of one that is current.  Blocks.

    :returns: whether it is new.
    :raises SchemaError: it is another version's.
    """
    check_schema(schema)
    with db.transaction():
        # Two that install at once: the second one waits, and finds it done.
        lock = (
            "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended("
            "%s::pg_catalog.text, 0::pg_catalog.int8))"
        )
        db.execute(lock, [f"pgsignals schema {schema}"])
        fresh = version_of(db, schema) is None
        if fresh:
            db.execute(install_sql(schema, limits))
        else:
            check(db, schema)
            _change(db, schema, limits)
        if grants := grants_sql(schema, publisher, consumer):
            db.execute(grants)
    return fresh


def _change(db: Database, schema: str, limits: Limits) -> None:
    name = quote(schema)
    for column, seconds in (("keep", limits.keep), ("max_age", limits.max_age)):
        if seconds is not None:
            sql = (
                f"UPDATE {name}.meta SET {column} = "
                "pg_catalog.make_interval(0, 0, 0, 0, 0, 0, %s::pg_catalog.float8)"
            )
            db.execute(sql, [seconds])
    if limits.max_payload is not None:
        db.execute(
            f"ALTER DOMAIN {name}.payload DROP CONSTRAINT payload_is_small_enough; "
            f"ALTER DOMAIN {name}.payload ADD CONSTRAINT payload_is_small_enough CHECK ("
            f"pg_catalog.octet_length(value) OPERATOR(pg_catalog.<=) {limits.max_payload}"
            ") NOT VALID"
        )


def check(db: Database, schema: str) -> None:
    """Refuse what this release cannot work with.  Blocks.

    :raises SchemaError: it is missing, older, newer, of another cluster, or the role may not read
        it; says what to do.
    """
    version = _installed(db, schema)
    if version < OLDEST:
        raise SchemaError(
            f"the schema {schema} of {db.name} has version {version}, and {OLDEST} is the oldest "
            f"that works; upgrade it with: {command('upgrade', schema)}"
        )
    if version > VERSION:
        raise SchemaError(
            f"the schema {schema} of {db.name} has version {version}, and this release knows "
            f"{VERSION}; install a newer pgsignals"
        )
    rows = db.execute(
        f"SELECT m.system_id OPERATOR(pg_catalog.=) c.system_identifier "
        f"FROM {quote(schema)}.meta AS m, "
        "pg_catalog.pg_control_system() AS c"
    ).fetchall()
    if rows != [(True,)]:
        raise SchemaError(
            f"the schema {schema} of {db.name} was restored from another cluster, where its "
            f"positions were made; adopt it with: {command('adopt', schema)}"
        )


def _installed(db: Database, schema: str) -> int:
    """The version that is installed.

    :raises SchemaError: there is none, or the role may not read it.
    """
    if (version := version_of(db, check_schema(schema))) is None:
        raise SchemaError(missing(schema, db.name))
    return version


def version_of(db: Database, schema: str) -> int | None:
    """The version that is installed; None if there is none.

    :raises SchemaError: the role may not read it.
    """
    sql = (
        "SELECT c.oid, pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'::pg_catalog.text) "
        "AND pg_catalog.has_table_privilege(c.oid, 'SELECT'::pg_catalog.text) "
        "FROM pg_catalog.pg_class AS c "
        "JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace "
        "WHERE n.nspname OPERATOR(pg_catalog.=) %s::pg_catalog.name "
        "AND c.relname OPERATOR(pg_catalog.=) 'meta'::pg_catalog.name"
    )
    found: Any = db.execute(sql, [schema]).fetchone()
    if found is None:
        return None
    if not found[1]:
        raise SchemaError(
            f"the role may not read the schema {schema} of {db.name}; its owner can change that "
            f"with: {grants_sql(schema, consumer='ROLE').splitlines()[0]}"
        )
    row: Any = db.execute(f"SELECT m.version FROM {quote(schema)}.meta AS m").fetchone()
    return None if row is None else int(row[0])


def upgrade(db: Database, schema: str) -> bool:
    """Bring *schema* to this release's version.  Blocks.

    :returns: whether something has changed.
    :raises SchemaError: it is missing, or newer than this release.
    """
    check(db, schema)  # there is only one version so far
    return False


def adopt(db: Database, schema: str) -> bool:
    """Make a restored *schema* this cluster's.  Blocks.

    :returns: whether it was another one's.
    :raises SchemaError: it is missing.
    """
    _installed(db, schema)
    row = db.execute(
        f"UPDATE {quote(schema)}.meta AS m SET system_id = c.system_identifier "
        "FROM pg_catalog.pg_control_system() AS c "
        "WHERE m.system_id OPERATOR(pg_catalog.<>) c.system_identifier RETURNING m.version"
    ).fetchone()
    return row is not None


def drop(db: Database, schema: str) -> None:
    """Remove *schema* with all its events.  Blocks.

    :raises SchemaError: it is missing.
    """
    _installed(db, schema)
    db.execute(f"DROP SCHEMA {quote(schema)} CASCADE")
