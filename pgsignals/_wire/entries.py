"""What a ``NotificationManager`` watches, as its poller sees it: databases and users' objects."""

from __future__ import annotations

import weakref
from typing import Any

from pgsignals._pure.values import Notification
from pgsignals._wire.custody import Custody
from pgsignals._wire.poller import Line, Poller


class Entry:
    """A member, as the poller sees it: anything with ``fileno()``, ``closed`` and ``drain()``.

    It is its own session, which is what the member says of itself.
    """

    __slots__ = ("__weakref__", "member")

    silent = True

    def __init__(self, member: Any) -> None:
        self.member = member

    def __repr__(self) -> str:
        return repr(self.member)

    @property
    def session(self) -> Line | None:
        return self

    @property
    def more(self) -> bool:
        return False

    @property
    def contended(self) -> bool:
        return False

    @property
    def shared(self) -> bool:
        return False

    @property
    def ended(self) -> bool:
        return bool(self.member.closed)

    @property
    def closed(self) -> bool:
        return bool(self.member.closed)

    def fileno(self) -> int:
        number: int = self.member.fileno()
        return number

    def drain(self) -> list[Notification]:
        drained = self.member.drain()
        return drained if type(drained) is list else list(drained)

    def leave(self) -> None:
        """It is not watched any more."""


class DatabaseEntry(Entry):
    """A :class:`Database`, and what only it reports."""

    __slots__ = ("_custody", "_poller")

    silent = False

    def __init__(
        self, member: Any, custody: Custody, poller: Poller[Entry, list[Notification]]
    ) -> None:
        super().__init__(member)
        self._custody = custody
        self._poller = weakref.ref(poller)  # no cycle: files are given back at once
        custody.add_watcher(self)

    @property
    def session(self) -> Line | None:
        return self._custody.session

    def drain(self) -> list[Notification]:
        return self._custody.drain()

    def touched(self, _: object) -> None:
        """See :class:`.custody.Watcher`."""
        if (poller := self._poller()) is not None:
            poller.touched(self)

    def leave(self) -> None:
        self._custody.remove_watcher(self)


class _SubclassEntry(DatabaseEntry):
    """One of a subclass, which may override what its base says of itself."""

    __slots__ = ()

    @property
    def session(self) -> Line | None:
        return self

    def drain(self) -> list[Notification]:
        return Entry.drain(self)

    def _session_is(self, what: str) -> bool:
        return bool(getattr(self._custody.session, what, False))

    @property
    def more(self) -> bool:
        return self._session_is("more") and not self._session_is("ended")

    @property
    def contended(self) -> bool:
        return self._session_is("contended")

    @property
    def shared(self) -> bool:
        return self._session_is("shared")


def entry_of(member: Any, poller: Poller[Entry, list[Notification]]) -> Entry:
    """The entry of *member*, from which *poller* also hears what no socket shows."""
    custody = getattr(member, "_custody", None)
    if not isinstance(custody, Custody):
        return Entry(member)
    exact = "_custody" in vars(type(member))  # the slot of Database, which subclasses inherit
    return (DatabaseEntry if exact else _SubclassEntry)(member, custody, poller)
