"""A finding of ``pgsignals doctor``, and advice for connections that fail."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Outcome: TypeAlias = Literal["ok", "note", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    outcome: Outcome
    detail: str
    advice: str | None = None
    """What to change; None if there is nothing to change."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The same in machine-readable form; times in seconds."""


# libpq gives reasons in words only; those in a language other than English are shown without
# advice.
ADVICE = {
    r"Connection refused": (
        "nothing listens there: is the server running on that port, and does its "
        "listen_addresses include that address?"
    ),
    r"could not translate host name|Name or service not known|nodename nor servname": (
        "this machine cannot resolve the host name: check its spelling, and the resolver"
    ),
    r"timeout expired|Connection timed out": (
        "nothing answered: a firewall drops packets, the host is down, or the server hangs"
    ),
    r"No route to host|Network is unreachable": "this machine has no route to the host",
    r"No such file or directory": (
        "no server has its socket there: is it running, or did you mean to set host=?"
    ),
    r"password authentication failed|no password supplied": (
        "check user and password; PGPASSFILE or ~/.pgpass keeps a password off the command line"
    ),
    r"no pg_hba\.conf entry|pg_hba\.conf rejects": (
        "allow this user, database and address in the server's pg_hba.conf, and reload it"
    ),
    r"(role|database|user) \S+ does not exist|no such database": "check the name, or create it",
    r"too many (clients|connections)|remaining connection slots": (
        "all connections are in use: raise max_connections, or find out what holds them"
    ),
    r"starting up|shutting down|recovery mode": "wait, and try again",
    r"certificate|SSL|TLS": (
        "check sslmode and sslrootcert, and that the certificate names this host"
    ),
    r"session is read-only": (
        "use target_session_attrs=primary: read-write also rejects a primary where the role is "
        "read-only"
    ),
    r"not a hot standby|is in recovery|in hot standby": (
        "none of the hosts matches target_session_attrs"
    ),
    r"too many notifications|queue": (
        "the notification queue is full: end the session that holds it with pg_terminate_backend()"
    ),
    r"definition of service|service file": (
        "define it in PGSERVICEFILE, ~/.pg_service.conf, or pg_service.conf in PGSYSCONFDIR"
    ),
}


def for_refusal(reason: str) -> str | None:
    """Advice for an error of a server or of the network; None for an unknown one."""
    for pattern, advice in ADVICE.items():
        if re.search(pattern, reason):
            return advice
    return None
