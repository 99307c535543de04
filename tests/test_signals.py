"""Channel signals: what blinker documents, in order and from any thread; no server."""

from __future__ import annotations

import functools
import gc
import itertools
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import blinker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pgsignals
from pgsignals import Database, signals
from pgsignals._dispatch.connected import Options
from pgsignals._dispatch.ordered import OrderedSignal, changes, id_of, restore, state_of
from pgsignals._runtime.shared import Shared
from pgsignals.errors import ChannelNameError
from pgsignals.signals import Channels, ChannelSignal
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
            other.result()

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
    counts = [changes.count]
    signal.connect(a)
    counts.append(changes.count)
    with signal.muted():
        counts.append(changes.count)
    counts.append(changes.count)
    signal.disconnect(a)
    counts.append(changes.count)

    assert counts == sorted(set(counts))


# The garbage collector, which comes at any point


@pytest.fixture
def always_collecting() -> Iterator[None]:
    """A collection at nearly every allocation."""
    before = gc.get_threshold()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)


class Widget:
    """A weak receiver that only the garbage collector can take."""

    def __init__(self) -> None:
        self.me = self

    def handle(self, sender: object, **_: object) -> None: ...


RESOLVING: dict[str, Callable[[Channels, ChannelSignal], object]] = {
    "calls_for": lambda channels, _: channels.calls_for("orders", "db"),
    "receivers_for": lambda _, orders: list(orders.receivers_for("db")),
    "send": lambda _, orders: orders.send("db"),
    "wanted_by": lambda channels, _: channels.wanted_by("db"),
    "restore": lambda _, orders: restore(orders, state_of(orders)),
    "handlers_for": lambda channels, _: channels.handlers_for(["db"]),
}


def test_sender_whose_last_receiver_was_collected_is_known() -> None:
    """A gap is lost then, and a warning says why."""
    signal, sender, other = OrderedSignal(), Database(), Database()

    def receiver(_: object) -> None: ...

    signal.connect(receiver, sender=sender)
    assert not state_of(signal).has_forgotten(id_of(sender))
    del receiver
    gc.collect()

    assert state_of(signal).has_forgotten(id_of(sender))
    assert not state_of(signal).has_forgotten(id_of(other))


def test_late_news_of_what_was_collected_costs_no_other_that_has_its_id_now() -> None:
    signal, sender = OrderedSignal(), Database()

    def receiver(_: object) -> None: ...

    signal.connect(receiver, sender=sender)
    signal._when_collected(id_of(receiver))("the reference to an earlier receiver")
    earlier = signal._named(sender, id_of(sender))[id_of(sender)]
    assert earlier is not None
    assert earlier.__callback__ is not None
    earlier.__callback__(earlier)

    assert list(signal.receivers_for(sender)) == [receiver]
    assert signal.has_receivers_for(sender)


@pytest.mark.parametrize("what", RESOLVING)
@pytest.mark.usefixtures("always_collecting")
def test_receivers_may_be_collected_while_others_are_resolved(
    channels: Channels, orders: ChannelSignal, what: str
) -> None:
    called, (strong,) = receivers("strong")
    channels.on_channel("orders", batch=True)(orders.connect(lambda *_, **__: None, weak=False))
    for _ in range(300):
        for number in range(5):
            orders.connect(Widget().handle, sender="db" if number % 2 else blinker.ANY)
        orders.connect(strong, weak=False)
        RESOLVING[what](channels, orders)
        called.clear()
        orders.send("db")
        assert called == ["strong"]
        assert [call.handler() for call in channels.calls_for("orders", "db")].count(strong) == 1


def test_what_is_called_is_resolved_at_once(channels: Channels, orders: ChannelSignal) -> None:
    _, (a, b) = receivers("a", "b")
    orders.connect(a)
    orders.connect(b)
    calls = channels.calls_for("orders", "db")
    orders.disconnect(b)

    assert isinstance(calls, list)
    assert [call.handler() for call in calls] == [a, b]
    assert [call.still_calls("db") for call in calls] == [True, False]


