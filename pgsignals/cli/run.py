"""``pgsignals run``: handlers as a service in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import math
import os
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from pgsignals._dispatch.checks import describe
from pgsignals._dispatch.ordered import OrderedSignal, calls_for
from pgsignals._pure.backoff import Backoff
from pgsignals._wire.opening import needs_care
from pgsignals.cli.arguments import (
    FAILED,
    MISUSED,
    WHERE,
    Commands,
    add_command,
    add_dsns,
    add_probes,
    count,
    databases_of,
    message_for,
    seconds,
)
from pgsignals.cli.extras import require
from pgsignals.cli.terminal import escape, say
from pgsignals.database import Database
from pgsignals.errors import ConnectError, Error
from pgsignals.reactor import Reactor

logger = logging.getLogger("pgsignals.run")

ABOUT = """\
Import a module and run its handlers until SIGTERM or Ctrl-C.

  pgsignals run shop.handlers
  pgsignals run shop.handlers --dsn service=shop --dsn service=warehouse --workers 4
  pgsignals run shop.handlers:reactor
  pgsignals run shop.handlers --wait 60
  pgsignals run shop.handlers --log json --metrics 9187 --stop-timeout 30

MODULE is imported as a script in this directory would import it. This command makes a reactor for
its @on_channel functions. MODULE:REACTOR is a Reactor that the module has made itself, with its own
databases and settings: DATABASE_URL is ignored, and --dsn, --workers and --probe-* are rejected.

The log says at startup what is served, and at the end how much was handled.

--wait keeps retrying, for S seconds or without limit, while a database cannot be reached at
startup: it is down or starting up, its host name does not resolve, or it has not been created yet.
Errors that waiting cannot fix end the command at once: a rejected login, a certificate, a standby,
a pooler that loses notifications.

On SIGTERM or Ctrl-C it stops reading, runs the handlers of what it has received, for up to
--stop-timeout seconds, and exits. A second signal ends it at once.

--metrics serves http://127.0.0.1:PORT/metrics for Prometheus, and /healthz, which answers 200 while
every database is listened to, else 503, with JSON that says which one is not. HOST:PORT, such as
0.0.0.0:9187, makes it reachable from other machines.
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 after a stop with everything handled; 1 if a database could not be listened to at
startup, the module cannot be imported or has nothing to run, the reactor stopped unexpectedly, or
--stop-timeout ran out; 2 usage error.
"""

# Failures that waiting cannot fix.  libpq gives reasons in words only; a rejection in a language
# other than English is retried, as if the server were down.
_STAYS = re.compile(
    r"cannot be read|definition of service|service file|certificate|does not support SSL|"
    r"invalid \S+ value|invalid port"
)
_NO_DATABASE = re.compile(r'database "[^"]*" does not exist')

#: Bounds of the first and of the longest wait between two attempts, in seconds.
BACKOFF = (0.5, 10.0)


def add(commands: Commands) -> None:
    """Define ``pgsignals run`` and its options."""
    parser = add_command(commands, "run", "run handlers as a service", ABOUT, ABOUT_STATUS, run)
    parser.add_argument("target", metavar="MODULE[:REACTOR]", help="what to import and run")
    add_dsns(parser)
    parser.add_argument(
        "--workers", metavar="N", type=count, help="threads that run handlers, 1 by default"
    )
    add_probes(parser)
    parser.set_defaults(probe_interval=None, probe_timeout=None)  # a Reactor's own are the same
    parser.add_argument(
        "--wait",
        metavar="S",
        nargs="?",
        type=seconds,
        const=math.inf,
        help="wait up to S seconds for a database to come up; without S, no limit",
    )
    parser.bare["--wait"] = "inf"
    parser.add_argument(
        "--stop-timeout",
        metavar="S",
        type=seconds,
        default=10.0,
        help="seconds to let handlers finish at a stop, 10 by default",
    )
    parser.add_argument(
        "--log", choices=("text", "json"), default="text", help="format of the log, text by default"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="lowest level to log, info by default",
    )
    parser.add_argument(
        "--metrics", metavar="[HOST:]PORT", type=address, help="serve /metrics and /healthz there"
    )


def run(args: argparse.Namespace) -> int:
    """Run the module's handlers until they are stopped, and return the exit status."""
    log_to_stderr(args.log, args.log_level)
    module, colon, attribute = args.target.partition(":")
    if not module or bool(colon) != bool(attribute):
        say(f"the target must be MODULE or MODULE:REACTOR, not {args.target!r}")
        return MISUSED
    own = ("dsn", "workers", "probe_interval", "probe_timeout")
    given = {name: value for name in own if (value := getattr(args, name)) is not None}
    if attribute and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        say(f"{options} cannot be used with MODULE:REACTOR, whose reactor has its own settings")
        return MISUSED
    given.pop("dsn", None)
    sys.path.insert(0, os.getcwd())
    try:
        loaded = load(module)
        if attribute:
            reactor = reactor_in(loaded, attribute)
        else:
            reactor = Reactor(*databases_of(args), **given)
        check_handlers(reactor, args.target)
    except NotFoundError as error:
        logger.critical("%s", error)
        return FAILED
    except Exception as error:
        frames = module_frames(error)
        logger.critical("%s cannot be imported", module, exc_info=(type(error), error, frames))
        return FAILED
    return serve_until_stopped(reactor, args)


