"""Bytes of a session as text, and back, in the client's encoding."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import psycopg

from pgsignals._pure.names import PROBE_CHANNEL

PROBE = PROBE_CHANNEL.encode()

#: Bytes that are not text in the client's encoding still arrive, and can be sent back unchanged.
BYTES_AS_TEXT = "surrogateescape"


class Names(dict[bytes, str]):
    """Channel names, each decoded once: all sessions of one encoding have the same ones."""

    def __init__(self, encoding: str) -> None:
        self.encoding = encoding
        self.latest_canary = object()  # replaced with every canary

    def __missing__(self, relname: bytes) -> str:
        if relname == PROBE:  # never cached, so that looking for it costs nothing elsewhere
            self.latest_canary = object()
            return PROBE_CHANNEL
        if len(self) >= 1 << 16:
            self.clear()
        name = self[relname] = str(relname, self.encoding, BYTES_AS_TEXT)
        return name


# Process-wide: a thousand sessions that listen to the same channels decode and keep each name once.
_names_in: dict[str, Names] = {}


class Texts:
    """What one session's bytes say."""

    __slots__ = ("_client_encoding", "_connection", "names")

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._client_encoding: bytes | None = None  # as the server calls it; None before follow()
        self.names = _names_in.setdefault("utf-8", Names("utf-8"))

    def follow(self) -> None:
        """Take over the client's encoding, which its owner may have changed.

        :raises psycopg.OperationalError: the connection is closed.
        """
        name = self._connection.pgconn.parameter_status(b"client_encoding")
        if name == self._client_encoding:
            return
        self._client_encoding = name
        try:
            encoding = self._connection.info.encoding
        except psycopg.NotSupportedError:
            encoding = "ascii"
        # SQL_ASCII promises nothing; UTF-8 is the best guess.
        encoding = "utf-8" if encoding == "ascii" else encoding
        self.names = _names_in.setdefault(encoding, Names(encoding))

    def text(self, raw: bytes) -> str:
        """*raw* as text; what is not text in the encoding stays, as surrogates."""
        return str(raw, self.names.encoding, BYTES_AS_TEXT)

    def texts(self, raws: Iterable[bytes]) -> list[str]:
        """Each of *raws* as :meth:`text`."""
        if self.names.encoding == "utf-8":
            with contextlib.suppress(UnicodeDecodeError):
                return list(map(bytes.decode, raws))  # the fast path, nearly always taken
        return [self.text(raw) for raw in raws]

    def encode(self, text: str) -> bytes:
        """*text* for the server.

        :raises UnicodeEncodeError: the client's encoding cannot hold it.
        """
        self.follow()
        return text.encode(self.names.encoding, BYTES_AS_TEXT)

    def can_say(self, text: str) -> bool:
        """Whether the client's encoding can hold *text*; a wrapped connection has its owner's."""
        try:
            self.encode(text)
        except UnicodeEncodeError:
            return False
        return True

    def channel(self, hexadecimal: str | bytes) -> str:
        """A name from :data:`.statements.LISTENING`, spelled as in notifications."""
        status = self._connection.pgconn.parameter_status(b"server_encoding")
        encoding = self.names.encoding if status == b"SQL_ASCII" else "utf-8"
        return str(bytes.fromhex(value_as_text(hexadecimal)), encoding, BYTES_AS_TEXT)


def value_as_text(value: Any) -> Any:
    """A value of a query, bytes as text: psycopg leaves text as bytes in SQL_ASCII."""
    return value.decode("utf-8", BYTES_AS_TEXT) if isinstance(value, bytes) else value
