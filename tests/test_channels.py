"""Channel names, payloads and the statements that carry them; no server."""

from __future__ import annotations

import enum
from collections import namedtuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsignals._pure.names import (
    check_channel,
    check_channels,
    check_payload,
    check_unlisten,
    notify_items,
)
from pgsignals._pure.statements import listen_sql, notify, quote
from pgsignals.errors import ChannelNameError, Error, PayloadError
from tests.support.values import (
    BAD_ITEMS,
    BAD_NAMES,
    BAD_NAMES_EVERYWHERE,
    BAD_PAYLOADS,
    GOOD_NAMES,
    GOOD_PAYLOADS,
    NO_TEXT,
)


class Shout(str):
    """Text that shows itself differently."""

    __slots__ = ()

    def __str__(self) -> str:
        return "SHOUT"


# Names


@pytest.mark.spec("9.12", "9.19", "9.21", "N10")
@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_name_is_returned_as_it_is(name: str) -> None:
    assert check_channel(name) == name
    assert check_channels([name, "other"]) == (name, "other")


@pytest.mark.spec("9.10", "9.12", "9.13", "9.21", "N10")
@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ChannelNameError):
        check_channel(name)
    with pytest.raises(ChannelNameError):
        check_channels(["good", name])


@pytest.mark.spec("9.22")
@pytest.mark.parametrize("name", NO_TEXT)
def test_name_that_is_no_text_is_a_type_error_that_names_the_type(name: object) -> None:
    with pytest.raises(TypeError, match=rf"not {type(name).__name__}\b") as caught:
        check_channel(name)

    assert not isinstance(caught.value, Error)


@pytest.mark.parametrize("name", ["x" * 64, "é" * 32])
def test_error_for_a_long_name_tells_name_size_and_limit(name: str) -> None:
    with pytest.raises(ChannelNameError) as caught:
        check_channel(name)

    message = str(caught.value)
    assert repr(name) in message
    assert "64 bytes" in message
    assert "63" in message


@pytest.mark.parametrize("name", ["*", "a\0b", "a\ud800b"])
def test_error_for_an_impossible_name_tells_the_name_in_printable_form(name: str) -> None:
    with pytest.raises(ChannelNameError) as caught:
        check_channel(name)

    assert ascii(name)[1:-1] in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.spec("9.6")
def test_text_of_a_subclass_means_its_own_characters() -> None:
    Channel = enum.Enum("Channel", {"ORDERS": "orders"}, type=str)

    assert check_channel(Channel.ORDERS) == "orders"
    assert check_channel(Shout("quiet")) == "quiet"
    assert type(check_channel(Shout("quiet"))) is str
    assert check_payload(Shout("quiet"), "x") == "quiet"
    assert type(check_payload(Shout("quiet"), "x")) is str


@pytest.mark.spec("9.20")
def test_star_means_all_channels_in_unlisten_only() -> None:
    assert check_unlisten(["*", "a"]) == ("*", "a")
    with pytest.raises(ChannelNameError, match="unlisten"):
        check_channel("*")
    with pytest.raises(ChannelNameError):
        notify_items(["*"], {})


@pytest.mark.parametrize("name", BAD_NAMES_EVERYWHERE)
def test_unlisten_refuses_other_bad_names(name: str) -> None:
    with pytest.raises(ChannelNameError):
        check_unlisten([name])


@pytest.mark.parametrize("name", NO_TEXT)
def test_unlisten_refuses_what_is_no_text(name: object) -> None:
    with pytest.raises(TypeError):
        check_unlisten([name])


# Payloads


@pytest.mark.spec("9.11", "N11")
@pytest.mark.parametrize("payload", GOOD_PAYLOADS)
def test_good_payload_is_returned_as_it_is(payload: str) -> None:
    assert check_payload(payload, "x") == payload


@pytest.mark.spec("9.6")
def test_payload_of_none_means_none() -> None:
    assert check_payload(None, "x") == ""


@pytest.mark.spec("9.10", "9.11", "N11")
@pytest.mark.parametrize("payload", BAD_PAYLOADS)
def test_bad_payload_is_refused_without_being_shown(payload: str) -> None:
    with pytest.raises(PayloadError, match="'orders'") as caught:
        check_payload(payload, "orders")

    error = caught.value
    assert payload[:6] not in str(error)
    assert error.__context__ is None  # a UnicodeEncodeError holds the whole text
    assert error.__cause__ is None


@pytest.mark.parametrize("payload", ["x" * 8000, "é" * 4000, "😀" * 2000])
def test_error_for_a_long_payload_tells_size_and_limit(payload: str) -> None:
    with pytest.raises(PayloadError, match=r"8000 bytes.*7999"):
        check_payload(payload, "orders")


