"""Channels as blinker signals, and who handles them.  The only module that imports blinker.

blinker's own signals have no lock, no order, and stop at the first exception (blinker 1.9,
``Signal.send``).  :class:`OrderedSignal` mends the first two; the third is mended by the
reactor, which calls receivers one by one from a :class:`Plan`.  ``send()`` called by a user
behaves as in blinker.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Generator, Hashable, Iterator
from inspect import iscoroutinefunction
from typing import Any, NamedTuple, Protocol, TypeVar

import blinker
from blinker._utilities import make_id, make_ref

from pgsignals._channels import check_channel
from pgsignals._decode import decoder
from pgsignals._fork import ForkLock
from pgsignals._handlers import typed

F = TypeVar("F", bound=Callable[..., Any])

_ANY_ID = 0  # blinker's key for receivers of any sender


class _Changes:
    """Counts every change of every signal, so that resolved receivers know when they are stale.

    Lock-free: a weak receiver may be collected in any thread, at any point.
    """

    def __init__(self) -> None:
        self._counter = itertools.count(1)
        self.count = 0

    def note(self) -> None:
        self.count = next(self._counter)


changes = _Changes()


class Options(NamedTuple):
    """How a receiver wants its notifications."""

    decode: Callable[[str], Any] | None = None
    batch: bool = False


class OrderedSignal(blinker.Signal):
    """A blinker signal whose receivers run in the order in which they were connected, and which
    threads may change while others send."""

    def __init__(self, doc: str | None = None) -> None:
        # Reentrant: a weak receiver may be collected while this thread holds it.
        self._lock = ForkLock()
        self._muted = False
        self._options: dict[Hashable, Options] = {}
        super().__init__(doc)

    @property
    def is_muted(self) -> bool:
        """True inside ``muted()``."""
        return self._muted

    @is_muted.setter
    def is_muted(self, muted: bool) -> None:
        self._muted = muted
        changes.note()

    def connect(self, receiver: F, sender: Any = blinker.ANY, weak: bool = True) -> F:
        """As blinker's: call *receiver* when the signal is sent by *sender*.

        :param weak: forget the receiver when nobody else refers to it.
        """
        return self.connect_with(receiver, sender, weak, Options())

    def connect_with(self, receiver: F, sender: Any, weak: bool, options: Options) -> F:
        """:meth:`connect` with *options*, which replace those of an earlier one."""
        receiver_id = make_id(receiver)
        sender_id = _ANY_ID if sender is blinker.ANY else make_id(sender)
        reference: Any = receiver
        if weak:
            reference = make_ref(receiver, self._make_cleanup_receiver(receiver_id))
        with self._lock:  # what blinker's connect does, without users' code under the lock
            if not self._by_receiver.get(receiver_id):
                self.receivers.pop(receiver_id, None)  # it comes last, as a new one
            self.receivers[receiver_id] = reference
            self._options[receiver_id] = options
            self._by_sender[sender_id].add(receiver_id)
            self._by_receiver[receiver_id].add(sender_id)
            if sender is not blinker.ANY and sender_id not in self._weak_senders:
                with contextlib.suppress(TypeError):
                    cleanup = self._make_cleanup_sender(sender_id)
                    self._weak_senders[sender_id] = make_ref(sender, cleanup)
        self._changed()
        self._tell_connected(receiver, sender, weak)
        return receiver

    def _tell_connected(self, receiver: Any, sender: Any, weak: bool) -> None:
        if "receiver_connected" not in self.__dict__ or not self.receiver_connected.receivers:
            return
        try:
            self.receiver_connected.send(self, receiver=receiver, sender=sender, weak=weak)
        except TypeError:  # as blinker does
            self.disconnect(receiver, sender)
            raise

    def _make_cleanup_sender(self, sender_id: Hashable) -> Callable[[weakref.ref[Any]], None]:
        cleanup = super()._make_cleanup_sender(sender_id)

        def locked(ref: weakref.ref[Any]) -> None:
            with self._lock:
                cleanup(ref)
            self._changed()

        return locked

    def _disconnect(self, receiver_id: Hashable, sender_id: Hashable) -> None:
        with self._lock:
            super()._disconnect(receiver_id, sender_id)
            if receiver_id not in self.receivers:
                self._options.pop(receiver_id, None)
        self._changed()

    def _changed(self) -> None:
        changes.note()

    def receivers_for(self, sender: Any) -> Generator[Callable[..., Any], None, None]:
        """As blinker's, in the order of connection."""
        for receiver_id in self._ids_for(sender):
            receiver = self.receivers.get(receiver_id)
            if isinstance(receiver, weakref.ref):
                receiver = receiver()
            if receiver is not None:
                yield receiver

    def _ids_for(self, sender: Any) -> list[Hashable]:
        with self._lock:
            wanted = self._by_sender.get(_ANY_ID, set()) | self._by_sender.get(
                make_id(sender), set()
            )
            return [receiver_id for receiver_id in self.receivers if receiver_id in wanted]

    def wanted_by(self, sender: Any) -> bool:
        """Whether a ``send`` by *sender* would find a receiver, were the signal not muted."""
        by_sender = self._by_sender
        return bool(by_sender.get(_ANY_ID) or by_sender.get(make_id(sender)))

    def state(self) -> list[dict[Any, Any]]:
        """Who is connected, for :meth:`restore`."""
        with self._lock:
            plain: list[dict[Any, Any]] = [self.receivers, self._options, self._weak_senders]
            sets: list[dict[Any, set[Any]]] = [self._by_receiver, self._by_sender]
            copies = [dict(mapping) for mapping in plain]
            return copies + [{key: set(ids) for key, ids in mapping.items()} for mapping in sets]

    def restore(self, state: list[dict[Any, Any]]) -> None:
        """Connect those of *state* and nobody else; without what was collected since."""
        with self._lock:
            ours: list[dict[Any, Any]] = [self.receivers, self._options, self._weak_senders]
            ours += [self._by_receiver, self._by_sender]
            for mapping, before in zip(ours, state, strict=True):
                mapping.clear()
                mapping.update(before)
            for receiver_id, receiver in tuple(self.receivers.items()):
                if isinstance(receiver, weakref.ref) and receiver() is None:
                    self._disconnect(receiver_id, _ANY_ID)
            for sender_id, sender in tuple(self._weak_senders.items()):
                if sender() is None:
                    self._make_cleanup_sender(sender_id)(sender)
        self._changed()

    def calls_for(self, sender: Any) -> Iterator[Call]:
        """What a send by *sender* calls now, resolved once and good until the next change."""
        with self._lock:
            if self._muted:
                return
            for receiver_id in self._ids_for(sender):
                receiver, options = self.receivers[receiver_id], self._options[receiver_id]
                yield Call(self, receiver_id, receiver, *options)

    def calls(self, receiver_id: Hashable, sender: Any) -> bool:
        """Whether a receiver is still connected for *sender*."""
        return receiver_id in self.receivers and any(
            receiver_id in self._by_sender.get(key, ()) for key in (_ANY_ID, make_id(sender))
        )


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
        if not isinstance(receiver, weakref.ref) and not iscoroutinefunction(receiver):
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

    def refuse_coroutine(self, handler: Callable[..., Any]) -> None:
        """As blinker's ``send``: a coroutine that nobody awaits would be silence."""
        if self.strong is None and iscoroutinefunction(handler):
            raise RuntimeError(
                "a coroutine function cannot be a handler: handlers run on threads; hand over to "
                "the event loop with asyncio.run_coroutine_threadsafe"
            )

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

    def connect_with(self, receiver: F, sender: Any, weak: bool, options: Options) -> F:
        """See :meth:`OrderedSignal.connect_with`."""
        namespace = self._namespace()
        first = not self.wanted_by(sender)
        super().connect_with(receiver, sender, weak, options)
        if first and namespace is not None:
            namespace.acknowledge()
        return receiver

    def _changed(self) -> None:
        changes.note()
        if (namespace := self._namespace()) is not None:
            namespace.changed(self.name)


