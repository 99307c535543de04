"""examples/live_orders in a real browser.

``python -m tests.test_examples_live_orders docs`` takes the pictures of its README.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import queue
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from examples.live_orders.app import SHOWN, Browsers, LiveOrders
from pgsignals.embedded import Postgres
from tests.support.admin import Admin, stopped
from tests.support.browser import Browser
from tests.support.waiting import PATIENCE, Background, wait_until

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "live_orders"
PROGRAM = FOLDER / "app.py"
SCHEMA = FOLDER / "schema.sql"


class Site:
    """The example as a process, on a port that stays the same when it is started again."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - until close()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "--port", str(self.port)],
            env={**os.environ, "DATABASE_URL": self._dsn, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        wait_until(self._answers, why=f"{self.url} does not answer")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def reader(self) -> socket.socket:
        """A browser that reads when it is told to."""
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        connection.sendall(b"GET /events HTTP/1.0\r\n\r\n")
        return connection

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)

    def close(self) -> None:
        self.stop()
        self._log.close()


def free_port() -> int:
    """One that stays free: the system itself hands out higher ones."""
    while True:
        port = random.choice(range(15_000, 30_000))
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def read_until(connection: socket.socket, mark: bytes) -> None:
    """Read until *mark* has come."""
    tail = b""
    while mark not in tail:
        data = connection.recv(1 << 16)
        assert data, f"the stream ended before {mark!r}"
        tail = tail[-len(mark) :] + data


class Shop:
    """A server, the site that shows its orders, and somebody who places them."""

    def __init__(self, server: Postgres, browser: Browser) -> None:
        self.server = server
        self.browser = browser
        self.site = Site(server.dsn)

    def place(self, *orders: tuple[str, str, int, int]) -> None:
        """Insert orders: customer, item, quantity, cents.  Each in a transaction of its own."""
        with closing(Admin(self.server.dsn)) as admin:
            for order in orders:
                admin.execute(
                    "INSERT INTO live_orders (customer, item, quantity, cents)"
                    " VALUES (%s, %s, %s, %s)",
                    *order,
                )

    def execute(self, sql: str) -> None:
        with closing(Admin(self.server.dsn)) as admin:
            admin.execute(sql)

    def open(self) -> None:
        """Start the site and load its page."""
        self.site.start()
        self.browser.open(self.site.url)
        self.browser.wait_for("document.getElementById('link').dataset.state === 'listening'")
        self.browser.wait_for("!isNaN(document.getElementById('count').textContent)")

    def restart_deaf(self, *orders: tuple[str, str, int, int]) -> None:
        """Restart the server, and place orders before the site hears again."""
        self.server.stop()
        self.browser.wait_for(SHOWS_BANNER.format(kind="broken"))
        with stopped(self.site.pid):
            self.server.start()
            self.place(*orders)

    def close(self) -> None:
        self.browser.open("about:blank")
        self.site.close()
        self.execute("DROP TABLE IF EXISTS live_orders")


SHOWS_BANNER = (
    "!document.getElementById('banner').hidden"
    " && document.getElementById('banner').dataset.kind === '{kind}'"
)
#: Short words that take more than a line of their own.
BROKEN = """
[...document.querySelectorAll(".state span, .amount, .id, .placed time, #figures dd")]
  .filter((one) => one.getBoundingClientRect().height > 0)
  .filter((one) => {
    const range = document.createRange();
    range.selectNodeContents(one);
    return new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size > 1;
  })
  .map((one) => one.textContent)
"""
ROWS = "document.querySelectorAll('#orders tr').length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        browser.resize(1000, 700)
        yield browser


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """Tests restart it."""
    with Postgres(tcp=True) as server:
        yield server


@pytest.fixture
def shop(browser: Browser, own_server: Postgres) -> Iterator[Shop]:
    shop = Shop(own_server, browser)
    try:
        shop.open()
        yield shop
    finally:
        shop.close()


def test_page_follows_the_table(shop: Shop) -> None:
    browser = shop.browser
    assert browser.text("#empty")

    shop.place(("Ada", "teapot", 1, 1500))
    browser.wait_for(f"{ROWS} === 1")
    assert "teapot" in browser.text("#orders")
    assert browser.text("#value") == "€15.00"

    shop.execute("UPDATE live_orders SET state = 'paid'")
    browser.wait_for("document.querySelector('.state span').textContent === 'paid'")

    shop.execute("DELETE FROM live_orders")
    browser.wait_for(f"{ROWS} === 0")

    shop.place(("Ada", "teapot", 1, 1500), ("Grace", "cup", 1, 300))
    browser.wait_for(f"{ROWS} === 2")
    shop.execute("TRUNCATE live_orders")
    browser.wait_for(f"{ROWS} === 0")

    loaded = "performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)"
    assert {f"{origin}/" for origin in browser.evaluate(loaded)} == {shop.site.url}