@pytest.mark.spec("9.6")
@pytest.mark.parametrize("payload", [5, 1.5, b"x", ["x"], True])
def test_payload_that_is_no_text_is_a_type_error(payload: object) -> None:
    with pytest.raises(TypeError, match=rf"'orders'.*not {type(payload).__name__}\b"):
        check_payload(payload, "orders")


# Items of notify


@pytest.mark.spec("9.2", "9.3", "U11")
@pytest.mark.parametrize(
    ("payload", "hint"),
    [({"a": 1}, "json.dumps"), ([1], "json.dumps"), (42, "json.dumps"), (b"x", "decode it")],
)
def test_error_for_a_payload_that_is_no_text_tells_what_makes_one(
    payload: object, hint: str
) -> None:
    for items in ([("orders", payload)], []):
        pairs = {} if items else {"orders": payload}
        with pytest.raises(TypeError, match=hint) as caught:
            notify_items(items, pairs)

        assert type(payload).__name__ in str(caught.value)


def test_items_keep_their_order_and_keywords_come_last() -> None:
    items = notify_items(["b", ("a", "1"), "b", ("c", None)], {"z": "2", "a": None})

    assert items == [("b", ""), ("a", "1"), ("b", ""), ("c", ""), ("z", "2"), ("a", "")]


@pytest.mark.spec("9.5")
def test_no_items_are_no_items() -> None:
    assert notify_items([], {}) == []


@pytest.mark.spec("9.6")
def test_named_pair_is_a_pair() -> None:
    Item = namedtuple("Item", "where what")

    assert notify_items([Item("a", "1")], {}) == [("a", "1")]


@pytest.mark.spec("9.6")
@pytest.mark.parametrize("item", BAD_ITEMS)
def test_item_of_the_wrong_shape_is_a_type_error(item: object) -> None:
    with pytest.raises(TypeError, match=r"channel|pair|payload"):
        notify_items(["good", item], {})


def test_error_for_a_triple_tells_how_to_forward_a_notification() -> None:
    with pytest.raises(TypeError, match=r"\(n\.channel, n\.payload\)"):
        notify_items([("a", "1", 5)], {})


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_name_is_refused_in_every_position(name: str) -> None:
    with pytest.raises(ChannelNameError):
        notify_items([name], {})
    with pytest.raises(ChannelNameError):
        notify_items([(name, "payload")], {})
    with pytest.raises(ChannelNameError):
        notify_items([], {name: "payload"})


# SQL


@pytest.mark.spec("9.8", "9.19")
@pytest.mark.parametrize(
    ("name", "identifier"),
    [
        ("orders", '"orders"'),
        ("MixCase", '"MixCase"'),
        ('a"b', '"a""b"'),
        ('""', '""""""'),
        ("it's", '"it\'s"'),
        ("a\\b", '"a\\b"'),
    ],
)
def test_name_is_quoted_as_an_identifier(name: str, identifier: str) -> None:
    assert quote(name) == identifier


@given(st.text())
def test_quoting_can_be_undone_whatever_the_text(text: str) -> None:
    quoted = quote(text)

    assert quoted.startswith('"')
    assert quoted.endswith('"')
    inner = quoted[1:-1]
    assert inner.replace('""', "").count('"') == 0
    assert inner.replace('""', '"') == text


@given(st.text())
def test_name_is_either_refused_or_returned_as_it_is(text: str) -> None:
    try:
        checked = check_channel(text)
    except ChannelNameError:
        encoded = text.encode(errors="replace")
        surrogate = any("\ud800" <= character <= "\udfff" for character in text)
        assert text in ("", "*") or "\0" in text or surrogate or len(encoded) > 63
    else:
        assert checked == text
        assert len(text.encode()) <= 63


def test_statements_of_one_round_trip() -> None:
    assert listen_sql(["a", "B"]) == 'LISTEN "a"; LISTEN "B"'
    assert listen_sql(unlisten=["a", "*"]) == 'UNLISTEN "a"; UNLISTEN *'
    assert listen_sql(["a"], ["b"]) == 'LISTEN "a"; UNLISTEN "b"'
    assert listen_sql() == ""


def test_statement_that_notifies_has_its_items_as_parameters() -> None:
    sql, parameters = notify([("a", "1"), ("B", ""), ("a", "%s; DROP")])

    assert parameters == (["a", "B", "a"], ["1", "", "%s; DROP"])
    assert sql.count("%s") == len(parameters)
    assert sql == notify([])[0]
