"""Every use of a database, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import pytest

from pgsignals import Database

Use: TypeAlias = Callable[[Database], object]

#: Those that need a session.
SESSION_USES: dict[str, Use] = {
    "listen": lambda database: database.listen("x"),
    "listen to nothing": lambda database: database.listen(),
    "unlisten": lambda database: database.unlisten("x"),
    "listening_channels": lambda database: database.listening_channels(),
    "notify": lambda database: database.notify("x"),
    "notify nothing": lambda database: database.notify(),
    "fileno": lambda database: database.fileno(),
    "execute": lambda database: database.execute("SELECT 1"),
    "transaction": lambda database: database.transaction(),
    "connection": lambda database: database.connection,
}

#: Also those that still answer after the end of a session.
USES: dict[str, Use] = {
    **SESSION_USES,
    "wait": lambda database: database.wait(),
    "iternotifies": lambda database: database.iternotifies(),
    "drain": lambda database: database.drain(),
    "backend_id": lambda database: database.backend_id,
}


def each_of(uses: Mapping[str, Use]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("use", uses.values(), ids=uses.keys())
