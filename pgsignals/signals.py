"""Channels as blinker signals, and who handles them.  The only module that imports blinker.

blinker's own signals have no order, are not safe to change while others send, and stop at the
first exception (blinker 1.9, ``Signal.send``).  :class:`OrderedSignal` fixes the first two; the
reactor takes care of the third by calling receivers one by one.  ``send()`` called by a user
behaves as in blinker.

There is no lock here.  A garbage collection takes weak receivers away in any thread and at any
point, and runs finalizers that may register, remove and stop: if we held a lock, they would
deadlock on it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import threading
import weakref
from _weakref import _remove_dead_weakref  # type: ignore[attr-defined]
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import blinker
from blinker._utilities import make_id, make_ref

from pgsignals._dispatch.handlers import (
    REACTOR_SIGNALS,
    check_signature,
    describe,
    typed,
    typed_on,
)
from pgsignals._pure.decode import decoder
from pgsignals._pure.names import check_handled
from pgsignals._runtime.log import Log
from pgsignals.database import Database

logger = Log("pgsignals.reactor")

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

_ANY_ID = 0  # blinker's key for receivers of any sender


class _Changes:
    """Counts every change to any signal, so that resolved receivers know when they are stale."""

    def __init__(self) -> None:
        self._counter = itertools.count(1)
        self.count = 0

    def note(self) -> None:
        self.count = next(self._counter)


changes = _Changes()


class _Version(Generic[T]):
    following: _Version[T] | None = None

    def __init__(self, value: T) -> None:
        self.value = value


class Shared(Generic[T]):
    """A value that is never changed but replaced, by any thread, also in the middle of another's
    replacing it, without a lock."""

    def __init__(self, value: T) -> None:
        self._version = _Version(value)

    @property
    def value(self) -> T:
        """What it is now."""
        return self._newest().value

    def replace(self, compute: Callable[[T], T]) -> None:
        """Put what *compute* makes of the value in its place.

        It is called again if another replacement got in first.
        """
        while True:
            newest = self._newest()
            wanted = _Version(compute(newest.value))
            # A single atomic step: of several threads, one succeeds.
            if newest.__dict__.setdefault("following", wanted) is wanted:
                self._newest()  # so that the one before is forgotten
                return

    def _newest(self) -> _Version[T]:
        version = newest = self._version
        while newest.following is not None:
            newest = newest.following
        if newest is not version:
            self._version = newest
        return newest


class Options(NamedTuple):
    """How a receiver wants its notifications."""

    decode: Callable[[str], Any] | None = None
    batch: bool = False


class _Connection(NamedTuple):
    """A receiver that is connected."""

    reference: Any
    """Itself, or a weak reference to it."""

    options: Options
    senders: frozenset[Hashable]
    """The ids of those that it hears.  Empty after it has left the last one: blinker keeps it."""

    registered: bool
    """By ``on_channel`` or ``on``, which look at what they are given."""

    def hears(self, sender_id: Hashable) -> bool:
        return _ANY_ID in self.senders or sender_id in self.senders

    @property
    def receiver(self) -> Callable[..., Any] | None:
        """None when it has been collected."""
        reference = self.reference
        receiver: Callable[..., Any] | None
        receiver = reference() if isinstance(reference, weakref.ref) else reference
        return receiver


class State(NamedTuple):
    """Who is connected to a signal.  Nothing in it is ever changed."""

    connections: Mapping[Hashable, _Connection] = {}
    """By the receivers' ids, in order."""

    senders: Mapping[Hashable, weakref.ref[Any] | None] = {}
    """Those that were ever named and are alive, by their ids; None where weak references are
    not possible."""

    forgotten: Mapping[Hashable, None] = {}
    """The ids of senders heard by a receiver that has been collected."""

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


