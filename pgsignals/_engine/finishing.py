"""The last that is read before a life ends: what the server still owes us."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial

from pgsignals._runtime.log import Log
from pgsignals._sources.listen import Link

logger = Log("pgsignals.reactor")

#: How long a server may take at the end to send what we have notified, and to forget our LISTENs
#: on a session that is given back, in seconds.
LAST_ANSWERS = 1.0

#: How soon to retry, at the end, what waits for another's statement, in seconds.
LAST_TRIES = 0.1


def wait_for_answers(
    staying: Collection[Link],
    others: Collection[Link],
    deadline: Callable[[], float | None],
    is_overfull: Callable[[], bool],
    read: Callable[[float], None],
) -> None:
    """Ask for what is missing, and read until it has come or the time is over.

    :param staying: their sessions are given back, without our LISTENs and settings.
    :param others: the server is to send first what we have notified.
    :param deadline: as in :meth:`Backlog.join`; giving back does not keep to it.
    :param is_overfull: whether there is no room for more notifications.
    :param read: waits for the given number of seconds at most, and queues what arrives.
    """
    for link in staying:
        link.guarded(link.give_back)  # an answer that fetches, too
    fetching: list[Link] = []

    def fetch(link: Link) -> None:
        if link.fetch_own():
            fetching.append(link)

    for link in others:
        link.guarded(partial(fetch, link))
    last = time.monotonic() + LAST_ANSWERS
    while True:
        now, by = time.monotonic(), deadline()
        by = last if by is None else min(by, last)
        unanswered = [link.database.name for link in fetching if link.waits_for_answer]
        if unanswered and now < by and not is_overfull():
            until = by
        elif now < last and any(link.waits_for_answer for link in staying):
            until = last
        else:
            break
        for link in (*staying, *others):
            link.guarded(partial(link.send_again, now))
        read(min(until - now, LAST_TRIES))
    if unanswered and by == last:
        missing = ", ".join(unanswered)
        logger.warning("stop: some of our own notifications may not have arrived from %s", missing)