def test_page_shows_the_newest_first_and_no_more_than_it_can(shop: Shop) -> None:
    shop.execute(
        "INSERT INTO live_orders (customer, item, cents)"
        " SELECT 'Ada', 'cup ' || i, 100 FROM generate_series(1, 60) AS i"
    )
    shop.browser.wait_for(f"{ROWS} === {SHOWN}")
    assert shop.browser.text("#orders .item") == "cup 60"

    shop.place(("Ada", "saucer", 1, 100))
    shop.browser.wait_for("document.querySelector('#orders .item').textContent === 'saucer'")
    assert shop.browser.evaluate(ROWS) == SHOWN


def test_what_is_in_a_row_is_text(shop: Shop) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\"></td><script>document.title='owned'"
    shop.place((evil, f"\n\ndata: {evil}", 1, 100))
    shop.browser.wait_for(f"{ROWS} === 1")

    assert shop.browser.text(".customer") == evil
    assert evil in shop.browser.text(".item")
    assert (
        shop.browser.evaluate("document.querySelectorAll('#orders :is(img, script)').length") == 0
    )
    assert shop.browser.evaluate("document.title") == "Live orders"


def test_restart_of_the_server_shows_a_gap_and_refills_the_page(shop: Shop) -> None:
    browser = shop.browser
    shop.place(("Ada", "teapot", 1, 1500))
    browser.wait_for(f"{ROWS} === 1")
    assert not browser.evaluate(SHOWS_BANNER.format(kind="broken"))

    shop.restart_deaf(("Grace", "cup", 2, 600), ("Alan", "tray", 1, 900))
    browser.wait_for(SHOWS_BANNER.format(kind="restored"))

    assert browser.evaluate(ROWS) == 3
    assert "2 orders are new or changed" in browser.text("#banner")
    assert browser.evaluate("document.querySelectorAll('[data-came=late]').length") == 2
    assert browser.text("#link") == "Live"

    browser.evaluate("document.getElementById('dismiss').click()")
    assert not browser.evaluate(SHOWS_BANNER.format(kind="restored"))
    shop.place(("Ada", "spoon", 1, 200))
    browser.wait_for(f"{ROWS} === 4")


def test_browser_comes_back_by_itself(shop: Shop) -> None:
    browser = shop.browser
    browser.evaluate("window.same = true")
    shop.site.stop()
    browser.wait_for("document.getElementById('link').dataset.state === 'offline'")
    assert browser.evaluate(SHOWS_BANNER.format(kind="broken"))

    shop.place(("Grace", "cup", 2, 600))
    shop.site.start()
    browser.wait_for(f"{ROWS} === 1")

    browser.wait_for(SHOWS_BANNER.format(kind="restored"))
    assert "The stream was interrupted" in browser.text("#banner")
    assert browser.evaluate("window.same"), "the page was loaded again"


def test_page_tries_again_after_the_error_of_a_proxy(shop: Shop) -> None:
    """Which ends an EventSource for good."""
    asked = threading.Event()

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(502)
            asked.set()

        def log_message(self, *_: object) -> None:
            pass

    shop.site.stop()
    with http.server.HTTPServer(("127.0.0.1", shop.site.port), Proxy) as proxy:
        serving = Background(proxy.serve_forever, 0.01)
        assert asked.wait(PATIENCE)
        proxy.shutdown()
        serving.result()
    shop.place(("Grace", "cup", 2, 600))
    shop.site.start()
    shop.browser.wait_for(f"{ROWS} === 1")


def test_browser_that_does_not_read_holds_nobody_up(shop: Shop) -> None:
    text = "x" * 100_000
    with shop.site.reader() as slow, shop.site.reader() as quick:
        read_until(slow, b'"orders"')
        read_until(quick, b'"orders"')
        shop.place(*[(text, f"cup {number}", 1, 100) for number in range(1, 101)])
        read_until(quick, b'"cup 100"')  # 10 MB, of which the other has not read any


def test_page_fits_a_phone(shop: Shop) -> None:
    shop.place(("Wilhelmina Featherstonehaugh-Cholmondeley", "teapot" * 20, 12, 123456789))
    shop.place(("Ada", "Teapot of blue porcelain with a wicker handle", 1, 12345670))
    shop.browser.wait_for(f"{ROWS} === 2")
    try:
        for width in (320, 390, 1000, 1280):
            shop.browser.resize(width, 700)
            wide = shop.browser.evaluate("document.documentElement.scrollWidth")
            assert wide <= width
            assert shop.browser.evaluate(BROKEN) == [], f"at {width} px"
    finally:
        shop.browser.resize(1000, 700)


# -- without a browser -----------------------------------------------------------------------------


def test_mailbox_that_is_full_is_dismissed() -> None:
    browsers = Browsers(limit=2)
    with browsers.join() as slow, browsers.join() as quick:
        for number in range(3):
            browsers.publish(str(number))
            assert quick.get_nowait() == str(number)

        assert len(browsers) == 1
        assert slow.get_nowait() is None
        with pytest.raises(queue.Empty):
            slow.get_nowait()
    assert len(browsers) == 0