class OrderedSignal(blinker.Signal):
    """A blinker signal whose receivers run in the order in which they were connected, and which
    threads may change while others send."""

    def __init__(self, doc: str | None = None) -> None:
        self._muted = False
        self._state = Shared(State())
        super().__init__(doc)

    # -- what blinker has ------------------------------------------------------------------------

    @property
    def receivers(self) -> dict[Any, Any]:
        """Each receiver, or a weak reference to it, by an id."""
        return {key: one.reference for key, one in self._state.value.connections.items()}

    @receivers.setter
    def receivers(self, _: object) -> None:
        """blinker's constructor sets it."""

    @property
    def receiver_connected(self) -> blinker.Signal:
        """As blinker's: sent when a receiver has been connected."""
        return self._subscription("receiver_connected")

    @property
    def receiver_disconnected(self) -> blinker.Signal:
        """As blinker's: sent when ``disconnect`` has been called."""
        return self._subscription("receiver_disconnected")

    def _subscription(self, name: str) -> blinker.Signal:
        found: blinker.Signal = self.__dict__.setdefault(name, _Subscription(self))
        return found

    def _subscribed(self, name: str) -> blinker.Signal | None:
        found: blinker.Signal | None = self.__dict__.get(name)
        return found if found is not None and found.receivers else None

    @property
    def is_muted(self) -> bool:
        """True inside ``muted()``."""
        return self._muted

    @is_muted.setter
    def is_muted(self, muted: bool) -> None:
        if muted != self._muted:
            self._muted = muted
            self._changed()

    def connect(self, receiver: F, sender: Any = blinker.ANY, weak: bool = True) -> F:
        """As blinker's: call *receiver* when the signal is sent by *sender*.

        :param weak: forget the receiver once nothing else references it.
        """
        return self.connect_with(receiver, sender, weak, Options())

    def connect_with(
        self, receiver: F, sender: Any, weak: bool, options: Options, *, registered: bool = False
    ) -> F:
        """:meth:`connect` with *options*, which replace those of an earlier one."""
        receiver_id, sender_id = make_id(receiver), _id_of(sender)
        reference: Any = receiver
        if weak:
            reference = make_ref(receiver, self._when_collected(receiver_id))
        named = self._named(sender, sender_id)

        def connected(state: State) -> State:
            connections = dict(state.connections)
            heard: frozenset[Hashable] = frozenset()
            if (known := connections.get(receiver_id)) is not None:
                heard = known.senders
                if not heard:
                    del connections[receiver_id]  # it comes last, as a new one
            heard |= {sender_id}
            connections[receiver_id] = _Connection(reference, options, heard, registered)
            return State(connections, {**named, **state.senders}, state.forgotten)

        self._replace(connected)
        if (subscription := self._subscribed("receiver_connected")) is not None:
            try:
                subscription.send(self, receiver=receiver, sender=sender, weak=weak)
            except TypeError:  # as blinker does
                self.disconnect(receiver, sender)
                raise
        return receiver

    def disconnect(self, receiver: Callable[..., Any], sender: Any = blinker.ANY) -> None:
        """As blinker's: do not call *receiver* any more, or not for *sender*."""
        receiver_id, sender_id = make_id(receiver), _id_of(sender)
        named = self._named(sender, sender_id)

        def disconnected(state: State) -> State:
            if sender_id == _ANY_ID:
                return state.without(receiver_id)
            connections = dict(state.connections)
            if (known := connections.get(receiver_id)) is not None:
                connections[receiver_id] = known._replace(senders=known.senders - {sender_id})
            return State(connections, {**named, **state.senders}, state.forgotten)

        self._replace(disconnected)
        if (subscription := self._subscribed("receiver_disconnected")) is not None:
            subscription.send(self, receiver=receiver, sender=sender)

    def has_receivers_for(self, sender: Any) -> bool:
        """As blinker's, a quick check that may be wrong for a sender that was named before."""
        state = self._state.value
        if any(_ANY_ID in one.senders for one in state.connections.values()):
            return True
        return bool(state.connections) and _id_of(sender) in state.senders

    def receivers_for(self, sender: Any) -> Generator[Callable[..., Any], None, None]:
        """As blinker's, in the order of connection."""
        sender_id = make_id(sender)
        for receiver_id, connection in self._state.value.connections.items():
            if not connection.hears(sender_id):
                continue
            # One that was disconnected meanwhile is not called any more.
            now = self._state.value.connections.get(receiver_id)
            if now is not None and (receiver := now.receiver) is not None:
                yield receiver

    def _clear_state(self) -> None:
        self._replace(lambda _: State())

    # -- changes ---------------------------------------------------------------------------------

    def _replace(self, compute: Callable[[State], State]) -> None:
        self._state.replace(compute)
        self._changed()

    def _changed(self) -> None:
        changes.note()

    # Weak references call these, in any thread and at any point.

    def _when_collected(self, receiver_id: Hashable) -> Callable[[Any], None]:
        ours = weakref.ref(self)

        def forget(reference: Any) -> None:
            def forgotten(state: State) -> State:
                known = state.connections.get(receiver_id)
                if known is None or known.reference is not reference:
                    return state
                heard = {**state.forgotten, **dict.fromkeys(known.senders)}
                return state.without(receiver_id)._replace(forgotten=heard)

            if (signal := ours()) is not None and not sys.is_finalizing():
                signal._replace(forgotten)

        return forget

    def _named(self, sender: Any, sender_id: Hashable) -> dict[Hashable, weakref.ref[Any] | None]:
        """What :attr:`State.senders` has to have for *sender*."""
        ours = weakref.ref(self)

        def forget(reference: Any) -> None:
            def forgotten(state: State) -> State:
                if state.senders.get(sender_id) is not reference:
                    return state
                return state.without_sender(sender_id)

            if (signal := ours()) is not None and not sys.is_finalizing():
                signal._replace(forgotten)

        if sender is blinker.ANY:
            return {}
        try:
            return {sender_id: make_ref(sender, forget)}
        except TypeError:
            return {sender_id: None}

    def state(self) -> State:
        """Who is connected, for :meth:`restore`."""
        return self._state.value

    def restore(self, state: State) -> None:
        """Connect exactly those of *state*, except what has been collected since."""
        self._state.replace(lambda _: state)
        # From now on collections are noticed; this finds what was collected before.
        self._replace(State.without_collected)

    # -- what is called --------------------------------------------------------------------------

    def wanted_by(self, sender: Any) -> bool:
        """Whether a ``send`` by *sender* would find a receiver, were the signal not muted."""
        return self.wanted_by_id(make_id(sender))

    def wanted_by_id(self, sender_id: Hashable) -> bool:
        """As :meth:`wanted_by`, for callers that ask thousands of signals."""
        for one in self._state.value.connections.values():
            if _ANY_ID in one.senders or sender_id in one.senders:
                return True
        return False

    def has_forgotten(self, sender: Any) -> bool:
        """Whether *sender* has no receiver now, but had a weak one that has been collected."""
        forgotten = self._state.value.forgotten
        heard = _ANY_ID in forgotten or make_id(sender) in forgotten
        return heard and not self.wanted_by(sender)

    def calls_for(self, sender: Any) -> list[Call]:
        """What a send by *sender* calls now, resolved once and good until the next change."""
        if self._muted:
            return []
        sender_id = make_id(sender)
        return [
            Call(self, receiver_id, one.reference, *one.options)
            for receiver_id, one in self._state.value.connections.items()
            if one.hears(sender_id)
        ]

    def calls(self, receiver_id: Hashable, sender: Any) -> bool:
        """Whether a receiver is still connected for *sender*."""
        connection = self._state.value.connections.get(receiver_id)
        return connection is not None and connection.hears(make_id(sender))

    def handlers_for(self, sender: Any) -> list[tuple[Callable[..., Any], bool]]:
        """Those that hear *sender*, and whether they were registered as handlers."""
        sender_id = make_id(sender)
        return [
            (receiver, one.registered)
            for one in self._state.value.connections.values()
            if one.hears(sender_id) and (receiver := one.receiver) is not None
        ]

    def bound(self) -> list[tuple[Callable[..., Any], object]]:
        """The receivers that hear some senders only, with each of these."""
        state = self._state.value
        return [
            (receiver, sender)
            for one in state.connections.values()
            for sender_id in one.senders
            if (reference := state.senders.get(sender_id)) is not None
            and (sender := reference()) is not None
            and (receiver := one.receiver) is not None
        ]


