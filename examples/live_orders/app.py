"""Orders appear in the browser as they are committed: Flask and server-sent events.

::

    python examples/live_orders/app.py postgresql://app@localhost/shop

Without an argument it uses DATABASE_URL, else libpq's own variables.  The program creates the table
``live_orders`` if it does not exist, and leaves it in place.

Every stream begins with everything that the page shows, so one remedy covers every failure: the
stream ends, the browser reconnects by itself, and gets everything.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from flask import Flask, Response

from pgsignals import (
    ConnectError,
    ConnectionLostError,
    Database,
    Gap,
    Notification,
    Reactor,
    connect,
)

FOLDER = Path(__file__).parent
SHOWN = 50  # orders on the page
HEARTBEAT = 15.0  # seconds; writing is the only way to notice that a browser has left
COLUMNS = "id, customer, item, quantity, cents, state, placed"
NEWEST = f"SELECT {COLUMNS} FROM live_orders ORDER BY id DESC LIMIT {SHOWN}"
CHANGED = (
    f"SELECT {COLUMNS} FROM live_orders WHERE id OPERATOR(pg_catalog.=) ANY (%s::pg_catalog.int8[])"
)

#: What is still to be sent to one browser; None ends its stream.
Mailbox: TypeAlias = "queue.Queue[str | None]"


class Browsers:
    """The browsers that are watching.  Nothing here waits for a browser."""

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._mailboxes: set[Mailbox] = set()

    def __len__(self) -> int:
        return len(self._mailboxes)

    @contextlib.contextmanager
    def join(self) -> Iterator[Mailbox]:
        """A mailbox for one browser, for as long as the block runs."""
        mailbox: Mailbox = queue.Queue(self._limit)
        with self._lock:
            self._mailboxes.add(mailbox)
        try:
            yield mailbox
        finally:
            with self._lock:
                self._mailboxes.discard(mailbox)

    def publish(self, message: str) -> None:
        """Put it into every mailbox; dismiss those that are full."""
        with self._lock:
            for mailbox in tuple(self._mailboxes):
                try:
                    mailbox.put_nowait(message)
                except queue.Full:
                    self._dismiss(mailbox)

    def dismiss_all(self) -> None:
        """End all streams; the browsers reconnect."""
        with self._lock:
            for mailbox in tuple(self._mailboxes):
                self._dismiss(mailbox)

    def _dismiss(self, mailbox: Mailbox) -> None:
        self._mailboxes.remove(mailbox)
        with contextlib.suppress(queue.Empty):
            while True:
                mailbox.get_nowait()
        mailbox.put_nowait(None)


class LiveOrders:
    """Passes on what the reactor hears.  Its receivers run on the reactor's worker, in order."""

    def __init__(self, dsn: str) -> None:
        self.browsers = Browsers()
        self.reactor = Reactor(dsn)
        self._dsn = dsn
        self.reactor.on_channel("live_orders", decode=int, batch=True)(self.changed)
        self.reactor.lost.connect(self.lost, weak=False)
        self.reactor.connected.connect(self.connected, weak=False)
        self.reactor.gap.connect(self.missed, weak=False)

    def changed(
        self, db: Database, *, notifications: list[Notification], values: list[int]
    ) -> None:
        """Some orders were inserted, updated or deleted, or all truncated: read them."""
        ids = set(values)
        with self._or_start_again():
            rows = read(db, CHANGED, list(ids)) if len(ids) <= SHOWN else []
            if len(rows) == len(ids):
                self.browsers.publish(event("changed", orders=rows))
            else:  # some have been deleted, or there are too many to show
                self.browsers.publish(event("all", orders=read(db, NEWEST)))

    def lost(self, db: Database, *, reason: str, error: ConnectionLostError) -> None:
        """What the page shows may become stale."""
        self.browsers.publish(event("link", state="lost"))

    def connected(self, db: Database, *, resumed: bool) -> None:
        """A gap follows, unless this is the first session."""
        self.browsers.publish(event("link", state="listening"))

    def missed(self, db: Database, *, gap: Gap) -> None:
        """Notifications may have been missed, so only the table is right: read it again."""
        with self._or_start_again():
            self.browsers.publish(event("gap", reason=gap.reason, since=gap.since, until=gap.until))
            self.browsers.publish(event("all", orders=read(db, NEWEST)))

    @contextlib.contextmanager
    def _or_start_again(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.browsers.dismiss_all()
            raise  # to the log

    def stream(self) -> Generator[str]:
        """What one browser is sent.  Runs in a thread of the web server."""
        with self.browsers.join() as mailbox:  # before reading: what happens meanwhile waits there
            (status,) = self.reactor.status().databases
            yield "retry: 1000\n\n"  # milliseconds until the browser reconnects
            yield event("link", state=status.state)
            try:
                with connect(self._dsn) as db:
                    rows = read(db, NEWEST)
            except ConnectError:
                return  # the server is down: the browser reconnects
            yield event("all", orders=rows)
            yield from letters(mailbox)


def letters(mailbox: Mailbox) -> Iterator[str]:
    """The messages in a mailbox, and a heartbeat when there are none."""
    while True:
        try:
            message = mailbox.get(timeout=HEARTBEAT)
        except queue.Empty:
            message = ": still here\n\n"
        if message is None:
            return
        yield message


def read(db: Database, query: str, *params: object) -> list[dict[str, Any]]:
    """Rows of the table, as the page expects them."""
    rows: Iterable[tuple[Any, ...]] = db.execute(query, params)
    return [dict(zip(COLUMNS.split(", "), row, strict=True)) for row in rows]


def event(name: str, **data: object) -> str:
    """A server-sent event.  JSON has no line breaks, which would end it."""
    return f"event: {name}\ndata: {json.dumps(data, default=lambda time: time.isoformat())}\n\n"


def create_app(live: LiveOrders) -> Flask:
    """The page, and the stream of events that it asks for."""
    app = Flask(__name__, static_folder=FOLDER / "static")

    @app.get("/")
    def page() -> Response:
        return app.send_static_file("index.html")

    @app.get("/events")
    def events() -> Response:
        # "no" makes nginx pass events on as they come.
        headers = {"X-Accel-Buffering": "no"}
        return Response(live.stream(), mimetype="text/event-stream", headers=headers)

    @app.after_request
    def restrict(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        response.headers["Cache-Control"] = "no-store"
        return response

    return app


def main(argv: list[str] | None = None) -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dsn", nargs="?", default=os.environ.get("DATABASE_URL", ""))
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args(argv)

    with connect(arguments.dsn) as db:
        db.execute((FOLDER / "schema.sql").read_bytes())
    live = LiveOrders(arguments.dsn)
    with live.reactor:
        create_app(live).run("127.0.0.1", arguments.port, threaded=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
