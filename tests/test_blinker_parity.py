"""What blinker's own suite says of ``Signal`` holds for ours, and what we need of blinker is there.

Each test states one property that blinker 1.8 and 1.9 test, of blinker's signal and of both of
ours: where ours depart, they would fail for one kind only.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import tomllib
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import blinker
import pytest
from blinker import _utilities

from pgsignals.signals import Channels, ChannelSignal, OrderedSignal

KINDS: dict[str, Callable[[], blinker.Signal]] = {
    "blinker.Signal": blinker.Signal,
    "OrderedSignal": OrderedSignal,
    "ChannelSignal": lambda: Channels().channel("orders"),
}


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def signal(request: pytest.FixtureRequest) -> blinker.Signal:
    made: blinker.Signal = request.param()
    return made


class Thing:
    """A sender, or the owner of a method, that can be referred to weakly."""

    def __init__(self, heard: list[Any] | None = None) -> None:
        self.heard = [] if heard is None else heard

    def __str__(self) -> str:
        return "a thing"

    def hear(self, sender: object) -> None:
        self.heard.append(sender)


class Listener:
    """A receiver that remembers its senders, and what it was given."""

    def __init__(self) -> None:
        self.senders: list[Any] = []
        self.given: list[dict[str, Any]] = []

    def __call__(self, sender: object, /, **given: Any) -> None:
        self.senders.append(sender)
        self.given.append(given)


# Signals about the signal


@pytest.mark.parametrize("sender", [blinker.ANY, "a text", 5, Thing()], ids=str)
@pytest.mark.parametrize("weak", [True, False])
def test_connecting_is_told(signal: blinker.Signal, sender: Any, weak: bool) -> None:
    receiver, told = Listener(), Listener()
    signal.receiver_connected.connect(told)
    signal.connect(receiver, sender=sender, weak=weak)

    assert told.senders == [signal]
    assert told.given == [{"receiver": receiver, "sender": sender, "weak": weak}]


@pytest.mark.parametrize("sender", ["a text", Thing()], ids=str)
@pytest.mark.parametrize("weak", [True, False])
def test_disconnecting_is_told(signal: blinker.Signal, sender: Any, weak: bool) -> None:
    receiver, told = Listener(), Listener()
    signal.receiver_disconnected.connect(told)
    signal.connect(receiver, sender=sender, weak=weak)
    signal.disconnect(receiver, sender=sender)
    signal.disconnect(receiver)

    assert told.senders == [signal, signal]
    assert told.given == [
        {"receiver": receiver, "sender": sender},
        {"receiver": receiver, "sender": blinker.ANY},
    ]


def test_signals_about_the_signal_begin_without_receivers_and_stay_the_same(
    signal: blinker.Signal,
) -> None:
    for name in ("receiver_connected", "receiver_disconnected"):
        about = getattr(signal, name)

        assert not about.receivers
        about.connect(told := Listener())
        assert about.receivers
        assert getattr(signal, name) is about
        assert not told.senders


def test_collection_of_a_receiver_or_sender_is_not_told(signal: blinker.Signal) -> None:
    told, strong, sender = Listener(), Listener(), Thing()
    signal.connect(receiver := Listener())
    signal.connect(strong, sender=sender, weak=False)
    signal.receiver_disconnected.connect(told)
    del receiver, sender
    gc.collect()

    assert signal.send("x") == []
    assert not told.senders
    assert not strong.senders


def test_receiver_that_cannot_be_told_is_not_connected(signal: blinker.Signal) -> None:
    def refuse(_: object, **given: object) -> None:
        raise TypeError("on purpose")

    signal.receiver_connected.connect(refuse)
    with pytest.raises(TypeError, match="on purpose"):
        signal.connect(Listener(), weak=False)

    assert not signal.receivers


# Who is held


def test_weak_receiver_vanishes_with_its_last_reference(signal: blinker.Signal) -> None:
    reference = weakref.ref(receiver := Listener())
    signal.connect(receiver, weak=True)
    del receiver
    gc.collect()

    assert reference() is None
    assert signal.send() == []
    assert not signal.receivers


def test_receiver_is_held_weakly_unless_told_otherwise(signal: blinker.Signal) -> None:
    signal.connect(Listener())
    gc.collect()

    assert not signal.receivers


def test_strong_receiver_stays(signal: blinker.Signal) -> None:
    heard: list[object] = []
    signal.connect(heard.append, weak=False)
    signal.connect(lambda sender: heard.append(("lambda", sender)), weak=False)
    gc.collect()
    signal.send()

    assert len(signal.receivers) == 2
    assert sorted(map(repr, heard)) == ["('lambda', None)", "None"]


def test_method_vanishes_with_its_object(signal: blinker.Signal) -> None:
    heard: list[object] = []
    owner = Thing(heard)
    signal.connect(owner.hear)
    signal.send("first")
    del owner
    gc.collect()
    signal.send("second")

    assert heard == ["first"]


def test_method_is_the_same_receiver_each_time_it_is_looked_up(signal: blinker.Signal) -> None:
    owner = Thing()
    signal.connect(owner.hear)
    signal.connect(owner.hear)
    signal.send("once")
    signal.disconnect(owner.hear)
    signal.send("never")

    assert owner.heard == ["once"]


def test_sender_is_not_kept_alive(signal: blinker.Signal) -> None:
    receiver = Listener()
    reference = weakref.ref(sender := Thing())
    signal.connect(receiver, sender)
    signal.send(sender)
    receiver.senders.clear()
    del sender
    gc.collect()

    assert reference() is None
    assert signal.receivers  # it stays, and hears nothing
    assert signal.send() == []


def test_decorator_of_connect_via_holds_the_function_for_its_sender_alone(
    signal: blinker.Signal,
) -> None:
    heard: list[object] = []
    sender = Thing()

    @signal.connect_via(sender)
    def receive(sender: object) -> None:
        heard.append(sender)

    del receive
    gc.collect()
    signal.send()
    signal.send(1)
    signal.send(sender)

    assert signal.receivers
    assert heard == [sender]


def test_decorator_of_connect_via_can_hold_weakly(signal: blinker.Signal) -> None:
    @signal.connect_via("x", weak=True)
    def receive(_: object) -> None: ...

    assert signal.has_receivers_for("x")
    del receive
    gc.collect()

    assert not signal.receivers


# Who hears what


def test_receiver_of_one_sender_hears_that_one(signal: blinker.Signal) -> None:
    receiver = Listener()
    signal.connect(receiver, 123)
    for sender in (None, 123, 124):
        signal.send(sender)
    assert receiver.senders == [123]

    signal.disconnect(receiver, 123)
    signal.send(123)
    assert receiver.senders == [123]

    signal.connect(receiver, 123)
    signal.send(123)
    assert receiver.senders == [123, 123]

    signal.disconnect(receiver)  # for all of its senders
    signal.send(123)
    assert receiver.senders == [123, 123]


def test_receiver_of_any_and_one_sender_is_called_once(signal: blinker.Signal) -> None:
    receiver = Listener()
    signal.connect(receiver, 123)
    signal.connect(receiver)
    for sender in (None, 123, None):
        signal.send(sender)

    assert receiver.senders == [None, 123, None]


@pytest.mark.parametrize("value", ["123456789", "orders"])
def test_senders_of_equal_value_are_the_same_sender(signal: blinker.Signal, value: str) -> None:
    for make in (str, int) if value.isdigit() else (str,):
        receiver = Listener()
        signal.connect(receiver, make(value))
        signal.send(make("".join(value)))
        signal.disconnect(receiver)

        assert receiver.senders == [make(value)]


def test_equal_objects_are_different_senders(signal: blinker.Signal) -> None:
    one, other = ["x"], ["x"]
    receiver = Listener()
    signal.connect(receiver, one)
    signal.send(other)
    signal.send(one)

    assert len(receiver.senders) == 1
    assert receiver.senders[0] is one


def test_has_receivers_for(signal: blinker.Signal) -> None:
    receiver, thing = Listener(), Thing()
    for sender in (None, blinker.ANY, "x", thing):
        assert not signal.has_receivers_for(sender)

    signal.connect(receiver, "x")
    signal.connect(receiver, thing)
    assert signal.has_receivers_for("x")
    assert signal.has_receivers_for(thing)
    assert not signal.has_receivers_for(None)
    assert not signal.has_receivers_for(blinker.ANY)

    del receiver
    gc.collect()
    assert not signal.has_receivers_for("x")
    assert list(signal.receivers_for("x")) == list(signal.receivers_for(thing)) == []

    signal.connect(lambda _: None, weak=False)
    for sender in (None, blinker.ANY, "x", thing):
        assert signal.has_receivers_for(sender)


def test_receivers_for_gives_strong_references(signal: blinker.Signal) -> None:
    receiver, owner = Listener(), Thing()
    signal.connect(receiver)
    signal.connect(owner.hear)

    assert {type(one) for one in signal.receivers_for("x")} == {Listener, type(owner.hear)}


def test_receivers_are_references_or_receivers_by_an_id(signal: blinker.Signal) -> None:
    signal.connect(weak := Listener())
    signal.connect(strong := Listener(), weak=False)
    held = list(signal.receivers.values())

    assert len(held) == 2
    assert any(one is strong for one in held)
    assert any(isinstance(one, weakref.ref) and one() is weak for one in held)


def test_disconnecting_what_is_not_connected_does_nothing(signal: blinker.Signal) -> None:
    signal.connect(receiver := Listener(), "x")
    signal.disconnect(Listener())
    signal.disconnect(receiver, "y")
    signal.send("x")

    assert receiver.senders == ["x"]


# Sending


def test_send_returns_each_receiver_with_its_result(signal: blinker.Signal) -> None:
    def receive(sender: object, **given: object) -> object:
        return sender, given

    signal.connect(receive)

    assert signal.send("x", y=1) == [(receive, ("x", {"y": 1}))]


def test_sender_is_none_when_it_is_not_given(signal: blinker.Signal) -> None:
    signal.connect(receiver := Listener())
    signal.send()

    assert receiver.senders == [None]


def test_two_positional_arguments_are_refused(signal: blinker.Signal) -> None:
    signal.connect(receiver := Listener())
    with pytest.raises(TypeError):
        signal.send("x", "y", "z")  # type: ignore[arg-type, call-arg]

    assert not receiver.senders


def test_muted_signal_calls_nothing_for_the_block(signal: blinker.Signal) -> None:
    signal.connect(receiver := Listener())
    with signal.muted():
        assert signal.send("silent") == []
    signal.send("loud")

    assert receiver.senders == ["loud"]


def test_connected_to_disconnects_also_after_an_exception(signal: blinker.Signal) -> None:
    receiver = Listener()

    def fail() -> None:
        with signal.connected_to(receiver, sender="x"):
            signal.send("x")
            signal.send("y")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    signal.send("x")

    assert receiver.senders == ["x"]


def test_coroutines_are_awaited_by_send_async_and_refused_by_send(signal: blinker.Signal) -> None:
    heard: list[str] = []

    async def asynchronous(_: object) -> str:
        heard.append("asynchronous")
        return "awaited"

    def synchronous(_: object) -> str:
        heard.append("synchronous")
        return "called"

    def wrap(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapped

    signal.connect(synchronous)
    signal.connect(asynchronous)
    results = asyncio.run(signal.send_async("x", _sync_wrapper=wrap))  # type: ignore[arg-type]

    assert sorted(heard) == ["asynchronous", "synchronous"]
    assert {result for _, result in results} == {"awaited", "called"}
    with pytest.raises(RuntimeError):
        signal.send("x")
    with pytest.raises(RuntimeError):
        asyncio.run(signal.send_async("x"))


def test_send_wraps_coroutine_functions_where_asked(signal: blinker.Signal) -> None:
    async def asynchronous(_: object) -> str:
        return "awaited"

    def run(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: asyncio.run(function(*args, **kwargs))

    signal.connect(asynchronous)

    assert signal.send("x", _async_wrapper=run) == [(asynchronous, "awaited")]


# Itself


@pytest.mark.parametrize("kind", [blinker.Signal, OrderedSignal])
def test_doc_is_that_of_the_instance(kind: type[blinker.Signal]) -> None:
    assert kind(doc="x").__doc__ == kind("x").__doc__ == "x"
    assert kind().__doc__ == kind.__doc__


def test_name_is_in_the_repr_as_with_a_named_signal() -> None:
    assert "'orders'" in repr(blinker.NamedSignal("orders"))
    assert "'orders'" in repr(Channels().channel("orders"))


def test_name_gives_the_same_signal_while_something_references_it() -> None:
    theirs, ours = blinker.Namespace(), Channels()

    assert theirs.signal("a") is theirs.signal("a") is not theirs.signal("b")
    a = ours.channel("a")
    assert ours.channel("a") is a
    assert ours.channel("b") is not a


def test_nothing_is_left_of_senders_and_receivers_that_are_gone() -> None:
    signal = OrderedSignal()
    for number in range(100):
        signal.connect(receiver := Listener(), sender := Thing())
        signal.connect(receiver, f"sender {number}")
        signal.disconnect(receiver)
        del receiver, sender
    gc.collect()

    assert not signal.receivers
    assert sum(len(part) for part in signal._state.value) <= 100  # the texts, which cannot go


# What is public, and what we need


def names_of(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_public_names_of_a_signal_are_blinkers_and_the_channels_name() -> None:
    theirs = names_of(blinker.Signal) | set(vars(blinker.Signal()))
    theirs = {name for name in theirs if not name.startswith("_")}
    made = Channels().channel("orders")

    assert names_of(OrderedSignal) <= theirs
    assert names_of(ChannelSignal) <= theirs
    assert {name for name in vars(made) if not name.startswith("_")} - theirs == {"name"}
    assert names_of(OrderedSignal) == {
        *("ANY", "set_class", "connect", "connect_via", "connected_to", "disconnect"),
        *("send", "send_async", "muted", "is_muted", "receivers", "receivers_for"),
        *("has_receivers_for", "receiver_connected", "receiver_disconnected"),
    }


def test_blinker_has_what_we_borrow_of_its_internals() -> None:
    """Two functions of ``_utilities``, and the attributes that ``Signal`` sets."""
    thing = Thing()

    assert _utilities.make_id("x") == "x"
    assert _utilities.make_id(5) == 5
    assert _utilities.make_id(thing) == id(thing)
    assert _utilities.make_id(thing.hear) == (id(Thing.hear), id(thing))
    assert _utilities.make_ref(thing)() is thing
    assert list(inspect.signature(_utilities.make_ref).parameters) == ["obj", "callback"]
    made = vars(blinker.Signal())
    assert {"receivers", "is_muted"} <= set(made)  # which ours takes with properties
    assert {"receiver_connected", "receiver_disconnected", "_clear_state"} <= set(
        vars(blinker.Signal)
    )


def test_blinker_is_bounded_to_the_versions_whose_internals_are_known() -> None:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())
    (bound,) = [one for one in project["project"]["dependencies"] if one.startswith("blinker")]

    assert bound == "blinker>=1.8,<2"
