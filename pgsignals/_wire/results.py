"""The answer to one statement, as plain text."""

from __future__ import annotations

from typing import NamedTuple

from psycopg import pq

from pgsignals._wire.encodings import Texts
from pgsignals._wire.farewell import Farewell


class Result(NamedTuple):
    """The answer to one statement of :meth:`Session.submit`."""

    sqlstate: str | None
    """None when it succeeded."""

    message: str
    """The server's words, ``""`` when it succeeded."""

    rows: list[tuple[str, ...]]
    """As text; NULL is ``""``."""


def read_result(result: pq.abc.PGresult, texts: Texts, farewell: Farewell) -> Result:
    """*result* as text; where it is the server's farewell instead of an answer, keep that, too."""
    if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        rows = [
            tuple(
                texts.text(result.get_value(row, column) or b"") for column in range(result.nfields)
            )
            for row in range(result.ntuples)
        ]
        return Result(None, "", rows)
    sqlstate = result.error_field(pq.DiagnosticField.SQLSTATE) or b"XX000"
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"no reason given"
    severity = result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED)
    answer = Result(sqlstate.decode(), texts.text(message), [])
    if severity in (b"FATAL", b"PANIC"):
        farewell.heard(answer.sqlstate, answer.message)
    return answer