class Finalized:
    """Calls *act* when it is collected, in whatever thread, in the middle of whatever."""

    def __init__(self, act: Callable[[], object], errors: list[BaseException]) -> None:
        self.me = self
        self.act = act
        self.errors = errors

    def __del__(self) -> None:
        try:
            self.act()
        except BaseException as error:
            self.errors.append(error)


@pytest.mark.usefixtures("always_collecting")
def test_finalizers_may_do_anything_to_signals(channels: Channels) -> None:
    watcher = Watcher()
    errors: list[BaseException] = []
    numbers = itertools.count()

    def act() -> None:
        name = f"channel {next(numbers) % 7}"
        handler: Any = Receiver("of a finalizer", [])
        channels.on_channel(name)(handler)
        channels.on("gap")(handler)
        channels.channel(name).disconnect(handler)
        channels.of_reactor["gap"].disconnect(handler)
        channels.watch(watcher)

    def churn() -> None:
        for number in range(150):
            Finalized(act, errors)
            name = f"channel {number % 7}"
            signal = channels.channel(name)
            assert channels.channel(name) is signal
            _, (mine,) = receivers("mine")
            signal.connect(mine, weak=bool(number % 2))
            assert channels.wanted_by("db") >= {name}
            handlers = [call.handler() for call in channels.calls_for(name, "db")]
            assert handlers.count(mine) == 1
            signal.disconnect(mine)

    for thread in [Background(churn) for _ in range(3)]:
        thread.result()
    gc.collect()

    assert errors == []
    assert channels.wanted_by("db") == set()
    assert channels.handlers_for(["db"]) == {}


def test_value_that_is_replaced_while_it_is_replaced_loses_neither() -> None:
    shared: Shared[tuple[str, ...]] = Shared(())
    again = iter([True])

    def replaced(before: tuple[str, ...]) -> tuple[str, ...]:
        if next(again, False):
            shared.replace(lambda value: (*value, "inner"))
        return (*before, "outer")

    shared.replace(replaced)

    assert shared.value == ("inner", "outer")


def test_threads_that_replace_a_value_lose_nothing() -> None:
    shared: Shared[frozenset[int]] = Shared(frozenset())

    def add(start: int) -> None:
        for number in range(start, start + 300):
            shared.replace(frozenset({number}).union)

    for thread in [Background(add, 300 * number) for number in range(4)]:
        thread.result()

    assert shared.value == frozenset(range(1200))


# Channels are forgotten


def known(channels: Channels) -> set[str]:
    gc.collect()
    return set(channels._signals) | set(channels._kept)


def test_channel_that_nobody_handles_or_refers_to_is_forgotten(channels: Channels) -> None:
    _, (a,) = receivers("a")
    database = Database()
    for number in range(100):
        channels.channel(f"user {number}").connect(a, weak=False)
        channels.channel(f"user {number}").disconnect(a)
        channels.channel(f"user {number}").connect(a, sender=database)
        channels.channel(f"user {number}").disconnect(a, sender=database)
        channels.on_channel(f"user {number}", batch=True, decode=int, weak=True)(lambda *_, **__: 0)
        channels.channel(f"never {number}")

    assert known(channels) == set()


def test_channel_that_has_receivers_is_remembered(channels: Channels) -> None:
    called, (a,) = receivers("a")
    channels.channel("orders").connect(a)
    first = id(channels.channel("orders"))
    gc.collect()

    assert id(channels.channel("orders")) == first
    channels.channel("orders").send("db")
    assert called == ["a"]
    del a
    assert known(channels) == set()


