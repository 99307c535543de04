"""The exceptions of pgsignals, one tree.

::

    Error
    ├── ChannelNameError        also ValueError
    ├── PayloadError            also ValueError
    ├── ConnectError            also ConnectionError
    ├── ConnectionLostError     also ConnectionError
    ├── UnsupportedServerError  also RuntimeError
    │   ├── PoolerError
    │   ├── StandbyError
    │   └── EncodingError
    ├── ConnectionStateError    also RuntimeError
    ├── SchemaError             also RuntimeError
    ├── ClosedError             also RuntimeError
    └── ForkedError             also RuntimeError

Arguments of the wrong type raise a plain :exc:`TypeError`.  Messages never hold a payload or a
secret of a connection string, and neither does anything chained to these exceptions.
"""

from __future__ import annotations


class Error(Exception):
    """Root of everything that pgsignals raises on purpose."""


class ChannelNameError(Error, ValueError):
    """A channel name that the server would refuse or silently change; raised before the wire."""


class PayloadError(Error, ValueError):
    """A payload that the server would refuse; raised before the wire."""


class ConnectError(Error, ConnectionError):
    """A connection cannot be made.  The reason is in one line, without secrets."""


class ConnectionLostError(Error, ConnectionError):
    """A connection ended while it was in use.

    :param sqlstate: the code that the server sent with its farewell, such as ``57P01``
        (PostgreSQL manual, appendix A), or None where it sent none.
    """

    def __init__(self, message: str = "", *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class UnsupportedServerError(Error, RuntimeError):
    """The server, or a pooler in front of it, cannot do LISTEN/NOTIFY for us."""


class PoolerError(UnsupportedServerError):
    """A pooler in transaction or statement mode is in front of the server."""


class StandbyError(UnsupportedServerError):
    """The server is a standby; LISTEN and NOTIFY need a primary."""


class EncodingError(UnsupportedServerError):
    """The database's encoding has no conversion to UTF8."""


class ConnectionStateError(Error, RuntimeError):
    """A connection that is not in autocommit, is in a transaction, cannot be reopened, or
    serves a running reactor."""


class SchemaError(Error, RuntimeError):
    """The schema of durable channels is missing, of another version or cluster, or may not be used;
    says which command or GRANT changes that."""


class ClosedError(Error, RuntimeError):
    """Use after close, or before ``open()``."""


class ForkedError(Error, RuntimeError):
    """Use in a forked child of an object that belongs to the parent."""
