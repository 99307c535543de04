"""What links say to their servers, LISTEN and NOTIFY apart.  Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

WHO = "SELECT pg_backend_pid(), pg_is_in_recovery()"

# The server drops us when we are gone, so that a ghost of ours never holds its queue; and an idle
# listener is no idle session.  Over a Unix socket the first four have no effect.
GUARDS = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "idle_session_timeout": "0",
}
UNGUARD = "; ".join(f"RESET {name}" for name in GUARDS)


def guard(*, patient: bool) -> str:
    """Set :data:`GUARDS`.

    :param patient: the server is to wait for a client that does not read.
    """
    guards = {**GUARDS, "tcp_user_timeout": "0"} if patient else GUARDS
    return "; ".join(f"SET {name} = {value}" for name, value in guards.items())


# pg_notification_queue_usage() also repairs a queue that stays full after its culprit has gone.
# The sum over the channels' hashes tells what the session still listens to, at any number.
ROUND_TRIP = (
    "SELECT pg_notification_queue_usage(), pg_is_in_recovery(), (SELECT coalesce(sum(('x' || "
    "substr(encode(sha256(textsend(c)), 'hex'), 1, 15))::bit(60)::bigint), 0) "
    "FROM pg_listening_channels() AS t(c))"
)

# A session reads the queue between its transactions, and only as fast as its client reads.
QUEUE_HOLDERS = (
    "SELECT format('pid %s (%s, database %s), %s since %s%s', pid, "
    "coalesce(nullif(application_name, ''), 'no name'), datname, state, state_change, "
    "coalesce(', waits for ' || wait_event, '')) FROM pg_stat_activity "
    "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() "
    "AND (state LIKE 'idle in transaction%' OR wait_event = 'ClientWrite') "
    "ORDER BY coalesce(xact_start, state_change) LIMIT 3"
)


def digest_of(channels: Iterable[str]) -> int:
    """What :data:`ROUND_TRIP` says of a session that listens to *channels*."""
    return sum(
        int(hashlib.sha256(channel.encode("utf-8", "surrogateescape")).hexdigest()[:15], 16)
        for channel in channels
    )
