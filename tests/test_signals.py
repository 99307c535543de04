"""Channel signals: what blinker documents, in order and from any thread; no server."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection
from typing import Any

import blinker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pgsignals
from pgsignals import Database, signals
from pgsignals.errors import ChannelNameError
from pgsignals.signals import Channels, ChannelSignal, Options, OrderedSignal
from tests.support.values import BAD_NAMES, GOOD_NAMES, NO_TEXT
from tests.support.waiting import Background


@pytest.fixture
def channels() -> Channels:
    return Channels()


@pytest.fixture
def orders(channels: Channels) -> ChannelSignal:
    return channels.channel("orders")


class Receiver:
    """Something to connect; says who it is, or raises."""

    def __init__(self, name: str, called: list[str]) -> None:
        self.name = name
        self.called = called
        self.fails = False

    def __call__(self, sender: object, **kwargs: object) -> str:
        self.called.append(self.name)
        if self.fails:
            raise RuntimeError(self.name)
        return f"{self.name} {sorted(kwargs.items())}"


def receivers(*names: str) -> tuple[list[str], list[Receiver]]:
    called: list[str] = []
    return called, [Receiver(name, called) for name in names]


# As blinker


def test_channel_signal_is_a_blinker_signal(orders: ChannelSignal) -> None:
    assert isinstance(orders, blinker.Signal)


def test_send_returns_receivers_with_their_results(orders: ChannelSignal) -> None:
    _, (a, b) = receivers("a", "b")
    orders.connect(a)
    orders.connect(b)

    assert orders.send("db", x=1) == [(a, "a [('x', 1)]"), (b, "b [('x', 1)]")]


def test_send_raises_what_a_receiver_raises_and_stops_there(orders: ChannelSignal) -> None:
    called, (a, b, c) = receivers("a", "b", "c")
    for receiver in (a, b, c):
        orders.connect(receiver)
    b.fails = True

    with pytest.raises(RuntimeError, match="b"):
        orders.send("db")
    assert called == ["a", "b"]


def test_connect_returns_the_receiver(orders: ChannelSignal) -> None:
    _, (a,) = receivers("a")

    assert orders.connect(a) is a


def test_connected_to_connects_for_a_block(orders: ChannelSignal) -> None:
    called, (a,) = receivers("a")
    with orders.connected_to(a):
        orders.send("db")
    orders.send("db")

    assert called == ["a"]
    assert not orders.receivers


def test_connect_via_connects_the_decorated_function(orders: ChannelSignal) -> None:
    called: list[object] = []

    @orders.connect_via("db")
    def handler(sender: object) -> None:
        called.append(sender)

    orders.send("db")
    orders.send("other")

    assert called == ["db"]


def test_nothing_is_called_while_muted(orders: ChannelSignal) -> None:
    called, (a,) = receivers("a")
    orders.connect(a)
    with orders.muted():
        assert orders.is_muted
        assert orders.send("db") == []
    orders.send("db")

    assert called == ["a"]


def test_coroutine_function_is_refused_by_send(orders: ChannelSignal) -> None:
    async def handler(_: object) -> None: ...

    orders.connect(handler)

    with pytest.raises(RuntimeError, match="coroutine"):
        orders.send("db")


def test_weak_receiver_is_forgotten_with_its_last_reference(orders: ChannelSignal) -> None:
    _, (a,) = receivers("a")
    orders.connect(a)
    del a
    gc.collect()

    assert orders.send("db") == []
    assert not orders.receivers


def test_weak_method_is_forgotten_with_its_object(orders: ChannelSignal) -> None:
    class Cache:
        def clear(self, _: object) -> str:
            return "cleared"

    cache = Cache()
    orders.connect(cache.clear)
    assert [result for _, result in orders.send("db")] == ["cleared"]
    del cache
    gc.collect()

    assert orders.send("db") == []


def test_strong_receiver_stays(orders: ChannelSignal) -> None:
    called, (a,) = receivers("a")
    orders.connect(a, weak=False)
    del a
    gc.collect()
    orders.send("db")

    assert called == ["a"]


def test_receiver_that_disconnects_another_while_sending_keeps_it_from_being_called(
    orders: ChannelSignal,
) -> None:
    called, (b,) = receivers("b")
    first = orders.connect(lambda _: orders.disconnect(b), weak=False)
    orders.connect(b)
    results = orders.send("db")

    assert [receiver for receiver, _ in results] == [first]
    assert called == []


def test_receiver_that_connects_another_while_sending_does_not_disturb(
    orders: ChannelSignal,
) -> None:
    called, (b,) = receivers("b")
    orders.connect(lambda _: orders.connect(b), weak=False)
    orders.send("db")
    assert called == []
    orders.send("db")

    assert called == ["b"]


# blinker's own signal is the model, save for the order, which it leaves undefined


NAMES = "abcd"
SENDERS = (None, "x", "y", 5)

operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("connect"),
            st.sampled_from(NAMES),
            st.sampled_from(["any", *SENDERS]),
            st.booleans(),
        ),
        st.tuples(
            st.just("disconnect"), st.sampled_from(NAMES), st.sampled_from(["any", *SENDERS])
        ),
        st.tuples(st.just("forget"), st.sampled_from(NAMES)),
        st.tuples(st.just("fail"), st.sampled_from(NAMES)),
        st.tuples(st.just("mute")),
        st.tuples(st.just("unmute")),
        st.tuples(st.just("connected_to"), st.sampled_from(NAMES)),
        st.tuples(st.just("send"), st.sampled_from(SENDERS)),
    ),
    max_size=40,
)


class Bench:
    """One signal with four receivers, to be put through the same as another one."""

    def __init__(self, signal: blinker.Signal) -> None:
        self.signal = signal
        self.called: list[str] = []
        self.receivers = {name: Receiver(name, self.called) for name in NAMES}

    def do(self, operation: tuple[Any, ...]) -> object:
        what, *given = operation
        return getattr(self, f"do_{what}")(*given)

    def do_connect(self, name: str, sender: Any, weak: bool) -> None:
        sender = blinker.ANY if sender == "any" else sender
        self.signal.connect(self.receivers[name], sender, weak)

    def do_disconnect(self, name: str, sender: Any) -> None:
        sender = blinker.ANY if sender == "any" else sender
        self.signal.disconnect(self.receivers[name], sender)

    def do_forget(self, name: str) -> None:
        self.receivers[name] = Receiver(name, self.called)

    def do_fail(self, name: str) -> None:
        self.receivers[name].fails = not self.receivers[name].fails

    def do_mute(self) -> None:
        self.signal.is_muted = True

    def do_unmute(self) -> None:
        self.signal.is_muted = False

    def do_connected_to(self, name: str) -> object:
        with self.signal.connected_to(self.receivers[name]):
            return self.do_send("x")

    def do_send(self, sender: object) -> object:
        self.called.clear()
        wanted = sorted(receiver.name for receiver in self._wanted(sender))
        any_for = self.signal.has_receivers_for(sender)
        try:
            results = [
                (receiver.name, result)  # type: ignore[attr-defined] # ours, see connect
                for receiver, result in self.signal.send(sender, x=1)
            ]
        except RuntimeError as error:
            # Which of several fails first is a matter of order.
            failing = {receiver.name for receiver in self._wanted(sender) if receiver.fails}
            return wanted, any_for, str(error) in failing
        assert [name for name, _ in results] == self.called
        return wanted, any_for, sorted(results)

    def _wanted(self, sender: object) -> list[Receiver]:
        return list(self.signal.receivers_for(sender))  # type: ignore[arg-type] # as above


@settings(max_examples=300, deadline=None)
@given(operations)
def test_any_use_is_answered_as_by_blinker(given: list[tuple[Any, ...]]) -> None:
    ours, theirs = Bench(Channels().channel("orders")), Bench(blinker.Signal())

    for operation in given:
        assert ours.do(operation) == theirs.do(operation)
        assert set(ours.signal.receivers) == _translated(theirs, ours)


def _translated(theirs: Bench, ours: Bench) -> set[object]:
    """What *theirs* has connected, with the ids of *ours*."""
    names = set()
    for receiver in theirs.signal.receivers.values():
        strong: Any = receiver() if hasattr(receiver, "__callback__") else receiver
        names.add(strong.name)
    known: dict[str, set[object]] = {}
    for key, receiver in ours.signal.receivers.items():
        strong = receiver() if hasattr(receiver, "__callback__") else receiver
        known.setdefault(strong.name, set()).add(key)
    return set().union(*(known.get(name, {name}) for name in names))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["connect", "disconnect"]), st.sampled_from(NAMES), st.booleans())
    )
)
def test_receivers_run_in_the_order_in_which_they_were_connected(
    given: list[tuple[str, str, bool]],
) -> None:
    bench = Bench(Channels().channel("orders"))
    model: dict[str, None] = {}
    for what, name, weak in given:
        if what == "connect":
            bench.do_connect(name, "any", weak)
            model.setdefault(name)
        else:
            bench.do_disconnect(name, "any")
            model.pop(name, None)
        bench.do_send("x")

        assert bench.called == list(model)


def test_receiver_that_left_its_only_sender_comes_last_when_it_returns(
    orders: ChannelSignal,
) -> None:
    called, (a, b) = receivers("a", "b")
    orders.connect(a, sender="db")
    orders.connect(b, sender="db")
    orders.disconnect(a, sender="db")
    orders.connect(a, sender="db")
    orders.send("db")

    assert called == ["b", "a"]


# Threads


def test_threads_may_connect_and_disconnect_while_others_send(orders: ChannelSignal) -> None:
    stop = threading.Event()

    def churn(number: int) -> None:
        for _ in range(300):
            _, mine = receivers(*"abcdefgh")
            for receiver in mine:
                orders.connect(receiver, sender="db" if number % 2 else blinker.ANY)
            for receiver in mine[::2]:
                orders.disconnect(receiver)

    def send() -> None:
        while not stop.is_set():
            orders.send("db")

    sender = Background(send)
    churners = [Background(churn, number) for number in range(4)]
    for churner in churners:
        churner.result()
    stop.set()
    sender.result()
    gc.collect()

    assert not orders.receivers


def test_no_lock_is_held_while_receiver_connected_runs(orders: ChannelSignal) -> None:
    seen: list[bool] = []

    def watch(_: object, **__: object) -> None:
        if not seen:
            seen.append(True)
            other = Background(orders.connect, print)
            other.result(5)

    orders.receiver_connected.connect(watch)
    _, (a,) = receivers("a")
    orders.connect(a)

    assert seen


# Namespaces


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_channel_has_one_signal(channels: Channels, name: str) -> None:
    assert channels.channel(name) is channels.channel(name)
    assert channels.channel(name).name == name


def test_namespaces_have_signals_of_their_own(channels: Channels) -> None:
    assert channels.channel("orders") is not Channels().channel("orders")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_impossible_channel_is_refused(channels: Channels, name: str) -> None:
    with pytest.raises(ChannelNameError):
        channels.channel(name)
    with pytest.raises(ChannelNameError):
        channels.on_channel("good", name)(print)

    assert not channels.wanted_by("db")


@pytest.mark.parametrize("name", NO_TEXT)
def test_channel_that_is_no_text_is_a_type_error(channels: Channels, name: Any) -> None:
    with pytest.raises(TypeError):
        channels.channel(name)
    with pytest.raises(TypeError):
        channels.on_channel("good", name)


def test_module_level_has_one_namespace() -> None:
    assert pgsignals.channel("test_signals") is signals.default.channel("test_signals")


def test_repr_tells_the_channel(orders: ChannelSignal) -> None:
    assert "'orders'" in repr(orders)


# on_channel


def test_on_channel_returns_the_function_unchanged(channels: Channels) -> None:
    def handler(_: object, **__: object) -> None: ...

    assert channels.on_channel("orders")(handler) is handler


def test_on_channel_keeps_the_handler_unless_told_weak(channels: Channels) -> None:
    called: list[str] = []
    channels.on_channel("orders")(Receiver("strong", called))
    channels.on_channel("orders", weak=True)(Receiver("weak", called))
    gc.collect()
    channels.channel("orders").send("db")

    assert called == ["strong"]


def test_on_channel_takes_several_names(channels: Channels) -> None:
    called, (a,) = receivers("a")
    channels.on_channel("orders", "stock")(a)
    channels.channel("orders").send("db")
    channels.channel("stock").send("db")

    assert called == ["a", "a"]


def test_on_channel_without_names_is_a_type_error(channels: Channels) -> None:
    with pytest.raises(TypeError, match="name"):
        channels.on_channel()


def test_on_channel_without_parentheses_is_a_type_error(channels: Channels) -> None:
    decorator: Callable[..., object] = channels.on_channel
    with pytest.raises(TypeError, match="name"):
        decorator(print)


def test_coroutine_function_is_taken_where_no_reactor_runs(channels: Channels) -> None:
    async def handler(_: object, **__: object) -> None: ...

    assert channels.on_channel("orders")(handler) is handler
    assert channels.wanted_by("db") == {"orders"}


@pytest.mark.parametrize("handler", [None, 5, "handler"])
def test_handler_that_cannot_be_called_is_a_type_error(channels: Channels, handler: Any) -> None:
    with pytest.raises(TypeError, match="callable"):
        channels.on_channel("orders")(handler)


def test_decode_that_cannot_be_called_is_a_type_error(channels: Channels) -> None:
    decode: Any = "json"
    with pytest.raises(TypeError, match="decode"):
        channels.on_channel("orders", decode=decode)


def test_connecting_again_replaces_the_options_and_keeps_the_place(channels: Channels) -> None:
    _, (a, b) = receivers("a", "b")
    channels.on_channel("orders", batch=True)(a)
    channels.on_channel("orders")(b)
    channels.on_channel("orders", decode=int)(a)

    calls = [(call.handler(), call.decode, call.batch) for call in channels.calls_for("orders", 1)]
    assert calls == [(a, int, False), (b, None, False)]


def test_plain_connect_takes_the_options_back(channels: Channels) -> None:
    _, (a,) = receivers("a")
    channels.on_channel("orders", batch=True, decode=int)(a)
    channels.channel("orders").connect(a)

    calls = [(call.decode, call.batch) for call in channels.calls_for("orders", "db")]
    assert calls == [tuple(Options())]


def test_channels_that_have_handlers_are_told_for_each_sender(channels: Channels) -> None:
    _, (a, b) = receivers("a", "b")
    channels.on_channel("orders")(a)
    channels.channel("stock").connect(b, sender="db")
    assert channels.wanted_by("db") == {"orders", "stock"}
    assert channels.wanted_by("other") == {"orders"}
    channels.channel("orders").disconnect(a)

    assert channels.wanted_by("other") == set()


# Watchers


class Watcher:
    served: Collection[Database] = ()

    def __init__(self) -> None:
        self.seen: list[str] = []

    def check_handler(self, handler: Callable[..., Any], sender: Database | None) -> None: ...

    def handlers_changed(self, name: str) -> None:
        self.seen.append(name)

    def acknowledge_handlers(self) -> None:
        self.seen.append("acknowledged")


def test_watcher_hears_of_every_change(channels: Channels) -> None:
    watcher = Watcher()
    channels.watch(watcher)
    _, (a, b) = receivers("a", "b")
    channels.on_channel("orders")(a)
    channels.channel("orders").disconnect(a)
    channels.channel("stock").connect(b)
    del b
    gc.collect()

    told = [one for one in watcher.seen if one != "acknowledged"]
    assert told == ["orders", "orders", "stock", "stock"]


def test_watcher_is_held_weakly(channels: Channels) -> None:
    watcher = Watcher()
    seen = watcher.seen
    channels.watch(watcher)
    del watcher
    gc.collect()
    _, (a,) = receivers("a")
    channels.on_channel("orders")(a)

    assert seen == []


def test_every_change_is_counted() -> None:
    signal = OrderedSignal()
    _, (a,) = receivers("a")
    counts = [signals.changes.count]
    signal.connect(a)
    counts.append(signals.changes.count)
    with signal.muted():
        counts.append(signals.changes.count)
    counts.append(signals.changes.count)
    signal.disconnect(a)
    counts.append(signals.changes.count)

    assert counts == sorted(set(counts))
