"""examples/django_signals: the command listens in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgsignals.embedded import Postgres
from tests.support.admin import Admin
from tests.support.arrivals import Connect, everything, payloads
from tests.support.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "django_signals"


@pytest.fixture(scope="module")
def project_dsn(postgres: Postgres, admin: Admin) -> Iterator[str]:
    """A database with the tables of the project."""
    admin.execute("CREATE DATABASE django_signals")
    dsn = postgres.dsn_for("django_signals")
    assert manage(dsn, "migrate").returncode == 0
    yield dsn
    admin.execute("DROP DATABASE django_signals")


@pytest.fixture
def shop(project_dsn: str) -> Iterator[Admin]:
    """Looks into the database of the project, whose tables are empty in the end."""
    admin = Admin(project_dsn)
    yield admin
    admin.execute("TRUNCATE shop_order, shop_receipt")
    admin.close()


@pytest.fixture
def command(project_dsn: str, shop: Admin) -> Iterator[subprocess.Popen[str]]:
    """The command, which listens."""
    with subprocess.Popen(
        [sys.executable, str(FOLDER / "manage.py"), "listen"],
        env=environment(project_dsn),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert "/django_signals: listening to shop.orders" in process.stdout.readline()
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE)


def environment(dsn: str) -> dict[str, str]:
    return {**os.environ, "DATABASE_URL": dsn, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=FOLDER,
        env=environment(dsn),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def manage(dsn: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(dsn, "manage.py", *arguments)


def in_django(dsn: str, script: str) -> None:
    """Run *script* with the models at hand."""
    setup = (
        "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'shop.settings'; django.setup();"
        "from django.db import transaction; from shop.models import Order\n"
    )
    result = run(dsn, "-c", setup + script)
    assert result.returncode == 0, result.stderr


def with_receipts(shop: Admin) -> list[str]:
    """The items of the orders that were handled."""
    query = "SELECT item FROM shop_order JOIN shop_receipt ON order_id = id ORDER BY id"
    return [item for (item,) in shop.execute(query)]


def sessions(shop: Admin) -> dict[int, str]:
    """Those of the project's database."""
    rows = shop.execute(
        "SELECT pid, application_name FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    return dict(rows)


def test_handler_of_the_app_is_called_until_a_signal_ends_the_command(
    project_dsn: str, shop: Admin, command: subprocess.Popen[str]
) -> None:
    placed = manage(project_dsn, "order", "teapot")
    assert placed.stdout.startswith("order "), placed.stderr
    wait_until(lambda: with_receipts(shop) == ["teapot"])

    command.send_signal(signal.SIGTERM)
    assert command.wait(PATIENCE) == 0


def test_notification_leaves_with_the_commit_or_not_at_all(
    project_dsn: str, shop: Admin, connect: Connect
) -> None:
    listener = connect(project_dsn)
    listener.listen("shop.orders")
    in_django(
        project_dsn,
        "try:\n"
        "    with transaction.atomic():\n"
        "        Order.objects.create(item='never')\n"
        "        raise RuntimeError\n"
        "except RuntimeError: pass\n"
        "Order.objects.create(item='cup')\n"
        "with transaction.atomic():\n"
        "    Order.objects.create(item='tray')\n",
    )
    ids = [str(number) for (number,) in shop.execute("SELECT id FROM shop_order ORDER BY id")]

    assert len(ids) == 2
    assert payloads(everything(listener, shop)) == ids


def test_what_nobody_was_told_of_is_found_at_the_start_and_after_a_loss(
    shop: Admin, request: pytest.FixtureRequest
) -> None:
    save = "INSERT INTO shop_order (item, quantity) VALUES (%s, 1)"  # which notifies nobody
    shop.execute(save, "early")
    request.getfixturevalue("command")
    wait_until(lambda: with_receipts(shop) == ["early"])

    shop.execute(save, "untold")
    for pid, name in sessions(shop).items():
        if name == "pgsignals":
            shop.kill(pid)
    wait_until(lambda: with_receipts(shop) == ["early", "untold"])


def test_orm_is_connected_again_for_the_next_handler(
    shop: Admin, command: subprocess.Popen[str]
) -> None:
    def place(item: str) -> None:
        shop.execute("INSERT INTO shop_order (item, quantity) VALUES (%s, 1)", item)
        (row,) = shop.execute("SELECT max(id) FROM shop_order")
        shop.notify("shop.orders", str(row[0]))

    place("teapot")
    wait_until(lambda: with_receipts(shop) == ["teapot"])
    (orm,) = [pid for pid, name in sessions(shop).items() if name != "pgsignals"]
    shop.kill(orm)

    place("cup")  # no gap: the listening session goes on
    wait_until(lambda: with_receipts(shop) == ["teapot", "cup"])


def test_wrong_password_is_told_in_a_line(postgres: Postgres, project_dsn: str) -> None:
    wrong = postgres.dsn_for("django_signals", password="not-the-password")
    result = manage(wrong, "listen")

    assert result.returncode == 1
    assert "password authentication failed" in result.stderr
    assert "not-the-password" not in result.stderr
    assert "Traceback" not in result.stderr
