"""Channels as blinker signals, the decorators that register handlers, and who serves them.

There is no lock here, for the reason that :mod:`pgsignals._dispatch.ordered` gives.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from _weakref import _remove_dead_weakref  # type: ignore[attr-defined]
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

from pgsignals._dispatch.checks import check_signature, describe
from pgsignals._dispatch.connected import Options, State
from pgsignals._dispatch.handlers import REACTOR_SIGNALS, typed, typed_on
from pgsignals._dispatch.ordered import (
    ANY,
    Call,
    F,
    ReactorSignal,
    calls_for,
    changes,
    connect,
    id_of,
    restore,
    state_of,
)
from pgsignals._dispatch.ordered import (
    OrderedSignal as OrderedSignal,
)
from pgsignals._pure.decode import decoder
from pgsignals._pure.names import check_handled
from pgsignals._runtime.log import Log
from pgsignals._runtime.shared import Shared
from pgsignals.database import Database

logger = Log("pgsignals.reactor")


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

    def _in_use(self) -> bool:
        """Whether it must be kept even when nothing else references it."""
        return (
            self._muted
            or any(one.senders for one in state_of(self).connections.values())
            or self._subscribed("receiver_connected") is not None
            or self._subscribed("receiver_disconnected") is not None
        )

    def _changed(self) -> None:
        changes.note()
        if (namespace := self._namespace()) is not None:
            namespace.keep(self)
            namespace.changed(self.name)

    def _has_first(self) -> None:
        if (namespace := self._namespace()) is not None:
            namespace.acknowledge()


class Watcher(Protocol):
    """Listens to every channel that has handlers: a reactor."""

    @property
    def served(self) -> Collection[Database]:
        """Its databases while it runs; otherwise none."""

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
        self.arounds: tuple[Callable[..., Any], ...] = ()  # set on a reactor's own namespace
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
            if signal._in_use():
                kept[name] = signal
            else:
                kept.pop(name, None)
            if signal._in_use() == (name in kept):  # else it was changed meanwhile
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
            raise TypeError(
                "on_channel() needs at least one channel name, such as @on_channel('orders')"
            )
        if not (sender is None or sender is ANY or isinstance(sender, Database)):
            raise TypeError(f"sender must be a Database or None, not {type(sender).__name__}")
        signals = [self.channel(name) for name in names]
        options = Options(None if decode is None else decoder(decode), bool(batch))
        keywords = ["notifications", "values"] if batch else ["notification", "value"]
        if decode is None:
            del keywords[1]

        def register(handler: F) -> F:
            check_signature(handler, tuple(keywords))
            database = sender if isinstance(sender, Database) else None
            self._check_handler(handler, database)
            with self._one_acknowledgement():
                for signal in signals:
                    source = ANY if database is None else database
                    connect(signal, handler, source, weak=weak, options=options, registered=True)
            if database is not None and (served := self._served()):
                _warn_if_foreign(handler, database, served)
            return handler

        return register

    def on(self, *names: str) -> Callable[[F], F]:
        """See :func:`pgsignals.on`."""
        known = ", ".join(REACTOR_SIGNALS)
        if not names or callable(names[0]):
            raise TypeError(
                f"on() needs at least one signal name, such as @on('gap'); the signals are {known}"
            )
        for name in names:
            if name not in REACTOR_SIGNALS:
                raise ValueError(f"a Reactor has no signal {name!r}; its signals are {known}")

        def register(handler: F) -> F:
            for name in names:
                sender, keywords = REACTOR_SIGNALS[name]
                check_signature(handler, keywords, sender)
            self._check_handler(handler, None)
            for name in names:
                connect(self.of_reactor[name], handler, weak=False, registered=True)
            return handler

        return register

    def wrap(self, arounds: tuple[Callable[..., Any], ...]) -> None:
        """See :meth:`Reactor.wrap_handlers`."""
        self.arounds = arounds
        changes.note()

    def wanted_by(self, sender: Any) -> set[str]:
        """The channels that have a handler for *sender*."""
        sender_id = id_of(sender)
        return {signal.name for signal in self._known() if state_of(signal).wanted_by(sender_id)}

    def calls_for(self, name: str, sender: Any) -> list[Call]:
        """See :func:`pgsignals._dispatch.ordered.calls_for`."""
        reference = self._signals.get(name)
        signal = None if reference is None else reference()
        return [] if signal is None else calls_for(signal, sender)

    def handlers_for(
        self, senders: Collection[Any]
    ) -> dict[str, list[tuple[Callable[..., Any], bool]]]:
        """As :meth:`State.handlers_for`, by the name of the channel or of the reactor's
        signal."""
        found: dict[str, list[tuple[Callable[..., Any], bool]]] = {}
        sender_ids = list(map(id_of, senders))
        signals: list[ChannelSignal | ReactorSignal] = [*self._known(), *self.of_reactor.values()]
        for signal in signals:
            state = state_of(signal)
            if handlers := [
                one for sender_id in sender_ids for one in state.handlers_for(sender_id)
            ]:
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
            for handler, sender in state_of(signal).bound():
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
        before = {signal: state_of(signal) for signal in self._known()}
        of_reactor = {signal: state_of(signal) for signal in self.of_reactor.values()}
        try:
            yield
        finally:
            for signal in {*before, *self._known()}:
                restore(signal, before.get(signal, State()))
            for one, state in of_reactor.items():
                restore(one, state)

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
        function while a :class:`Reactor` runs; a *decode* that cannot work; a *sender* that is
        not a Database.
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
