"""blinker's signals, made to be called in order and changed from any thread.

The only module that imports blinker; tests/test_blinker_parity.py names what it needs of blinker's
internals.  blinker's own signals have no order, are not safe to change while others send, and stop
at the first exception (blinker 1.9, ``Signal.send``).  :class:`OrderedSignal` fixes the first two;
the workers take care of the third by making the calls one by one.  ``send()`` called by a user
behaves as in blinker.  All that we need beyond blinker's methods is a function of this module, so
that a signal has no other public names than blinker's.

There is no lock here.  A garbage collection takes weak receivers away in any thread and at any
point, and runs finalizers that may register, remove and stop: if we held a lock, they would
deadlock on it.
"""

from __future__ import annotations

import functools
import itertools
import sys
import weakref
from collections.abc import Callable, Generator, Hashable
from typing import Any, TypeVar

import blinker
from blinker._utilities import make_id, make_ref

from pgsignals._dispatch.connected import ANY_ID, Connection, Options, State
from pgsignals._dispatch.handlers import REACTOR_SIGNALS
from pgsignals._runtime.reentry import calls_out
from pgsignals._runtime.shared import Shared

ANY = blinker.ANY

#: What a sender is known by.
id_of = make_id

F = TypeVar("F", bound=Callable[..., Any])


class _Changes:
    """Counts every change to any signal, so that resolved receivers know when they are stale."""

    def __init__(self) -> None:
        self._counter = itertools.count(1)
        self.count = 0

    def note(self) -> None:
        self.count = next(self._counter)


changes = _Changes()


class OrderedSignal(blinker.Signal):
    """A blinker signal whose receivers run in the order in which they were connected, and which
    threads may change while others send."""

    #: A signal whose receivers are called first.
    _before: OrderedSignal | None = None

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
        connect(self, receiver, sender, weak=weak)
        return receiver

    def disconnect(self, receiver: Callable[..., Any], sender: Any = blinker.ANY) -> None:
        """As blinker's: do not call *receiver* any more, or not for *sender*."""
        receiver_id, sender_id = make_id(receiver), _id_of(sender)
        named = self._named(sender, sender_id)

        def disconnected(state: State) -> State:
            if sender_id == ANY_ID:
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
        if any(ANY_ID in one.senders for one in state.connections.values()):
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

    def _has_first(self) -> None:
        """The first receiver of some sender has been connected."""

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


# -- what the reactor needs of a signal, beyond what blinker has ----------------------------------


def state_of(signal: OrderedSignal) -> State:
    """Who is connected to *signal* now."""
    return signal._state.value


def restore(signal: OrderedSignal, state: State) -> None:
    """Connect exactly those of *state*, except what has been collected since."""
    signal._state.replace(lambda _: state)
    # From now on collections are noticed; this finds what was collected before.
    signal._replace(State.without_collected)


def connect(
    signal: OrderedSignal,
    receiver: Callable[..., Any],
    sender: Any = ANY,
    *,
    weak: bool,
    options: Options = Options(),  # noqa: B008 - it cannot be changed
    registered: bool = False,
) -> None:
    """:meth:`OrderedSignal.connect` with *options*, which replace those of an earlier one."""
    receiver_id, sender_id = make_id(receiver), _id_of(sender)
    reference: Any = receiver
    if weak:
        reference = make_ref(receiver, signal._when_collected(receiver_id))
    named = signal._named(sender, sender_id)

    def connected(state: State) -> State:
        connections = dict(state.connections)
        heard: frozenset[Hashable] = frozenset()
        if (known := connections.get(receiver_id)) is not None:
            heard = known.senders
            if not heard:
                del connections[receiver_id]  # it comes last, as a new one
        heard |= {sender_id}
        connections[receiver_id] = Connection(reference, options, heard, registered)
        return State(connections, {**named, **state.senders}, state.forgotten)

    is_first = not state_of(signal).wanted_by(_id_of(sender))
    signal._replace(connected)
    if (subscription := signal._subscribed("receiver_connected")) is not None:
        try:
            subscription.send(signal, receiver=receiver, sender=sender, weak=weak)
        except TypeError:  # as blinker does
            signal.disconnect(receiver, sender)
            raise
    if is_first:
        signal._has_first()


def calls_for(signal: OrderedSignal, sender: Any) -> list[Call]:
    """What a send by *sender* calls now, resolved once and valid until the next change."""
    before = signal._before
    calls = [] if before is None else calls_for(before, sender)
    if not signal.is_muted:
        sender_id = make_id(sender)
        calls += [
            Call(signal, receiver_id, one.reference, *one.options)
            for receiver_id, one in state_of(signal).connections.items()
            if one.hears(sender_id)
        ]
    return calls


def _id_of(sender: Any) -> Hashable:
    return ANY_ID if sender is blinker.ANY else make_id(sender)


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
        self._before = everywhere
        sender, keywords = REACTOR_SIGNALS[name]
        super().__init__(f"{name}({', '.join((sender, *(('*', *keywords) if keywords else ())))})")


class _Within:
    """A wrapped handler, under the handler's own name."""

    def __init__(self, around: Callable[..., Any], handler: Callable[..., Any]) -> None:
        self.__module__ = getattr(handler, "__module__", "")
        self.__qualname__ = getattr(handler, "__qualname__", type(handler).__qualname__)
        self._around = around
        self._handler = handler

    @calls_out
    def __call__(self, sender: object, **given: object) -> object:
        return self._around(self._handler, sender, **given)


class Call:
    """One receiver, resolved."""

    __slots__ = ("_arounds", "_receiver", "batch", "decode", "receiver_id", "signal", "strong")

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
        self._arounds: tuple[Callable[..., Any], ...] = ()  # the innermost first
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
        """Call *around* in place of the receiver and of what wraps it already: see
        :meth:`Reactor.wrap_handlers`."""
        self._arounds += (around,)
        self.strong = None  # that is called as it is

    def wrapped(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """What to call for *handler*."""
        if not self._arounds:
            return handler
        *inner, outermost = self._arounds
        for around in inner:
            handler = _Within(around, handler)
        return functools.partial(outermost, handler)

    def still_calls(self, sender: Any) -> bool:
        """Whether *sender* would still call it, after a change."""
        return state_of(self.signal).calls(self.receiver_id, make_id(sender))
