"""Takes notifications out of libpq's buffer, as fast as Python can.

psycopg's ``Connection.notifies()`` is not used: it holds the connection's lock while suspended
(psycopg issue 1310), and its notify handlers decode strictly, so that one bad payload loses its
neighbours.  libpq's own calls, ``PQconsumeInput`` and ``PQnotifies``, do neither.
"""

from __future__ import annotations

from itertools import islice, repeat

from psycopg import pq

from pgsignals._pure.burst import Burst, new_tuple, to_notifications
from pgsignals._pure.values import Notification
from pgsignals._wire.encodings import BYTES_AS_TEXT, Texts

#: This many notifications are made one by one; columns pay off for what libpq holds beyond that.
FEW = 16

#: Notifications that are taken from libpq at once: few enough not to set off the garbage
#: collector, which runs after 700 new objects.
CHUNK = 200

#: A read of fewer bytes has found the socket's end.
SMALL = 4096


def take_notifies(
    pgconn: pq.abc.PGconn, texts: Texts, fresh: list[Notification] | Burst, most: int
) -> tuple[int, bool]:
    """Move what libpq holds to *fresh*, at most this many, and return how many, and whether
    there may be more, here or in the socket."""
    notifies, names = pgconn.notifies, texts.names
    taken = size = 0
    while taken < FEW and taken < most:
        if (notify := notifies()) is None:
            return taken, size >= SMALL
        relname, pid, extra = notify
        text = str(extra, names.encoding, BYTES_AS_TEXT)
        fresh.append(new_tuple(Notification, (names[relname], text, pid)))
        size += len(extra)
        taken += 1
    while raw := list(islice(iter(notifies, None), min(most - taken, CHUNK))):
        # Column by column, so that the loops are C's.
        relnames, pids, extras = zip(*raw, strict=True)
        channels, payloads = map(names.__getitem__, relnames), texts.texts(extras)
        if isinstance(fresh, Burst):
            same = pids.count(pids[0]) == len(pids)  # of one sender: one number for all
            fresh.extend(channels, payloads, repeat(pids[0], len(pids)) if same else pids)
        else:
            fresh += to_notifications(zip(channels, payloads, pids, strict=True))
        taken += len(pids)
    return taken, True
