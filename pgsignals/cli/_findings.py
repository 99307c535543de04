"""What ``pgsignals doctor`` finds, and what to do about a connection that cannot be made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Outcome: TypeAlias = Literal["ok", "note", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What one check has found."""

    check: str
    outcome: Outcome
    detail: str
    advice: str | None = None
    """What to change, None where nothing is to be changed."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same for programs; times in seconds."""


# libpq gives reasons in words only; those of a server that speaks another language than English
# are shown without advice.
ADVICE = {
    r"Connection refused": (
        "nothing listens there: is the server running, with that port, and does its "
        "listen_addresses include that address?"
    ),
    r"could not translate host name|Name or service not known|nodename nor servname": (
        "the host name does not resolve on this machine: check its spelling, and the resolver"
    ),
    r"timeout expired|Connection timed out": (
        "nothing answered: a firewall drops packets, the host is down, or the server hangs"
    ),
    r"No route to host|Network is unreachable": "there is no route from this machine to the host",
    r"No such file or directory": (
        "no server has its socket there: is it running, or is it meant to be reached with host=?"
    ),
    r"password authentication failed|no password supplied": (
        "check user and password; PGPASSFILE or ~/.pgpass keep one out of the command line"
    ),
    r"no pg_hba\.conf entry|pg_hba\.conf rejects": (
        "let pg_hba.conf of the server allow this user, database and address, and reload it"
    ),
    r"(role|database|user) \S+ does not exist|no such database": "check the name, or create it",
    r"too many (clients|connections)|remaining connection slots": (
        "all connections are taken: raise max_connections, or find who keeps them"
    ),
    r"starting up|shutting down|recovery mode": "wait, and try again",
    r"certificate|SSL|TLS": (
        "check sslmode, sslrootcert and that the host's name is the one in the certificate"
    ),
    r"session is read-only": (
        "target_session_attrs=primary: read-write also refuses a primary where the role is "
        "read-only"
    ),
    r"not a hot standby|is in recovery|in hot standby": (
        "none of the hosts is what target_session_attrs asks for"
    ),
    r"too many notifications|queue": (
        "the notification queue is full: end the session that holds it with pg_terminate_backend()"
    ),
    r"definition of service|service file": (
        "PGSERVICEFILE, ~/.pg_service.conf, or pg_service.conf in PGSYSCONFDIR must have it"
    ),
}


def for_refusal(reason: str) -> str | None:
    """What to change when a server, or the network path to it, refuses; None if not known."""
    for pattern, advice in ADVICE.items():
        if re.search(pattern, reason):
            return advice
    return None
