"""Workers that wake up when there is a job: a job table, SKIP LOCKED, and NOTIFY.

::

    python examples/worker/worker.py postgresql://app@localhost/shop

Without an argument it uses DATABASE_URL, else libpq's own variables.  Start as many as you like, on
as many machines as you like; Ctrl-C or SIGTERM ends a worker after its current job.  The program
creates the table ``jobs`` if it does not exist, and leaves it in place.

The table is the source of truth, and a notification only says "look": a missed one costs time,
never a job.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from pgsignals import Database, Reactor

SCHEMA = Path(__file__).with_name("schema.sql")
POLL = 30.0  # seconds after which it looks without having been woken
RETRY = 1.0  # seconds, after the session was lost

NEXT = (
    "SELECT id, payload FROM jobs WHERE state OPERATOR(pg_catalog.=) 'ready'"
    " ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED"
)
DONE = (
    "UPDATE jobs SET state = 'done', finished = pg_catalog.now(), worker = %s"
    " WHERE id OPERATOR(pg_catalog.=) %s"
)
FAILED = (
    "UPDATE jobs SET state = 'failed', finished = pg_catalog.now(), worker = %s, error = %s"
    " WHERE id OPERATOR(pg_catalog.=) %s"
)

#: Does one job.  What it writes with the database commits with the job, or not at all.
Perform: TypeAlias = Callable[[Database, str], None]

logger = logging.getLogger("worker")


class Worker:
    """Does jobs on the calling thread; a reactor wakes it.

    :param perform: does one job; if it raises, the job is ``failed`` and keeps the error.
    :param poll: seconds after which it looks for jobs that were not announced, such as one that
        came back from a worker that crashed.
    """

    def __init__(self, dsn: str, perform: Perform, *, poll: float = POLL) -> None:
        self._perform = perform
        self._poll = poll
        self._name = f"{os.uname().nodename}:{os.getpid()}"
        self._database = Database(dsn)  # for the jobs; the reactor has a session of its own
        self._awake = threading.Event()
        self._stopping = threading.Event()
        self.reactor = Reactor(dsn)
        self.reactor.on_channel("jobs")(self.wake)
        for news in (self.reactor.connected, self.reactor.gap):
            news.connect(self.wake, weak=False)  # we may have missed the news of a job

    def wake(self, *_: object, **__: object) -> None:
        """Make it look for jobs.  From any thread."""
        self._awake.set()

    def stop(self) -> None:
        """End :meth:`run` after the current job.  From any thread."""
        self._stopping.set()
        self._awake.set()

    def run(self) -> None:
        """Do jobs until :meth:`stop`.

        :raises pgsignals.ConnectError: the database cannot be reached at the start.
        """
        pause = 0.0
        with self.reactor, self._database:
            while not self._stopping.is_set():
                self._awake.wait(pause)
                self._awake.clear()  # before looking: what is notified from now on wakes again
                pause = self._poll
                try:
                    self._database.open()  # does nothing while it is open
                    while not self._stopping.is_set() and self._do_one():
                        pass
                except Exception as error:
                    if not self._database.closed:
                        raise
                    logger.warning("lost the session of the jobs: %s", error)
                    pause = RETRY

    def _do_one(self) -> bool:
        """Do one job, whose row is locked meanwhile; false if there is none.

        A crash ends the session, the server rolls back the transaction, and the row is free.
        """
        db = self._database
        with db.transaction():
            row = db.execute(NEXT).fetchone()
            if row is None:
                return False
            number, payload = row
            try:
                with db.transaction():  # a savepoint
                    self._perform(db, payload)
            except Exception as error:
                if db.closed:
                    raise  # the session is lost, and the job is free again
                logger.exception("job %d failed", number)
                db.execute(FAILED, [self._name, repr(error), number])
            else:
                db.execute(DONE, [self._name, number])
            return True


def perform(_: Database, payload: str) -> None:
    """An example of a job: it sleeps for as many seconds as the payload says."""
    print(f"sleeping for {payload} s", flush=True)
    time.sleep(float(payload))


def main(argv: list[str] | None = None) -> int:
    """Work until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dsn", nargs="?", default=os.environ.get("DATABASE_URL", ""))
    parser.add_argument("--poll", type=float, default=POLL, metavar="SECONDS")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)

    with Database(arguments.dsn) as db:
        db.execute(SCHEMA.read_bytes())
    worker = Worker(arguments.dsn, perform, poll=arguments.poll)

    def stop(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=worker.stop).start()  # not here: we may hold the lock it needs

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    worker.run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
