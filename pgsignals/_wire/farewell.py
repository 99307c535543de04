"""Why a session has ended: the last words of the server and its SQLSTATE, or those of psycopg."""

from __future__ import annotations

import psycopg

from pgsignals._pure.conninfo import one_line


class Farewell:
    """Of one session; empty until the server, libpq or psycopg has said something."""

    __slots__ = ("sqlstate", "text")

    def __init__(self) -> None:
        self.sqlstate: str | None = None
        self.text = ""

    def heard(self, sqlstate: str | None, text: str) -> None:
        """The server has said why it ends the session."""
        self.sqlstate, self.text = sqlstate, text

    def is_in(self, notice: psycopg.errors.Diagnostic) -> bool:
        """Whether a notice is one, which is kept then."""
        fatal = notice.severity_nonlocalized in ("FATAL", "PANIC")
        if not fatal and notice.sqlstate != "57P02":  # a crash elsewhere comes as a warning
            return False
        self.heard(notice.sqlstate, notice.message_primary or "")
        return True

    def add(self, error: psycopg.Error) -> None:
        """What psycopg says, where the server has said nothing."""
        self.sqlstate = self.sqlstate or error.sqlstate
        self.text = self.text or one_line(error)

    @property
    def why(self) -> str:
        """For a log: the words and the code, where there are any."""
        code = f" ({self.sqlstate})" if self.sqlstate else ""
        return f"{self.text or 'the connection is gone'}{code}"
