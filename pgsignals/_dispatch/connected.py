"""Who is connected to a signal: a value that is replaced, and never changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

#: blinker's key for receivers of any sender.
ANY_ID = 0


class Options(NamedTuple):
    """How a receiver wants its notifications."""

    decode: Callable[[str], Any] | None = None
    batch: bool = False


class Connection(NamedTuple):
    """A receiver that is connected."""

    reference: Any
    """Itself, or a weak reference to it."""

    options: Options
    senders: frozenset[Hashable]
    """The ids of those that it hears.  Empty after it has left the last one: blinker keeps it."""

    registered: bool
    """By ``on_channel`` or ``on``, which look at what they are given."""

    def hears(self, sender_id: Hashable) -> bool:
        return ANY_ID in self.senders or sender_id in self.senders

    @property
    def receiver(self) -> Callable[..., Any] | None:
        """None when it has been collected."""
        reference = self.reference
        receiver: Callable[..., Any] | None
        receiver = reference() if isinstance(reference, weakref.ref) else reference
        return receiver


class State(NamedTuple):
    """Who is connected to a signal.  Nothing in it is ever changed."""

    connections: Mapping[Hashable, Connection] = {}
    """By the receivers' ids, in order."""

    senders: Mapping[Hashable, weakref.ref[Any] | None] = {}
    """Those that were ever named and are alive, by their ids; None where weak references are
    not possible."""

    forgotten: Mapping[Hashable, None] = {}
    """The ids of senders heard by a receiver that has been collected."""

    def wanted_by(self, sender_id: Hashable) -> bool:
        """Whether a ``send`` by this sender would find a receiver, were the signal not muted."""
        for one in self.connections.values():  # no generator: a reconcile asks thousands of signals
            if ANY_ID in one.senders or sender_id in one.senders:
                return True
        return False

    def has_forgotten(self, sender_id: Hashable) -> bool:
        """Whether this sender has no receiver now, but had a weak one that has been collected."""
        heard = ANY_ID in self.forgotten or sender_id in self.forgotten
        return heard and not self.wanted_by(sender_id)

    def calls(self, receiver_id: Hashable, sender_id: Hashable) -> bool:
        """Whether this receiver is connected for this sender."""
        connection = self.connections.get(receiver_id)
        return connection is not None and connection.hears(sender_id)

    def handlers_for(self, sender_id: Hashable) -> list[tuple[Callable[..., Any], bool]]:
        """Those that hear this sender, and whether they were registered as handlers."""
        return [
            (receiver, one.registered)
            for one in self.connections.values()
            if one.hears(sender_id) and (receiver := one.receiver) is not None
        ]

    def bound(self) -> list[tuple[Callable[..., Any], object]]:
        """The receivers that hear some senders only, with each of these."""
        return [
            (receiver, sender)
            for one in self.connections.values()
            for sender_id in one.senders
            if (reference := self.senders.get(sender_id)) is not None
            and (sender := reference()) is not None
            and (receiver := one.receiver) is not None
        ]

    def without(self, receiver_id: Hashable) -> State:
        connections = dict(self.connections)  # much faster than to choose, where there are many
        connections.pop(receiver_id, None)
        return self._replace(connections=connections)

    def without_collected(self) -> State:
        state = self
        for receiver_id, connection in self.connections.items():
            if connection.receiver is None:
                state = state.without(receiver_id)
        for sender_id, reference in self.senders.items():
            if reference is not None and reference() is None:
                state = state.without_sender(sender_id)
        return state

    def without_sender(self, sender_id: Hashable) -> State:
        return State(
            {
                key: one._replace(senders=one.senders - {sender_id})
                for key, one in self.connections.items()
            },
            {key: ref for key, ref in self.senders.items() if key != sender_id},
            {key: None for key in self.forgotten if key != sender_id},
        )
