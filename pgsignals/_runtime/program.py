"""What kind of program we run in: whether its threads run, and whether a thread may be blocked."""

from __future__ import annotations

import sys

from pgsignals.errors import ConnectionStateError


def runs_event_loop() -> bool:
    """Whether the calling thread runs an asyncio event loop, which must not be blocked."""
    events = sys.modules.get("asyncio.events")  # without it there is no loop
    get_loop = getattr(events, "get_running_loop", None)
    try:
        return get_loop is not None and bool(get_loop())
    except RuntimeError:  # none runs here
        return False


def check_threads() -> None:
    """Refuse a uWSGI that runs no Python threads, at least between requests.

    :raises ConnectionStateError: saying which option is missing.
    """
    uwsgi = sys.modules.get("uwsgi")  # made by uWSGI itself
    options = getattr(uwsgi, "opt", None)
    if not isinstance(options, dict):
        return
    runs = getattr(uwsgi, "has_threads", None)
    if runs is None:  # an older one; "threads" turns them on, and so does an event loop
        names = {name.decode() if isinstance(name, bytes) else name for name in options}
        runs = names & {"enable-threads", "threads", "gevent", "asyncio"}
    if not runs:
        raise ConnectionStateError(
            "start(): uWSGI runs no Python threads, so nothing would ever arrive; "
            "start it with --enable-threads"
        )