class Watcher(Protocol):
    """Who listens to what has handlers: a reactor."""

    def handlers_changed(self, name: str) -> None:
        """Called in whatever thread, at any point; must neither block nor lock."""

    def acknowledge_handlers(self) -> None:
        """Wait until the channels that have handlers now are listened to."""


class Channels:
    """A namespace of channel signals: the module's own, or a reactor's."""

    def __init__(self) -> None:
        self.around: Callable[..., Any] | None = None  # of the reactor whose own they are
        self._signals: dict[str, ChannelSignal] = {}
        self._lock = ForkLock()
        self._watchers: tuple[weakref.ref[Watcher], ...] = ()
        self._held = threading.local()  # acknowledgements that on_channel asks for at its end

    def channel(self, name: str) -> ChannelSignal:
        """The signal of channel *name*, the same one each time.

        :raises ChannelNameError: before anything is registered.
        """
        name = check_channel(name)
        with self._lock:
            if (signal := self._signals.get(name)) is None:
                signal = self._signals[name] = ChannelSignal(name, self)
        return signal

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
            raise TypeError("on_channel wants the names of channels: @on_channel('orders')")
        signals = [self.channel(check_channel(name)) for name in names]
        options = Options(None if decode is None else decoder(decode), bool(batch))

        def connect(handler: F) -> F:
            if not callable(handler):
                raise TypeError(f"a handler is callable, not {type(handler).__name__}")
            if iscoroutinefunction(handler):
                _refuse_coroutine_handler(handler)
            with self._one_acknowledgement():
                for signal in signals:
                    source = blinker.ANY if sender is None else sender
                    signal.connect_with(handler, source, weak, options)
            return handler

        return connect

    def wrap(self, around: Callable[..., Any] | None) -> None:
        """See :meth:`Reactor.wrap_handlers`."""
        self.around = around
        changes.note()

    def wanted_by(self, sender: Any) -> set[str]:
        """The channels that have a handler for *sender*."""
        return {name for name in list(self._signals) if self._signals[name].wanted_by(sender)}

    def calls_for(self, name: str, sender: Any) -> Iterator[Call]:
        """See :meth:`OrderedSignal.calls_for`."""
        signal = self._signals.get(name)
        return iter(()) if signal is None else signal.calls_for(sender)

    def watch(self, watcher: Watcher) -> None:
        """Tell *watcher*, held weakly, of each channel whose handlers change."""
        with self._lock:
            alive = [ref for ref in self._watchers if ref() is not None]
            self._watchers = (*alive, weakref.ref(watcher))

    def changed(self, name: str) -> None:
        """The handlers of channel *name* have changed."""
        for ref in self._watchers:
            if (watcher := ref()) is not None:
                watcher.handlers_changed(name)

    def acknowledge(self) -> None:
        """Wait until the channels that have handlers now are listened to."""
        if getattr(self._held, "depth", 0):
            return
        for ref in self._watchers:
            if (watcher := ref()) is not None:
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
        """After the block every channel has the handlers that it had before."""
        nobody = ChannelSignal("nobody", self).state()
        before = {name: signal.state() for name, signal in tuple(self._signals.items())}
        try:
            yield
        finally:
            for name, signal in tuple(self._signals.items()):
                signal.restore(before.get(name, nobody))

    def reset_after_fork(self) -> None:
        """In a forked child: no reactor of the parent listens."""
        self._watchers = ()


