"""What a reactor was made with: its arguments, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from pgsignals._pure.lanes import Policy
from pgsignals._pure.names import check_handled
from pgsignals._sources.listen import Settings
from pgsignals.database import Database
from pgsignals.manager import as_seconds, check_timeout


@dataclass(frozen=True)
class Config:
    """Arguments that have been checked; times in seconds."""

    databases: tuple[Database, ...]
    channels: frozenset[str]
    """Are listened to from the start, handler or not."""
    idle: float | None
    """Between idle events; None for none."""
    workers: int
    links: Settings

    @property
    def name(self) -> str:
        """The prefix of the thread names."""
        return self.links.name


def configure(
    databases: tuple[str | Database, ...],
    channels: Iterable[str],
    *,
    timeout: float | None,
    workers: int,
    max_backlog: int,
    overflow: Policy,
    backoff: tuple[float, float],
    probe_interval: float | None,
    probe_timeout: float,
    name: str,
) -> Config:
    """Check the arguments of a reactor: see :class:`pgsignals.Reactor`.

    :raises TypeError: no database, or arguments of a wrong type.
    :raises ValueError: numbers out of range, an unknown *overflow*, a database twice.
    :raises ChannelNameError: one of *channels*.
    """
    if not databases:
        raise TypeError('Reactor() needs at least one database; "" means libpq\'s defaults')
    if isinstance(channels, str):
        raise TypeError("channels must be an iterable of names, such as channels=['orders']")
    if overflow not in get_args(Policy):
        raise ValueError(f"overflow must be one of {get_args(Policy)}, not {overflow!r}")
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    checked = tuple(_database(database) for database in databases)
    if len(set(checked)) < len(checked):
        raise ValueError("Reactor() was given the same database twice")
    return Config(
        databases=checked,
        workers=_count("workers", workers),
        idle=_seconds_or_none("timeout", timeout),
        links=Settings(
            name=name,
            max_backlog=_count("max_backlog", max_backlog),
            overflow=overflow,
            backoff=_backoff(backoff),
            probe_interval=_seconds_or_none("probe_interval", probe_interval),
            probe_timeout=_seconds("probe_timeout", probe_timeout),
        ),
        channels=frozenset(check_handled(channel) for channel in channels),
    )


def _database(given: object) -> Database:
    if isinstance(given, str):
        return Database(given)
    if not isinstance(given, Database):
        raise TypeError(
            f"a database must be a connection string or a Database, not {type(given).__name__}"
        )
    return given


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def _seconds(name: str, value: object) -> float:
    if value is None:
        raise TypeError(f"{name} must be a number of seconds, not None")
    seconds = as_seconds(check_timeout(value, name))
    if seconds == 0:
        raise ValueError(f"{name} must be more than 0 seconds")
    return seconds


def _seconds_or_none(name: str, value: object) -> float | None:
    return None if value is None else _seconds(name, value)


def _backoff(value: object) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError("backoff must be a pair of seconds: the first and the longest wait")
    first = _seconds("the first wait of backoff", value[0])
    longest = _seconds("the longest wait of backoff", value[1])
    if longest < first:
        raise ValueError(f"the longest wait of backoff must be at least {first}, not {longest}")
    return first, longest