def test_all_can_be_dismissed() -> None:
    browsers = Browsers()
    with browsers.join() as one, browsers.join() as other:
        browsers.publish("something")
        browsers.dismiss_all()

        assert one.get_nowait() is None
        assert other.get_nowait() is None


@pytest.fixture
def live(dsn: str, admin: Admin) -> Iterator[LiveOrders]:
    admin.execute(SCHEMA.read_text())
    live = LiveOrders(dsn)
    told = threading.Event()
    live.reactor.connected.connect(lambda *_, **__: told.set(), weak=False)
    with live.reactor:
        assert told.wait(PATIENCE)  # else that comes into the first streams
        yield live
    admin.execute("DROP TABLE live_orders")


def next_event(stream: Iterator[str], name: str) -> dict[str, Any]:
    """The data of the next event, which is called *name*."""
    first, data = next(stream).split("\n", 1)
    assert first == f"event: {name}"
    parsed: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return parsed


def opened(live: LiveOrders) -> Generator[str]:
    """A stream that has told its beginning."""
    stream = live.stream()
    assert next(stream) == "retry: 1000\n\n"
    assert next_event(stream, "link") == {"state": "listening"}
    next_event(stream, "all")
    return stream


def place(admin: Admin, item: str) -> None:
    admin.execute("INSERT INTO live_orders (customer, item, cents) VALUES ('Ada', %s, 1)", item)


def test_stream_of_a_slow_browser_ends_and_the_next_one_begins_with_everything(
    live: LiveOrders, admin: Admin
) -> None:
    live.browsers = Browsers(limit=2)
    with closing(opened(live)) as slow, closing(opened(live)) as quick:
        for item in ("cup", "tray", "spoon"):
            place(admin, item)
            (order,) = next_event(quick, "changed")["orders"]
            assert order["item"] == item

        assert list(slow) == []
        slow_again = live.stream()
        next(slow_again)
        next_event(slow_again, "link")
        orders = next_event(slow_again, "all")["orders"]
        assert [order["item"] for order in orders] == ["spoon", "tray", "cup"]
        slow_again.close()
    assert len(live.browsers) == 0


def test_what_cannot_be_read_ends_the_streams(live: LiveOrders, admin: Admin) -> None:
    with closing(opened(live)) as stream:
        admin.execute("BEGIN")
        place(admin, "cup")
        admin.execute("ALTER TABLE live_orders RENAME COLUMN customer TO buyer")
        admin.execute("COMMIT")

        assert list(stream) == []


def test_payload_that_is_no_id_is_passed_over(live: LiveOrders, admin: Admin) -> None:
    with closing(opened(live)) as stream:
        admin.notify("live_orders", "rubbish")
        place(admin, "cup")
        assert next_event(stream, "changed")["orders"][0]["item"] == "cup"


# -- pictures --------------------------------------------------------------------------------------

SOLD = [
    ("Ada Lovelace", "Teapot, blue", 1, 3450),
    ("Grace Hopper", "Cup and saucer", 6, 7740),
    ("Katherine Johnson", "Biscuit tin", 2, 1980),
    ("Alan Turing", "Samovar", 1, 24900),
    ("Hedy Lamarr", "Sugar tongs", 1, 1250),
    ("Edsger Dijkstra", "Egg cup", 4, 1560),
    ("Barbara Liskov", "Kettle", 1, 5900),
]
MISSED = [("Margaret Hamilton", "Tray, oak", 1, 4200), ("Donald Knuth", "Tea strainer", 3, 2670)]


def take_pictures(folder: Path) -> None:
    """The page before a restart, while the server is down, and after it; wide and narrow."""
    with Postgres(tcp=True) as server, Browser() as browser:
        for name, width, height, dark in (("desktop", 960, 790, False), ("phone", 390, 740, True)):
            browser.resize(width, height, dark=dark)
            shop = Shop(server, browser)
            try:
                shop.open()
                shop.place(*SOLD)
                shop.execute(
                    "UPDATE live_orders SET placed = placed - (8 - id) * interval '47 s',"
                    " state = CASE WHEN id < 3 THEN 'shipped'"
                    " WHEN id < 6 THEN 'paid' ELSE 'new' END"
                )
                browser.wait_for("document.querySelectorAll('[data-state=shipped]').length === 2")
                take(browser, folder / f"live-orders-{name}-before.png")
                shop.server.stop()
                browser.wait_for(SHOWS_BANNER.format(kind="broken"))
                take(browser, folder / f"live-orders-{name}-lost.png")
                shop.restart_deaf(*MISSED)
                browser.wait_for(SHOWS_BANNER.format(kind="restored"))
                take(browser, folder / f"live-orders-{name}-after.png")
            finally:
                shop.close()


def take(browser: Browser, path: Path) -> None:
    browser.wait_for("document.getAnimations().every((one) => one.playState === 'finished')")
    browser.picture(path)


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