def _refuse_coroutine_handler(handler: Callable[..., Any]) -> None:
    name = getattr(handler, "__qualname__", repr(handler))
    raise TypeError(
        f"{name} is a coroutine function, and handlers run on threads; "
        "hand over to the event loop with asyncio.run_coroutine_threadsafe"
    )


default = Channels()
"""The channels of the module level, which every reactor serves."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=default.reset_after_fork)


def channel(name: str) -> ChannelSignal:
    """The blinker signal of channel *name* that every reactor serves.

    Its receivers are called as ``receiver(database, *, notification)`` on a worker of each
    reactor that receives a notification.

    :raises ChannelNameError: a name that PostgreSQL would not take unchanged.
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

    Nothing is opened.  A reactor that runs LISTENs within milliseconds, and this waits for it; one
    that does not will LISTEN when it starts.

    :param sender: a :class:`Database`; only its notifications count.  None for all.
    :param decode: turns the payload into the keyword ``value``: a callable such as ``json.loads``;
        a dataclass, whose fields are taken from a JSON object and checked; or a model or a
        ``TypeAdapter`` of pydantic.  A payload that it refuses goes to ``handler_failed``, not to
        the handler.
    :param batch: hand over what is there at once: ``handler(database, *, notifications)``, a
        non-empty list of one channel; with *decode* also ``values``.  With one worker it ends
        where a notification of another channel follows, as one worker keeps the order over all
        channels.  A handler that is through with hundreds of them in an instant is given a flood
        in pieces of hundreds.
    :param weak: forget the handler when nobody else refers to it.
    :raises ChannelNameError: a name that PostgreSQL would not take unchanged.
    :raises TypeError: no names, a coroutine function, or a *decode* that cannot work.
    """
    return default.on_channel(*names, sender=sender, decode=decode, batch=batch, weak=weak)
