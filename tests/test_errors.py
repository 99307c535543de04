"""The exceptions: one tree, and each of the built-in kind that a caller would catch."""

from __future__ import annotations

import pickle

import pytest

from pgsignals import Database, Notification, errors

TREE = [
    (errors.ChannelNameError, errors.Error, ValueError),
    (errors.PayloadError, errors.Error, ValueError),
    (errors.ConnectError, errors.Error, ConnectionError),
    (errors.ConnectionLostError, errors.Error, ConnectionError),
    (errors.UnsupportedServerError, errors.Error, RuntimeError),
    (errors.PoolerError, errors.UnsupportedServerError, RuntimeError),
    (errors.StandbyError, errors.UnsupportedServerError, RuntimeError),
    (errors.EncodingError, errors.UnsupportedServerError, RuntimeError),
    (errors.ConnectionStateError, errors.Error, RuntimeError),
    (errors.SchemaError, errors.Error, RuntimeError),
    (errors.ClosedError, errors.Error, RuntimeError),
    (errors.ForkedError, errors.Error, RuntimeError),
]


@pytest.mark.parametrize(
    ("error", "parent", "builtin"), TREE, ids=[error.__name__ for error, _, _ in TREE]
)
def test_error_has_its_place_in_the_tree_and_among_the_builtin_ones(
    error: type[errors.Error], parent: type[errors.Error], builtin: type[Exception]
) -> None:
    assert issubclass(error, parent)
    assert issubclass(error, builtin)
    assert issubclass(error, errors.Error)
    assert str(error("the reason")) == "the reason"


def test_tree_has_no_other_errors() -> None:
    public = {value for value in vars(errors).values() if isinstance(value, type)}

    assert public == {error for error, _, _ in TREE} | {errors.Error}


def test_root_is_no_builtin_kind() -> None:
    assert errors.Error.__bases__ == (Exception,)


def test_lost_connection_tells_the_code_of_the_server() -> None:
    assert errors.ConnectionLostError("gone", sqlstate="57P01").sqlstate == "57P01"
    assert errors.ConnectionLostError("gone").sqlstate is None
    assert str(errors.ConnectionLostError("gone", sqlstate="57P01")) == "gone"


def test_lost_connection_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(errors.ConnectionLostError("gone", sqlstate="57P01")))

    assert str(error) == "gone"
    assert error.sqlstate == "57P01"


# Values


@pytest.mark.spec("1.1", "1.2")
def test_notification_is_a_triple_with_names() -> None:
    notification = Notification("orders", "42 paid", 4711)

    assert notification == ("orders", "42 paid", 4711)
    assert hash(notification) == hash(("orders", "42 paid", 4711))
    channel, payload, pid = notification
    assert (channel, payload, pid) == (
        notification.channel,
        notification.payload,
        notification.pid,
    )


def test_notification_does_not_show_its_payload() -> None:
    shown = repr(Notification("orders", "a secret", 4711))

    assert "orders" in shown
    assert "4711" in shown
    assert "8" in shown
    assert "secret" not in shown


@pytest.mark.parametrize(
    "conninfo",
    [
        "host=db.example port=5433 user=app password=s3cret dbname=shop",
        "postgresql://app:s3cret@db.example:5433/shop",
        "postgresql://app:s3cret@db.example:5433/shop?options=-csearch_path%3Dx",
    ],
)
def test_database_shows_where_it_leads_and_no_secret(conninfo: str) -> None:
    shown = repr(Database(conninfo))

    assert "db.example:5433/shop" in shown
    assert "closed" in shown
    assert "s3cret" not in shown


@pytest.mark.parametrize("conninfo", ["passwrd=s3cret", "postgresql://app:s3cret@[", "s3cret"])
def test_database_with_an_unreadable_conninfo_shows_nothing_of_it(conninfo: str) -> None:
    assert "s3cret" not in repr(Database(conninfo))
