"""Handlers that receive dataclasses, whose types mypy checks.

::

    python examples/typed_handlers.py postgresql://app@localhost/shop
    mypy --strict examples/typed_handlers.py

Without an argument it uses DATABASE_URL, else libpq's own variables.  Change ``value: Order`` to
``value: int`` and run mypy again.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
from dataclasses import asdict, dataclass, field
from typing import Any

from pgsignals import Database, Notification, Reactor

PATIENCE = 20.0


@dataclass(frozen=True)
class Line:
    item: str
    cents: int


@dataclass(frozen=True)
class Order:
    number: int
    lines: list[Line] = field(default_factory=list)
    note: str | None = None

    @property
    def cents(self) -> int:
        """The sum of its lines."""
        return sum(line.cents for line in self.lines)


class Till:
    """Counts what is ordered.  Its methods run on the worker."""

    def __init__(self, reactor: Reactor) -> None:
        self.events: queue.SimpleQueue[str] = queue.SimpleQueue()
        reactor.on_channel("example_orders", decode=Order)(self.enter)
        reactor.on_channel("example_rates", decode=float)(self.convert)
        reactor.handler_failed.connect(self.refuse)

    def enter(self, db: Database, notification: Notification, value: Order) -> None:
        """The payload is a JSON object that fits the dataclass."""
        self.events.put(f"order {value.number}: {len(value.lines)} lines, {value.cents} cents")

    def convert(self, db: Database, notification: Notification, value: float) -> None:
        """A decode is any callable that takes a str; what it returns is the value."""
        self.events.put(f"rate: {value:.2f}")

    def refuse(self, db: Database, *, error: BaseException, **_: Any) -> None:
        """The error names the field, not the payload."""
        self.events.put(f"refused: {error}")


def main(argv: list[str] | None = None) -> int:
    """Run the example; 0 if everything has arrived."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dsn", nargs="?", default=os.environ.get("DATABASE_URL", ""))
    dsn: str = parser.parse_args(argv).dsn

    reactor = Reactor(dsn)
    till = Till(reactor)
    order = Order(42, [Line("cup", 300), Line("teapot", 1500)])
    payloads = (json.dumps(asdict(order)), '{"number": 43}', '{"number": "44"}')
    expected = [
        "order 42: 2 lines, 1800 cents",
        "order 43: 0 lines, 0 cents",
        "refused: Order.number must be a whole number, not text",
        "rate: 1.25",
    ]
    with reactor:
        reactor.notify(*(("example_orders", payload) for payload in payloads), example_rates="1.25")
        for line in expected:
            event = till.events.get(timeout=PATIENCE)
            print(event)
            if event != line:
                return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