def _id_of(sender: Any) -> Hashable:
    return _ANY_ID if sender is blinker.ANY else make_id(sender)


class _Subscription(OrderedSignal):
    """Notifies those waiting for another signal to be connected, and keeps that signal alive."""

    def __init__(self, signal: OrderedSignal) -> None:
        self._signal = signal
        super().__init__()

    def _changed(self) -> None:
        super()._changed()
        self._signal._changed()


class ReactorSignal(OrderedSignal):
    """One of a reactor's own signals, or of the module level, which every reactor sends first."""

    def __init__(self, name: str, everywhere: OrderedSignal | None) -> None:
        self.name = name
        self._everywhere = everywhere
        sender, keywords = REACTOR_SIGNALS[name]
        super().__init__(f"{name}({', '.join((sender, *(('*', *keywords) if keywords else ())))})")

    def calls_for(self, sender: Any) -> list[Call]:
        """See :meth:`OrderedSignal.calls_for`."""
        before = [] if self._everywhere is None else self._everywhere.calls_for(sender)
        return before + super().calls_for(sender)


class Call:
    """One receiver, resolved."""

    __slots__ = ("_around", "_receiver", "batch", "decode", "receiver_id", "signal", "strong")

    def __init__(
        self,
        signal: OrderedSignal,
        receiver_id: Hashable,
        receiver: Any,
        decode: Callable[[str], Any] | None,
        batch: bool,
    ) -> None:
        self.signal = signal
        self.receiver_id = receiver_id
        self.decode = decode
        self.batch = batch
        self._receiver = receiver
        self._around: Callable[..., Any] | None = None
        self.strong: Callable[..., Any] | None = None
        if not isinstance(receiver, weakref.ref):
            self.strong = receiver

    def handler(self) -> Callable[..., Any] | None:
        """The receiver, or None when it has been collected."""
        if self.strong is not None:
            return self.strong
        weak = isinstance(self._receiver, weakref.ref)
        receiver: Callable[..., Any] | None = self._receiver() if weak else self._receiver
        return receiver

    def wrap(self, around: Callable[..., Any]) -> None:
        """Have *around* called in place of the receiver: see :meth:`Reactor.wrap_handlers`."""
        self._around = around
        self.strong = None  # that is called as it is

    def wrapped(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """What to call for *handler*."""
        return handler if self._around is None else functools.partial(self._around, handler)

    def still_calls(self, sender: Any) -> bool:
        """Whether it would be made again for *sender*, after a change."""
        return self.signal.calls(self.receiver_id, sender)


class ChannelSignal(OrderedSignal):
    """The signal of one channel.

    Receivers are called as ``receiver(database, *, notification)``.  The first one that is
    connected makes every reactor that serves it LISTEN, the last one that leaves makes it
    UNLISTEN.
    """

    def __init__(self, name: str, namespace: Channels) -> None:
        self.name = name
        self._namespace = weakref.ref(namespace)
        super().__init__(f"Notifications on channel {name!r}.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    def connect_with(
        self, receiver: F, sender: Any, weak: bool, options: Options, *, registered: bool = False
    ) -> F:
        """See :meth:`OrderedSignal.connect_with`."""
        first = not self.wanted_by(sender)
        super().connect_with(receiver, sender, weak, options, registered=registered)
        if first and (namespace := self._namespace()) is not None:
            namespace.acknowledge()
        return receiver

    def in_use(self) -> bool:
        """Whether it must be kept even when nothing else references it."""
        return (
            self._muted
            or any(one.senders for one in self._state.value.connections.values())
            or self._subscribed("receiver_connected") is not None
            or self._subscribed("receiver_disconnected") is not None
        )

    def _changed(self) -> None:
        changes.note()
        if (namespace := self._namespace()) is not None:
            namespace.keep(self)
            namespace.changed(self.name)


class Watcher(Protocol):
    """Listens to every channel that has handlers: a reactor."""

    @property
    def served(self) -> Collection[Database]:
        """Its databases while it runs, and none else."""

    def check_handler(self, handler: Callable[..., Any], sender: Database | None) -> None:
        """Called before a handler is registered; raises if it could not be called."""

    def handlers_changed(self, name: str) -> None:
        """Called in any thread, at any point; must neither block nor lock."""

    def acknowledge_handlers(self) -> None:
        """Wait until the channels that have handlers now are listened to."""


class Channels:
    """A namespace of signals: the module's own, or a reactor's.

    :param everywhere: that of the module, for a reactor's.
    """

    def __init__(self, everywhere: Channels | None = None) -> None:
        self.around: Callable[..., Any] | None = None  # of the reactor whose own they are
        shared = {} if everywhere is None else everywhere.of_reactor
        self.of_reactor: dict[str, ReactorSignal] = {
            name: ReactorSignal(name, shared.get(name)) for name in REACTOR_SIGNALS
        }
        # A channel is forgotten once nothing references its signal; one in use is kept.
        self._signals: dict[str, weakref.ref[ChannelSignal]] = {}
        self._kept: dict[str, ChannelSignal] = {}
        self._watchers: Shared[tuple[weakref.ref[Watcher], ...]] = Shared(())
        self._held = threading.local()  # acknowledgements that on_channel asks for at its end

    def channel(self, name: str) -> ChannelSignal:
        """The signal of channel *name*, the same object as long as anything references it.

        :raises ChannelNameError: before anything is registered.
        """
        name = check_handled(name)
        signals = self._signals
        while True:
            if (reference := signals.get(name)) is None:
                made = ChannelSignal(name, self)
                mine = weakref.ref(made, lambda _: _remove_dead_weakref(signals, name))
                reference = signals.setdefault(name, mine)
            if (signal := reference()) is not None:
                return signal
            _remove_dead_weakref(signals, name)  # collected, but its callback has not run yet

    def keep(self, signal: ChannelSignal) -> None:
        """Remember *signal* while it is in use."""
        kept, name = self._kept, signal.name
        while True:
            if signal.in_use():
                kept[name] = signal
            else:
                kept.pop(name, None)
            if signal.in_use() == (name in kept):  # else it was changed meanwhile
                return

    def _known(self) -> list[ChannelSignal]:
        """The signals of channels."""
        references = list(self._signals.values())
        return [signal for ref in references if (signal := ref()) is not None]

    def on_channel(
        self,
        *names: str,
        sender: Any = None,
        decode: Any = None,
        batch: bool = False,
        weak: bool = False,
    ) -> Callable[[F], F]:
        """See :func:`pgsignals.on_channel`."""
        if not names or callable(names[0]):
            raise TypeError("on_channel needs the names of channels, such as @on_channel('orders')")
        if not (sender is None or sender is blinker.ANY or isinstance(sender, Database)):
            raise TypeError(f"sender must be a Database or None, not {type(sender).__name__}")
        signals = [self.channel(name) for name in names]
        options = Options(None if decode is None else decoder(decode), bool(batch))
        keywords = ["notifications", "values"] if batch else ["notification", "value"]
        if decode is None:
            del keywords[1]

        def connect(handler: F) -> F:
            check_signature(handler, tuple(keywords))
            database = sender if isinstance(sender, Database) else None
            self._check_handler(handler, database)
            with self._one_acknowledgement():
                for signal in signals:
                    source = blinker.ANY if database is None else database
                    signal.connect_with(handler, source, weak, options, registered=True)
            if database is not None and (served := self._served()):
                _warn_if_foreign(handler, database, served)
            return handler

        return connect

    def on(self, *names: str) -> Callable[[F], F]:
        """See :func:`pgsignals.on`."""
        known = ", ".join(REACTOR_SIGNALS)
        if not names or callable(names[0]):
            raise TypeError(f"on needs the names of signals, such as @on('gap'); there are {known}")
        for name in names:
            if name not in REACTOR_SIGNALS:
                raise ValueError(f"a reactor has no signal {name!r}; there are {known}")

        def connect(handler: F) -> F:
            for name in names:
                sender, keywords = REACTOR_SIGNALS[name]
                check_signature(handler, keywords, sender)
            self._check_handler(handler, None)
            for name in names:
                signal = self.of_reactor[name]
                signal.connect_with(handler, blinker.ANY, False, Options(), registered=True)
            return handler

        return connect

    def wrap(self, around: Callable[..., Any] | None) -> None:
        """See :meth:`Reactor.wrap_handlers`."""
        self.around = around
        changes.note()

    def wanted_by(self, sender: Any) -> set[str]:
        """The channels that have a handler for *sender*."""
        sender_id = make_id(sender)
        return {signal.name for signal in self._known() if signal.wanted_by_id(sender_id)}

    def calls_for(self, name: str, sender: Any) -> list[Call]:
        """See :meth:`OrderedSignal.calls_for`."""
        reference = self._signals.get(name)
        signal = None if reference is None else reference()
        return [] if signal is None else signal.calls_for(sender)

    def handlers_for(
        self, senders: Collection[Any]
    ) -> dict[str, list[tuple[Callable[..., Any], bool]]]:
        """As :meth:`OrderedSignal.handlers_for`, by the name of the channel or of the reactor's
        signal."""
        found: dict[str, list[tuple[Callable[..., Any], bool]]] = {}
        signals: list[ChannelSignal | ReactorSignal] = [*self._known(), *self.of_reactor.values()]
        for signal in signals:
            if handlers := [one for sender in senders for one in signal.handlers_for(sender)]:
                found.setdefault(signal.name, []).extend(handlers)
        return found

    # -- reactors --------------------------------------------------------------------------------

    def watch(self, watcher: Watcher) -> None:
        """Notify *watcher*, held weakly, of each channel whose handlers change."""
        reference = weakref.ref(watcher)
        self._watchers.replace(
            lambda before: (*(ref for ref in before if ref() is not None), reference)
        )

    def _alive(self) -> list[Watcher]:
        references = self._watchers.value
        return [watcher for ref in references if (watcher := ref()) is not None]

    def changed(self, name: str) -> None:
        """The handlers of channel *name* have changed."""
        for watcher in self._alive():
            watcher.handlers_changed(name)

    def _check_handler(self, handler: Callable[..., Any], sender: Database | None) -> None:
        for watcher in self._alive():
            watcher.check_handler(handler, sender)

    def _served(self) -> set[Database]:
        return {database for watcher in self._alive() for database in watcher.served}

    def warn_of_foreign(self, databases: Collection[Database]) -> None:
        """Warn of handlers whose sender is neither one of *databases* nor served otherwise."""
        served = {*databases, *self._served()}
        for signal in self._known():
            for handler, sender in signal.bound():
                if isinstance(sender, Database):
                    _warn_if_foreign(handler, sender, served)

    def acknowledge(self) -> None:
        """Wait until the channels that have handlers now are listened to."""
        if not getattr(self._held, "depth", 0):
            for watcher in self._alive():
                watcher.acknowledge_handlers()

    @contextlib.contextmanager
    def _one_acknowledgement(self) -> Iterator[None]:
        """One wait for all of the block's channels, instead of one for each."""
        self._held.depth = getattr(self._held, "depth", 0) + 1
        try:
            yield
        finally:
            self._held.depth -= 1
        self.acknowledge()

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """After the block every signal has the receivers that it had before."""
        before = {signal: signal.state() for signal in self._known()}
        of_reactor = {signal: signal.state() for signal in self.of_reactor.values()}
        try:
            yield
        finally:
            for signal in {*before, *self._known()}:
                signal.restore(before.get(signal, State()))
            for one, state in of_reactor.items():
                one.restore(state)

    def reset_after_fork(self) -> None:
        """In a forked child no reactor of the parent listens."""
        self._watchers = Shared(())


def _warn_if_foreign(
    handler: Callable[..., Any], sender: Database, served: Collection[Database]
) -> None:
    if sender not in served:
        logger.warning(
            "handler %s is never called: no running reactor has its sender, %s",
            describe(handler),
            repr(sender),  # a log may keep what it is given
        )


default = Channels()
"""The signals of the module level, which every reactor serves."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=default.reset_after_fork)


def channel(name: str) -> ChannelSignal:
    """The blinker signal of channel *name* that every reactor serves.

    Its receivers are called as ``receiver(database, *, notification)`` on a worker of each
    reactor that receives a notification.  It is the same object as long as anything references it
    or it has receivers.

    :raises ChannelNameError: a name that PostgreSQL would not take unchanged, or the channel of
        the probes.
    """
    return default.channel(name)


@typed
def on_channel(
    *names: str,
    sender: Any = None,
    decode: Any = None,
    batch: bool = False,
    weak: bool = False,
) -> Callable[[F], F]:
    """Register the decorated function for channels *names*, with every reactor.

    It is called as ``handler(database, *, notification)`` on a worker of the reactor, and is
    returned unchanged.  Registering it again for the same channel replaces its options.

    Nothing is opened.  A running reactor LISTENs within milliseconds, and this call waits for it;
    any other LISTENs when it starts.

    A coroutine function is allowed only where no :class:`Reactor`, which runs handlers on threads,
    would call it.  On a thread with a running event loop this does not wait.

    :param sender: a :class:`Database`; only its notifications count.  None for all.
    :param decode: turns the payload into the keyword ``value``: a callable such as ``json.loads``;
        a dataclass, whose fields are taken from a JSON object and checked; or a pydantic model or
        pydantic ``TypeAdapter``.  A payload it refuses goes to ``handler_failed``, not to the
        handler.
    :param batch: hand over everything waiting at once: ``handler(database, *, notifications)``, a
        non-empty list of one channel; with *decode* also ``values``.  With one worker it ends
        where a notification of another channel follows, as one worker keeps the order over all
        channels.  A handler that gets through hundreds in an instant is given a flood in pieces
        of hundreds.
    :param weak: forget the handler once nothing else references it.
    :raises ChannelNameError: a name that PostgreSQL would not take unchanged, or the channel of
        the probes.
    :raises TypeError: no names; a handler that cannot be called in this way, or is a coroutine
        function while a :class:`Reactor` runs; a *decode* that cannot work; a *sender* that is no
        Database.
    """
    return default.on_channel(*names, sender=sender, decode=decode, batch=batch, weak=weak)


@typed_on
def on(*names: str) -> Callable[[F], F]:
    """Register the decorated function for the signals *names* of every reactor.

    ``@on("gap")``: it is called as a receiver of :attr:`Reactor.gap` is, at the same place in the
    order, before those of the reactor itself; and is returned unchanged.  It is held strongly.

    :param names: ``"connected"``, ``"lost"``, ``"gap"``, ``"idle"``, ``"handler_failed"``,
        ``"stopped"``, ``"any_channel"``.
    :raises TypeError: no names; or what cannot be called as the receivers of these signals are, or
        is a coroutine function while a :class:`Reactor` runs.
    :raises ValueError: an unknown name.
    """
    return default.on(*names)
