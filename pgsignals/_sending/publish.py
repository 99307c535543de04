"""Publishing events of durable channels on connections of the caller's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from pgsignals._pure import publishing
from pgsignals._pure.publication import publication, publications
from pgsignals._pure.publishing import SCHEMA
from pgsignals._wire.callers import copy_into, value_of

#: From how many events on COPY is faster than a statement with arrays.
COPY_FROM = 100


def publish(
    connection: Any,
    channel: str,
    payload: str = "",
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    delay: float | timedelta | None = None,
    dedup: str | None = None,
    ordered: bool = False,
    schema: str = SCHEMA,
) -> int | None:
    """Publish one event in the transaction of *connection*: it leaves with its commit.

    Blocks for a round trip.  Errors of the driver pass through unchanged.

    :param connection: a psycopg ``Connection`` or ``Cursor``, a SQLAlchemy ``Connection`` or
        ``Session``, a Django connection or alias.
    :param key: events of one key reach a group one at a time, in the order in which their writers
        took turns; None for no order.
    :param headers: text beside the payload, such as a trace context.
    :param delay: seconds, or a ``timedelta``, before which no group is handed the event; None
        or 0 for none.
    :param dedup: publish nothing if an event of the channel was published with the same *dedup* and
        is still retained.  Waits for another open transaction that has just done so.
    :param ordered: take the turn of *key* until the end of the transaction, for keys that no row
        lock protects.
    :param schema: where ``pgsignals schema init`` has put the channels.
    :returns: the event's id; None when *dedup* was seen.
    :raises TypeError: a connection or an argument of a wrong type.
    :raises ValueError: *ordered* without a key, a negative delay.
    :raises ChannelNameError: before anything is sent.
    :raises PayloadError: over 1 MiB, or not valid as PostgreSQL text; before anything is sent.
    """
    sql, params = publish_statement(
        channel,
        payload,
        key=key,
        headers=headers,
        delay=delay,
        dedup=dedup,
        ordered=ordered,
        schema=schema,
    )
    event_id: int | None = value_of(connection, sql, params, "publish_statement")
    return event_id


def publish_many(
    connection: Any,
    channel: str,
    items: Iterable[str | tuple[str, str | None]],
    *,
    schema: str = SCHEMA,
) -> int:
    """Publish many events in the transaction of *connection*, in order: all of them or none.

    Blocks.  Uses COPY where the driver is psycopg.  Errors of the driver pass through unchanged.

    :param connection: see :func:`publish`.
    :param items: payloads, or pairs ``(payload, key)``; all are checked before anything is sent.
    :returns: their number.
    :raises TypeError: a connection or an item of a wrong type.
    :raises ChannelNameError: before anything is sent.
    :raises PayloadError: before anything is sent.
    """
    schema = publishing.check_schema(schema)
    name, payloads, keys = publications(channel, items)
    if len(payloads) >= COPY_FROM:
        rows = ((name, key, payload) for key, payload in zip(keys, payloads, strict=True))
        if (count := copy_into(connection, publishing.copy(schema), rows)) is not None:
            return count
    sql, params = publishing.publish_many(name, payloads, keys, schema)
    return int(value_of(connection, sql, params, "publish_statement"))


def publish_statement(
    channel: str,
    payload: str = "",
    *,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    delay: float | timedelta | None = None,
    dedup: str | None = None,
    ordered: bool = False,
    schema: str = SCHEMA,
    paramstyle: str = "format",
) -> tuple[str, Any]:
    """The statement of :func:`publish` and its parameters, for drivers that you await yourself.

    Its one row has one column: the id, or NULL when *dedup* was seen.

    :param paramstyle: of PEP 249: ``"format"`` (psycopg), ``"named"`` (SQLAlchemy's ``text``; the
        parameters are a dict), ``"numeric_dollar"`` (asyncpg).
    :raises ValueError: another *paramstyle*.
    """
    schema = publishing.check_schema(schema)
    event = publication(
        channel,
        payload,
        key=key,
        headers=headers,
        delay=delay,
        dedup=dedup,
        ordered=ordered,
    )
    sql, params = publishing.publish(event, schema)
    return publishing.styled(sql, params, paramstyle)
