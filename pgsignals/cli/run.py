"""``pgsignals run``: handlers as a service in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
    seconds,
)
from pgsignals.cli.extras import require
from pgsignals.cli.terminal import say
from pgsignals.errors import Error
from pgsignals.reactor import Reactor

logger = logging.getLogger(__name__)

ABOUT = """\
Import a module and run its handlers, until SIGTERM or Ctrl-C.

  pgsignals run shop.handlers
  pgsignals run shop.handlers --dsn service=shop --dsn service=warehouse --workers 4
  pgsignals run shop.handlers:reactor
  pgsignals run shop.handlers --log json --metrics 9187 --stop-timeout 30

MODULE is imported as from a script in this directory. Its functions under @on_channel are served by
a reactor that this command makes. MODULE:REACTOR is a Reactor that the module has made itself; it
knows its databases and its settings.

SIGTERM and Ctrl-C stop it: it reads no more, and runs the handlers of what it has received, for
--stop-timeout seconds at most. A second one stops it at once.

--metrics serves http://127.0.0.1:PORT/metrics for Prometheus, and /healthz, which answers 200 when
every database is listened to and 503 when one is not, with JSON that says which. With HOST:PORT
others can reach it: 0.0.0.0:9187.
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 after a stop with everything handled; 1 when a database could not be listened to at
the start, when the module cannot be imported, when the reactor ended by itself, or when the time of
a stop ran out; 2 not understood.
"""


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(commands, "run", "run handlers as a service", ABOUT, ABOUT_STATUS, run)
    parser.add_argument("target", metavar="MODULE[:REACTOR]", help="what to import and run")
    add_dsns(parser)
    parser.add_argument(
        "--workers", metavar="N", type=count, default=1, help="threads for handlers, 1 by default"
    )
    add_probes(parser)
    parser.add_argument(
        "--stop-timeout",
        metavar="S",
        type=seconds,
        default=10.0,
        help="seconds that a stop gives to handlers, 10 by default",
    )
    parser.add_argument("--log", choices=("text", "json"), default="text", help="text or json")
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="the least that is logged, info by default",
    )
    parser.add_argument(
        "--metrics", metavar="[HOST:]PORT", type=address, help="serve /metrics and /healthz there"
    )


def run(args: argparse.Namespace) -> int:
    """Run it."""
    log_to_stderr(args.log, args.log_level)
    module, _, attribute = args.target.partition(":")
    if attribute and args.dsn is not None:
        say("--dsn is for a reactor that this command makes, and MODULE:REACTOR names another one")
        return MISUSED
    sys.path.insert(0, os.getcwd())
    try:
        reactor = load(module, attribute, args)
    except NotFoundError as error:
        logger.critical("%s", error)
        return FAILED
    except Exception:
        logger.critical("%s cannot be imported", module, exc_info=True)
        return FAILED
    clean = False
    with contextlib.ExitStack() as stack:
        if args.metrics is not None:
            require("prometheus_client", "pgsignals run --metrics")
            from pgsignals.cli._metrics import serve

            stack.enter_context(serve(reactor, args.metrics))
        try:
            reactor.run(args.stop_timeout)
        except Error as error:
            logger.critical("%s", error)
            return FAILED
        finally:
            clean = reactor.stop(args.stop_timeout)  # after another end than a stop
    return 0 if clean else FAILED


class NotFoundError(Error, LookupError):
    """There is nothing to run under the name that was given."""


def load(module: str, attribute: str, args: argparse.Namespace) -> Reactor:
    """The reactor to run.  Whatever the module raises passes through.

    :raises NotFoundError: there is no such module or reactor, or nothing is to be handled.
    """
    try:
        loaded: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        dotted = ".".join(Path(module.removesuffix(".py")).parts)
        hint = f"; did you mean {dotted}?" if dotted != module else ""
        raise NotFoundError(f"no module {error.name} here or on Python's path{hint}") from None
    if attribute:
        return reactor_in(loaded, attribute)
    reactor = Reactor(
        *databases_of(args),
        workers=args.workers,
        probe_interval=args.probe_interval,
        probe_timeout=args.probe_timeout,
    )
    if not any(reactor.wanted(database) for database in reactor.databases):
        raise NotFoundError(
            f"{module} registers no handlers: put @pgsignals.on_channel(...) above a function, or "
            f"name a Reactor of its own: {module}:reactor"
        )
    return reactor


def reactor_in(module: Any, name: str) -> Reactor:
    """The reactor called *name* in a module, or within something in it."""
    found = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise NotFoundError(f"{module.__name__} has no {name}") from None
    if not isinstance(found, Reactor):
        raise NotFoundError(f"{module.__name__}:{name} is a {type(found).__name__}, not a Reactor")
    return found


def address(text: str) -> tuple[str, int]:
    """What ``--metrics`` names; without a host, this machine alone can reach it."""
    host, _, port = text.rpartition(":")
    if port.isascii() and port.isdigit() and int(port) < 65_536:
        return host.strip("[]") or "127.0.0.1", int(port)
    raise argparse.ArgumentTypeError(f"{text!r} is neither PORT nor HOST:PORT")


# -- the log -------------------------------------------------------------------------------------


class JsonFormatter(logging.Formatter):
    """A JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
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
    """Log everything from *level* on; a program that sets up logging itself adds to it."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("pgsignals").setLevel(logging.NOTSET)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)
