"""``pgsignals top``: traffic on channels, live."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator

from pgsignals.cli._watch import Picture, Watch
from pgsignals.cli.arguments import (
    FAILED,
    NAME,
    PATIENCE,
    WHERE,
    Commands,
    add_command,
    add_dsns,
    add_probes,
    channel_name,
    databases_of,
    duration,
    seconds,
)
from pgsignals.cli.extras import require
from pgsignals.cli.terminal import can_draw, escape, put, say
from pgsignals.reactor import Reactor

ABOUT = """\
Show live traffic on channels: for each channel how many notifications arrive, and the last payload;
for each database its state, how long it takes to answer, and how full its queue is.

  pgsignals top orders stock
  pgsignals top orders --dsn service=shop --dsn service=warehouse
  pgsignals top                            databases only
  pgsignals top orders --json | jq -c '.channels[]'
  pgsignals top orders --interval 10 >> orders.log

  p, space   pause the display; counting continues
  f, /       filter channels by name: Enter keeps the filter, Esc clears it
  s          change the order: as given, per second, total, name
  ?          show or hide this help
  q          quit

If the output is not a terminal, it prints plain lines, or with --json an object, every --interval.
"""

ABOUT_STATUS = f"""\
{WHERE}
Exit status: 0 after q, at the end of --timeout, or when the output is closed; 1 if the first
connection failed; 130 after Ctrl-C, 143 after SIGTERM.
"""


def add(commands: Commands) -> None:
    """Define ``pgsignals top`` and its options."""
    parser = add_command(commands, "top", "watch channels live", ABOUT, ABOUT_STATUS, top)
    parser.add_argument("channels", metavar="CHANNEL", nargs="*", type=channel_name, help=NAME)
    add_dsns(parser)
    parser.add_argument(
        "--interval",
        metavar="S",
        type=duration,
        default=1.0,
        help="seconds between updates, 1 by default",
    )
    parser.add_argument("--timeout", metavar="S", type=seconds, help="exit after S seconds")
    add_probes(parser, 2.0)  # someone is watching
    parser.add_argument("--json", action="store_true", help="print a JSON object per interval")


# -- lines ---------------------------------------------------------------------------------------


def plain(picture: Picture) -> Iterator[str]:
    """A line for each database and each channel."""
    at = picture.at.isoformat("T", "milliseconds")
    for status in picture.databases:
        probe = "-" if status.probe_seconds is None else f"{1000 * status.probe_seconds:.1f} ms"
        queue = "-" if status.queue_usage is None else f"{100 * status.queue_usage:.4g} %"
        yield (
            f"{at}\t{escape(status.name)}\t{status.state}\tprobe {probe}\tqueue {queue}"
            f"\tgaps {status.gaps}\tdropped {status.dropped}"
        )
    for row in picture.rows:
        yield (
            f"{at}\t{escape(row.database)}\t{escape(row.channel)}\t{row.rates[-1]:.1f}/s"
            f"\ttotal {row.total}\t{escape(row.payload or '')}"
        )


def as_json(picture: Picture) -> str:
    """The same as a JSON object."""
    channels = [
        {
            "database": row.database,
            "channel": row.channel,
            "per_second": row.rates[-1],
            "total": row.total,
            "payload": row.payload,
        }
        for row in picture.rows
    ]
    return json.dumps(
        {
            "time": picture.at.isoformat(),
            "databases": [dataclasses.asdict(status) for status in picture.databases],
            "channels": channels,
        }
    )


def print_lines(
    watch: Watch, reactor: Reactor, interval: float, until: float, *, as_objects: bool
) -> None:
    """Print the picture every *interval*, until the time is up or the reactor has stopped."""
    due = time.monotonic()
    while reactor.running and (now := time.monotonic()) < until:
        due = min(max(due + interval, now), until)
        time.sleep(max(0.0, due - now))
        watch.turn()
        picture = watch.picture()
        for line in [as_json(picture)] if as_objects else plain(picture):
            put(sys.stdout, line)


# -- all together --------------------------------------------------------------------------------


def top(args: argparse.Namespace) -> int:
    """Watch the channels, and return the exit status."""
    on_screen = can_draw(sys.stdout) and not args.json
    if on_screen:
        require("rich", "pgsignals top")
    reactor = Reactor(
        *databases_of(args),
        channels=args.channels,
        probe_interval=args.probe_interval,
        probe_timeout=args.probe_timeout,
    )
    watch = Watch(reactor, args.channels)
    reactor.start()
    until = math.inf if args.timeout is None else time.monotonic() + args.timeout
    try:
        if on_screen:
            from pgsignals.cli._screen import show

            show(watch, reactor, args.interval, until)
        else:
            print_lines(watch, reactor, args.interval, until, as_objects=args.json)
        has_ended = not reactor.running
    except BrokenPipeError:
        return 0
    finally:
        reactor.stop(PATIENCE)
    if has_ended:
        say("the reactor stopped unexpectedly; this is a bug in pgsignals")
        return FAILED
    return 0