# -- what to run ---------------------------------------------------------------------------------


class NotFoundError(Error, LookupError):
    """The target names nothing that can be run."""


def load(module: str) -> ModuleType:
    """Import *module*.  What it raises passes through.

    :raises NotFoundError: no such module.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        dotted = ".".join(Path(module.removesuffix(".py")).parts)
        hint = f"; did you mean {dotted}?" if dotted != module else ""
        raise NotFoundError(f"no module {error.name} here or on Python's path{hint}") from None


def reactor_in(module: ModuleType, name: str) -> Reactor:
    """Find the reactor called *name*, which may be dotted, in *module*.

    :raises NotFoundError: *module* has no such name, or it is not a Reactor.
    """
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise NotFoundError(f"{module.__name__} has no {name}") from None
    if not isinstance(found, Reactor):
        kind = type(found).__name__
        raise NotFoundError(f"{module.__name__}:{name} must be a Reactor, not {kind}")
    return found


def check_handlers(reactor: Reactor, target: str) -> None:
    """Reject a reactor that would run without ever calling anything.

    :raises NotFoundError: it has no handlers.
    """
    if any(handlers for _, handlers, _ in served(reactor)):
        return
    has_reactor = ":" in target
    decorator = "@reactor.on_channel(...)" if has_reactor else "@pgsignals.on_channel(...)"
    hint = "" if has_reactor else f", or name its own Reactor: {target}:reactor"
    text = (
        f"{target} registers no handlers, so it would never receive anything: put {decorator} "
        f"above a function{hint}"
    )
    later = any(called_by(reactor.connected, database) for database in reactor.databases)
    if not later and not any(map(reactor._engine.interest.wanted, reactor.databases)):
        raise NotFoundError(text)
    logger.warning("%s", text)  # some may be registered while it runs


def served(reactor: Reactor) -> Iterator[tuple[str, list[str], list[Database]]]:
    """Yield each channel with the names of its handlers, and the databases where they apply."""
    interest = reactor._engine.interest
    found: dict[tuple[str, tuple[str, ...]], list[Database]] = {}
    for database in reactor.databases:
        for channel in sorted(interest.wanted(database)):
            handlers = interest.handlers_of(channel, database)
            handlers += called_by(reactor.any_channel, database)
            names = tuple(map(describe, handlers))
            found.setdefault((channel, names), []).append(database)
    for (channel, names), databases in found.items():
        yield channel, list(names), databases


def called_by(signal: OrderedSignal, database: Database) -> list[Callable[..., object]]:
    """The receivers of *signal* for *database*."""
    found = (call.handler() for call in calls_for(signal, database))
    return [receiver for receiver in found if receiver is not None]


def module_frames(error: BaseException) -> TracebackType | None:
    """The traceback of *error* without the leading frames of this file and of importlib."""
    frames = error.__traceback__
    while frames is not None:
        file = frames.tb_frame.f_code.co_filename
        if file not in (__file__, importlib.__file__) and not file.startswith("<frozen importlib"):
            break
        frames = frames.tb_next
    return frames


# -- running it ----------------------------------------------------------------------------------


def serve_until_stopped(reactor: Reactor, args: argparse.Namespace) -> int:
    """Run the reactor until it stops, and return the exit status."""
    clean = ran = False
    with contextlib.ExitStack() as stack:
        if args.metrics is not None:
            require("prometheus_client", "pgsignals run --metrics")
            from pgsignals.cli._metrics import serve

            stack.enter_context(serve(reactor, args.metrics))
        log_start(reactor)
        try:
            run_or_wait(reactor, args.stop_timeout, args.wait or 0.0)
            ran = True
        except SystemExit as end:
            ran = True
            logger.info("%s: stopping", signal_of(end).name)
            raise
        except Error as error:
            logger.critical("%s", message_for(error, args))
            return FAILED
        finally:
            clean = reactor.stop(args.stop_timeout)  # it may have ended by an error
            if ran:
                log_end(reactor, clean=clean)
    return 0 if clean else FAILED


def run_or_wait(reactor: Reactor, stop_timeout: float, wait: float) -> None:
    """Run the reactor, retrying for up to *wait* seconds while a database is not up yet.

    :raises Error: it cannot start, or stopped unexpectedly.
    """
    backoff, rng, until = Backoff(*BACKOFF), random.Random(), time.monotonic() + wait
    while True:
        try:
            reactor.run(stop_timeout)
        except ConnectError as error:
            left = until - time.monotonic()
            if left <= 0 or not may_recover(error):
                raise
            delay = min(backoff.next_delay(rng), left)
            logger.warning("%s; waiting, attempt %d in %.1f s", error, backoff.failures, delay)
        else:
            return
        try:
            time.sleep(delay)
        except SystemExit as end:
            if signal_of(end) not in (signal.SIGINT, signal.SIGTERM):
                raise
            logger.info("%s: no longer waiting for the database", signal_of(end).name)
            return


def may_recover(error: ConnectError) -> bool:
    """Whether waiting may help: the database may come up."""
    text = _NO_DATABASE.sub("", str(error))
    return not needs_care(ConnectError(text)) and _STAYS.search(text) is None


def signal_of(end: SystemExit) -> signal.Signals:
    """The OS signal that ended the command."""
    return signal.Signals(int(end.code or 0) - 128)


def log_start(reactor: Reactor) -> None:
    """Log what is served."""
    names = ", ".join(database.name for database in reactor.databases)
    workers = reactor.status().workers
    logger.info("serving %s with %d worker%s", names, workers, "" if workers == 1 else "s")
    for channel, handlers, databases in served(reactor):
        where = ""
        if len(databases) < len(reactor.databases):
            where = f" of {', '.join(database.name for database in databases)}"
        called = ", ".join(handlers) or "no handler"
        logger.info("channel %s%s: %s", escape(channel), where, called)


def log_end(reactor: Reactor, *, clean: bool) -> None:
    """Log how much was handled."""
    databases = reactor.status().databases
    logger.log(
        logging.INFO if clean else logging.WARNING,
        "stopped%s: %d notifications handled, %d failures, %d dropped",
        "" if clean else " before everything was handled",
        *(
            sum(getattr(one, name) for one in databases)
            for name in ("dispatched", "failed", "dropped")
        ),
    )


def address(text: str) -> tuple[str, int]:
    """Parse ``[HOST:]PORT``; without a host, only this machine can connect."""
    host, _, port = text.rpartition(":")
    if port.isascii() and port.isdigit() and int(port) < 65_536:
        return host.strip("[]") or "127.0.0.1", int(port)
    raise argparse.ArgumentTypeError(f"must be PORT or HOST:PORT, not {text!r}")


# -- the log -------------------------------------------------------------------------------------


class JsonFormatter(logging.Formatter):
    """Formats each record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        value = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return json.dumps(value)


def log_to_stderr(form: str, level: str) -> None:
    """Log *level* and above to standard error; logging that the module sets up comes on top."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("pgsignals").setLevel(logging.NOTSET)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