def test_channel_that_is_watched_or_muted_is_remembered(channels: Channels) -> None:
    _, (b,) = receivers("b")
    told: list[object] = []

    def a(signal: object, **_: object) -> None:
        told.append(signal)

    channels.channel("orders").receiver_connected.connect(a)
    channels.channel("stock").receiver_disconnected.connect(a)
    channels.channel("prices").is_muted = True
    assert known(channels) == {"orders", "stock", "prices"}
    channels.channel("orders").connect(b)
    channels.channel("stock").connect(b)
    channels.channel("stock").disconnect(b)

    assert told == [channels.channel("orders"), channels.channel("stock")]
    told.clear()
    channels.channel("orders").disconnect(b)
    channels.channel("prices").is_muted = False
    del a
    assert known(channels) == set()


def test_threads_get_the_same_signal_of_a_channel_that_comes_and_goes(channels: Channels) -> None:
    wrong: list[str] = []

    def churn() -> None:
        for number in range(1000):
            name = f"channel {number % 3}"
            signal = channels.channel(name)
            _, (mine,) = receivers("mine")
            signal.connect(mine)
            if channels.channel(name) is not signal:
                wrong.append("another signal")
            if mine not in [call.handler() for call in channels.calls_for(name, "db")]:
                wrong.append("not called")
            if name not in channels.wanted_by("db"):
                wrong.append("not listened to")

    for thread in [Background(churn) for _ in range(4)]:
        thread.result()

    assert wrong == []
    assert known(channels) == set()


# Signatures


def keyword(db: object, *, notification: object) -> None: ...


def by_position(db: object, notification: object) -> None: ...


def with_more(db: object, notification: object, again: bool = False, *args: object) -> None: ...


def anything(*args: object, **keywords: object) -> None: ...


class Call:
    def __init__(self, db: object = None, notification: object = None) -> None: ...

    def __call__(self, db: object, notification: object) -> None: ...

    def method(self, db: object, notification: object) -> None: ...

    @classmethod
    def of_class(cls, db: object, notification: object) -> None: ...

    @staticmethod
    def static(db: object, notification: object) -> None: ...


@functools.wraps(print)
def that_injects(db: object, **keywords: object) -> None: ...


FIT = [keyword, by_position, with_more, anything, Call(), Call().method, Call.of_class, Call]
FIT += [Call.static, functools.partial(with_more, again=True), that_injects]
FIT += [lambda _, notification: None, type("Wide", (), {"__call__": anything})()]


@pytest.mark.parametrize("handler", FIT)
def test_handler_that_can_be_called_is_taken(channels: Channels, handler: Any) -> None:
    assert channels.on_channel("orders")(handler) is handler


def test_handler_without_a_signature_is_taken(channels: Channels) -> None:
    handler: Any = functools.lru_cache(keyword)
    assert channels.on_channel("orders")(handler) is handler


def other_name(db: object, n: object) -> None: ...


def one(n: object) -> None: ...


def none() -> None: ...


def swallows(notification: object) -> None: ...


def only_position(db: object, notification: object, /) -> None: ...


class Needs:
    def __init__(self, wrong: int) -> None: ...


MISFIT: list[tuple[Any, dict[str, Any], str]] = [
    (other_name, {}, r"it needs n, which is not given, and it does not take notification"),
    (one, {}, r"one cannot be called .*it does not take notification.*def one\(db, \*, notif"),
    (none, {}, r"it takes no db, and it does not take notification"),
    (swallows, {}, r"its first parameter, notification, would be the db"),
    (only_position, {}, r"needs notification.*, and it does not take notification"),
    (print, {}, r"it does not take notification"),
    (Needs, {}, r"Needs cannot .*it does not take notification"),
    (lambda: None, {}, r"def handler\(db, \*, notification\)"),
    (
        keyword,
        {"batch": True},
        r"it needs notification.*does not take notifications; .*db, \*, not",
    ),
    (keyword, {"decode": int}, r"it does not take value; .*db, \*, notification, value\)"),
    (keyword, {"decode": int, "batch": True}, r"does not take notifications, values"),
    (functools.partial(other_name, None), {}, r"does not take notification"),
    (Call.method, {}, r"method is registered before there is an instance.*self\.method"),
]


