"""Names, payloads and timeouts at the boundaries, for every function that takes them."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest


def _table(**values: object) -> list[Any]:  # pytest does not name the type
    return [pytest.param(value, id=name) for name, value in values.items()]


#: Channel names that mean themselves everywhere.
GOOD_NAMES = _table(
    plain="orders",
    mixed_case="MixCase",
    dash="my-chan",
    space="a b",
    dot="a.b",
    keyword="select",
    another_keyword="all",
    leading_digit="1abc",
    leading_dollar="$x",
    dollar="a$b",
    double_quote='a"b',
    only_double_quotes='""',
    single_quote="it's",
    semicolon="a; LISTEN injected",
    quoted_semicolon='a"; LISTEN injected; --',
    percent="%s %(x)s %%",
    backslash="a\\b",
    newline_and_tab="a\n\tb",
    two_stars="**",
    self_="self",
    accent="é",
    han="漢",
    emoji="😀",
    bytes_63_of_1="x" * 63,
    bytes_63_of_2="é" * 31 + "x",
    bytes_63_of_3="漢" * 21,
    bytes_63_of_4="😀" * 15 + "xyz",
)

#: Channel names that the server would refuse or bend.
BAD_NAMES = _table(
    empty="",
    star="*",
    bytes_64_of_1="x" * 64,
    bytes_64_of_2="é" * 32,
    bytes_64_of_4="😀" * 16,
    bytes_66_of_3="漢" * 22,
    characters_63="é" * 63,
    characters_64="é" * 64,
    characters_200="x" * 200,
    only_nul="\0",
    nul="a\0b",
    trailing_nul="a\0",
    lone_surrogate="a\ud800b",
    low_surrogate="\udc80",
)

#: Those that `unlisten` refuses, too.
BAD_NAMES_EVERYWHERE = [value for value in BAD_NAMES if value.id != "star"]

#: What is no text at all.
NO_TEXT = _table(none=None, int=5, float=1.5, bytes=b"x", list=["x"], set={"x"}, dict={"x": "y"})

#: Payloads that arrive unchanged.
GOOD_PAYLOADS = _table(
    empty="",
    space=" ",
    quotes="""it's "quoted" ''""",
    backslash="\\ \\' \\\\x41 \\n",
    newline_and_tab="a\n\tb\r\n",
    percent="%s %(x)s %%",
    braces='{"a": ["b", "c\\\\"], NULL}',
    dollar="$1 $$ $a$",
    null_word="NULL",
    accent="é",
    han="漢",
    emoji="😀",
    bytes_7999_of_1="x" * 7999,
    bytes_7999_of_2="é" * 3999 + "x",
    bytes_7999_of_3="漢" * 2666 + "x",
    bytes_7999_of_4="😀" * 1999 + "xyz",
)

#: Payloads that the server would refuse.
BAD_PAYLOADS = _table(
    bytes_8000_of_1="x" * 8000,
    bytes_8000_of_2="é" * 4000,
    bytes_8001_of_3="漢" * 2667,
    bytes_8000_of_4="😀" * 2000,
    only_nul="\0",
    nul="secret\0b",
    lone_surrogate="secret\ud800b",
    low_surrogate="\udc80",
)

#: What `notify` takes for no item.
BAD_ITEMS = _table(
    none=None,
    int=5,
    bytes=b"x",
    list=["x", "y"],
    empty_tuple=(),
    single=("x",),
    triple=("x", "y", 5),
    pair_without_name=(None, "y"),
    pair_of_bytes=("x", b"y"),
    pair_with_int=("x", 5),
)

#: Timeouts, each as good as the object that comes back.
GOOD_TIMEOUTS = _table(
    none=None,
    zero=0,
    minus_zero=-0.0,
    int=2,
    float=2.5,
    tiny=1e-9,
    fraction=Fraction(1, 3),
    decimal=Decimal("1.5"),
    huge=1e10,
    huger=1e300,
    huge_int=10**400,
    infinite=math.inf,
)

NO_NUMBERS = _table(string="1", bytes=b"1", true=True, false=False, list=[1], complex=1j)
BAD_NUMBERS = _table(
    negative=-1,
    slightly_negative=-1e-9,
    minus_infinite=-math.inf,
    nan=math.nan,
    decimal_nan=Decimal("NaN"),
    negative_fraction=Fraction(-1, 3),
)
