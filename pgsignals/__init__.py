"""PostgreSQL LISTEN/NOTIFY as Python signals.

Register handlers with :func:`on_channel` and run a :class:`Reactor`, iterate
:meth:`Database.wait`, or watch many databases with a :class:`NotificationManager`.

PYTEST_DONT_REWRITE: a program that imports this and then starts pytest is not warned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgsignals._pure.values import Notification
from pgsignals._sending.publish import publish, publish_many, publish_statement
from pgsignals._sources.reports import DatabaseStatus, Gap, Status
from pgsignals.database import Database, connect
from pgsignals.errors import (
    ChannelNameError,
    ClosedError,
    ConnectError,
    ConnectionLostError,
    ConnectionStateError,
    EncodingError,
    Error,
    ForkedError,
    PayloadError,
    PoolerError,
    SchemaError,
    StandbyError,
    UnsupportedServerError,
)
from pgsignals.manager import NotificationManager
from pgsignals.reactor import Reactor
from pgsignals.signals import channel, on, on_channel

if TYPE_CHECKING:
    from pgsignals import embedded as embedded

__all__ = [
    "ChannelNameError",
    "ClosedError",
    "ConnectError",
    "ConnectionLostError",
    "ConnectionStateError",
    "Database",
    "DatabaseStatus",
    "EncodingError",
    "Error",
    "ForkedError",
    "Gap",
    "Notification",
    "NotificationManager",
    "PayloadError",
    "PoolerError",
    "Reactor",
    "SchemaError",
    "StandbyError",
    "Status",
    "UnsupportedServerError",
    "channel",
    "connect",
    "on",
    "on_channel",
    "publish",
    "publish_many",
    "publish_statement",
]

for _name in __all__:  # tracebacks and reprs show where users import from
    globals()[_name].__module__ = "pgsignals"
del _name


def __getattr__(name: str) -> Any:
    """Load what few programs need when it is asked for."""
    from importlib import import_module, metadata

    if name == "__version__":
        try:
            return metadata.version("pgsignals-reactor")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name == "embedded":
        return import_module("pgsignals.embedded")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
