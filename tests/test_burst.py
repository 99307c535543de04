"""Notifications in columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgsignals._pure.burst import Burst, to_notifications
from pgsignals._pure.values import Notification

SENT = [
    Notification("a", "1", 7),
    Notification("b", "2", 7),
    Notification("a", "3", 8),
    Notification("c", "4", 7),
]

notifications = st.lists(
    st.builds(
        Notification,
        st.sampled_from(["a", "b", "c", "d"]),
        st.text(max_size=3),
        st.integers(min_value=1, max_value=2),
    ),
    min_size=1,
)


def test_burst_gives_the_notifications_it_was_made_of() -> None:
    burst = Burst(SENT)

    assert list(burst) == SENT
    assert all(type(one) is Notification for one in burst)
    assert len(burst) == 4
    assert not Burst()


def test_notifications_are_made_of_triples() -> None:
    made = list(to_notifications([("a", "1", 7)]))

    assert made == [Notification("a", "1", 7)]
    assert made[0].payload == "1"


def test_bursts_are_added_in_order() -> None:
    burst = Burst(SENT[:2])
    burst += Burst(SENT[2:3])
    burst.extend(["c"], ["4"], [7])

    assert list(burst) == SENT


def test_columns_of_different_length_are_found_out() -> None:
    burst = Burst(SENT)
    burst.pids.pop()

    with pytest.raises(ValueError, match="shorter"):
        list(burst)


def test_part_is_another_burst() -> None:
    burst = Burst(SENT)
    part = burst.part(1, 3)
    part.append(SENT[0])

    assert list(part) == [*SENT[1:3], SENT[0]]
    assert list(burst) == SENT


@given(notifications)
def test_split_parts_by_channel_and_keeps_the_order(sent: list[Notification]) -> None:
    parts = Burst(sent).split()

    for channel, part in parts.items():
        assert list(part) == [one for one in sent if one.channel == channel]
    assert sum(map(len, parts.values())) == len(sent)
    assert all(parts.values())
