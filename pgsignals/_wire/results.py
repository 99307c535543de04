"""The answer to one statement, as plain text."""

from __future__ import annotations

from typing import NamedTuple

from psycopg import pq

from pgsignals._wire.encodings import Texts


class Result(NamedTuple):
    """The answer to one statement of :meth:`Session.submit`."""

    sqlstate: str | None
    """None when it succeeded."""

    message: str
    """The server's words, ``""`` when it succeeded."""

    rows: list[tuple[str, ...]]
    """As text; NULL is ``""``."""


def read_result(result: pq.abc.PGresult, texts: Texts) -> tuple[Result, bool]:
    """*result*, and whether it is the server's farewell, where an answer was expected."""
    if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        rows = [
            tuple(
                texts.text(result.get_value(row, column) or b"") for column in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]
        return Result(None, "", rows), False
    sqlstate = result.error_field(pq.DiagnosticField.SQLSTATE) or b"XX000"
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"no reason given"
    severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
    farewell = severity in (b"FATAL", b"PANIC")
    return Result(sqlstate.decode(), texts.text(message), []), farewell