@pytest.mark.parametrize(("handler", "options", "told"), MISFIT)
def test_handler_that_cannot_be_called_is_refused_with_how_one_looks(
    channels: Channels, handler: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        channels.on_channel("orders", "stock", **options)(handler)

    assert channels.wanted_by("db") == set()


def test_method_in_the_body_of_a_class_is_refused(channels: Channels) -> None:
    with pytest.raises(TypeError, match=r"Shop\.ship is registered before there is an instance"):

        class Shop:
            @channels.on_channel("orders")
            def ship(self, db: object, notification: object) -> None: ...

    assert channels.wanted_by("db") == set()


def test_static_method_in_the_body_of_a_class_is_looked_at(channels: Channels) -> None:
    class Shop:
        @channels.on_channel("orders")
        @staticmethod
        def ship(db: object, notification: object) -> None: ...

    with pytest.raises(TypeError, match="it needs n"):
        channels.on_channel("orders")(staticmethod(other_name))
    assert channels.wanted_by("db") == {"orders"}


def test_signal_takes_any_receiver(orders: ChannelSignal) -> None:
    assert orders.connect(none) is none


# Senders, and the channel of probes


@pytest.mark.parametrize("sender", ["shop", 5, object(), Database])
def test_sender_that_is_no_database_is_a_type_error(channels: Channels, sender: Any) -> None:
    with pytest.raises(TypeError, match="sender must be a Database"):
        channels.on_channel("orders", sender=sender)


@pytest.mark.parametrize("sender", [None, blinker.ANY])
def test_sender_may_be_any(channels: Channels, sender: Any) -> None:
    channels.on_channel("orders", sender=sender)(keyword)

    assert channels.wanted_by("db") == {"orders"}


def test_channel_of_the_probes_has_no_handlers(channels: Channels) -> None:
    with pytest.raises(ChannelNameError, match="probes"):
        channels.channel("pgsignals.probe")
    with pytest.raises(ChannelNameError, match="probes"):
        channels.on_channel("orders", "pgsignals.probe")


# on


def test_on_returns_the_function_unchanged_and_holds_it(channels: Channels) -> None:
    called: list[str] = []
    receiver = Receiver("a", called)
    assert channels.on("gap", "idle")(receiver) is receiver
    del receiver
    gc.collect()
    for name in ("gap", "idle", "lost"):
        channels.of_reactor[name].send("db")

    assert called == ["a", "a"]


def test_on_without_names_is_a_type_error(channels: Channels) -> None:
    with pytest.raises(TypeError, match="at least one signal name"):
        channels.on()
    decorator: Callable[..., object] = channels.on
    with pytest.raises(TypeError, match="at least one signal name"):
        decorator(print)


def test_on_with_an_unknown_name_is_a_value_error_that_lists_them(channels: Channels) -> None:
    with pytest.raises(ValueError, match=r"'gaps'.*connected, lost, gap, idle, handler_failed"):
        channels.on("gap", "gaps")

    assert not channels.of_reactor["gap"].receivers


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("connected", r"\(db, \*, resumed\)"),
        ("lost", r"\(db, \*, reason, error\)"),
        ("gap", r"\(db, \*, gap\)"),
        ("idle", r"\(reactor\)"),
        ("handler_failed", r"\(db, \*, notification, handler, error\)"),
        ("stopped", r"\(reactor, \*, error\)"),
        ("any_channel", r"\(db, \*, notification\)"),
    ],
)
def test_on_looks_at_the_signature(channels: Channels, name: str, looks: str) -> None:
    def handler(sender: object, other: object) -> None: ...

    with pytest.raises(TypeError, match=looks):
        channels.on(name)(handler)

    assert not channels.of_reactor[name].receivers
