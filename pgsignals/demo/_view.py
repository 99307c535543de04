"""What the demo shows while it runs: plain lines, or a picture on a terminal."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import textwrap
from collections import deque
from collections.abc import Iterator

from pgsignals.demo._shop import ITEMS, RARE, Shop, Stock

BOLD, DIM, RED, GREEN, CYAN, BANNER = "1", "2", "1;31", "32", "36", "30;43"


def paint(style: str, text: str) -> str:
    """Colour *text* on a terminal, unless NO_COLOR is set."""
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def wrapped(text: str, margin: int = 0) -> str:
    """Wrap *text* at words to fit the terminal, indented by *margin* columns."""
    if not sys.stdout.isatty():
        return text
    width, blank = max(shutil.get_terminal_size().columns - 1, margin + 20), " " * margin
    lines = textwrap.wrap(
        text, width, initial_indent=blank, subsequent_indent=blank, break_on_hyphens=False
    )
    return "\n".join(lines)[margin:]


def counted(number: int, noun: str) -> str:
    """Count a noun, such as ``2 gaps``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percentiles(seconds: list[float]) -> str:
    """Summarize how *seconds* are distributed."""
    if not seconds:
        return "none yet"
    ordered = sorted(seconds)
    p50, p95, p99 = (1000 * ordered[int(len(ordered) * part)] for part in (0.50, 0.95, 0.99))
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms"


class Lines:
    """Plain lines: events, and a summary every second."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._news = self._calls = 0
        self._since = 0.0

    def update(self) -> None:
        """Print what is new since the last call."""
        shop, now = self._shop, self._shop.elapsed
        for moment, text in shop.news[self._news :]:
            self._news += 1
            print(f"{moment:5.1f} s  {wrapped(text, 9)}", flush=True)
        if int(now) > int(self._since):
            with shop.lock:
                orders, calls, latencies = len(shop.orders), shop.calls, shop.latencies[-1000:]
            rate = (calls - self._calls) / (now - self._since)
            self._since, self._calls = now, calls
            line = f"{orders} orders, {rate:.0f} notifications/s, latency {percentiles(latencies)}"
            print(f"{now:5.1f} s  {wrapped(line, 9)}", flush=True)


class Picture:
    """A picture that is redrawn in place."""

    # Each frame restores the cursor and the wrapping of lines.
    BEGIN, END = "\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h"

    def __init__(self, shop: Shop, seconds: float) -> None:
        self._shop = shop
        self._seconds = seconds
        self._height = 0
        self._samples = deque([(shop.elapsed, 0)], maxlen=41)

    def update(self) -> None:
        """Redraw the picture."""
        columns, rows = shutil.get_terminal_size()
        columns -= 1  # erasing the rest of a full line would remove its last character
        with self._shop.lock:
            if self._shop.elapsed >= self._samples[-1][0] + 0.2:
                self._samples.append((self._shop.elapsed, self._shop.calls))
            parts = [*self._head(columns), "", *self._tables(columns), "", *self._news(columns)]
        lines = "\n".join(parts).split("\n")[: rows - 1]
        up = f"\x1b[{self._height}A" if self._height else ""
        self._height = len(lines)
        frame = "".join(f"{line}\x1b[K\n" for line in lines)
        sys.stdout.write(f"{self.BEGIN}\r{up}{frame}\x1b[J{self.END}")
        sys.stdout.flush()

    def _head(self, columns: int) -> Iterator[str]:
        shop = self._shop
        now = min(shop.elapsed, self._seconds)
        length = min(40, columns - 18)
        bar = "━" * round(length * now / self._seconds)
        link = (
            paint(GREEN, "● listening")
            if shop.link == "listening"
            else paint(RED, f"○ {shop.link}")
        )
        rates = [
            (calls - before) / (moment - since)
            for (since, before), (moment, calls) in itertools.pairwise(self._samples)
        ] or [0.0]
        line = "".join(" ▁▂▃▄▅▆▇█"[round(8 * rate / (max(rates) or 1))] for rate in rates)
        rest = "─" * (length - len(bar))
        width = max(1, min(40, columns - 30))
        yield f"{paint(CYAN, bar)}{paint(DIM, rest)} {now:.1f} of {self._seconds:g} s"
        yield ""
        yield f"link     {link}, gaps: {shop.gaps}"
        yield f"orders   {len(shop.notified)} notified, {len(shop.read - shop.notified)} caught up"
        yield f"latency  {wrapped(percentiles(shop.latencies[-1000:]), 9)}"
        yield f"rate     {paint(CYAN, f'{line[-width:]:{width}}')}{rates[-1]:5.0f} notifications/s"

    def _tables(self, columns: int) -> Iterator[str]:
        beside = columns >= 54  # otherwise there is room for one table only
        width = min(24, columns - 46) if beside else max(4, min(24, columns - 16))
        orders = "LATEST ORDERS" if beside else ""
        yield paint(BOLD, f"{'THE CACHE OF THE STOCK':{width + 16}}{orders}".rstrip())
        for item, order in itertools.zip_longest((*ITEMS, RARE), self._shop.latest, fillvalue=""):
            quantity = self._shop.stock.get(item, Stock(0, 0)).quantity
            bar = "█" * round(quantity * (width - 4) / 55)
            yield f"{item:10}{quantity:4} {paint(CYAN, f'{bar:{width}}')} {order if beside else ''}"

    def _news(self, columns: int) -> Iterator[str]:
        width = min(79, columns)
        for moment, text in self._shop.news[-4:]:
            style = BANNER if self._shop.elapsed < moment + 3 else DIM
            for line in f"{moment:5.1f} s  {wrapped(text, 9)}".split("\n"):
                yield paint(style, f"{line:{width}}")


def view(shop: Shop, seconds: float) -> Lines | Picture:
    """A picture if the terminal can show one, else plain lines."""
    able = os.environ.get("TERM", "dumb") != "dumb" and sys.stdout.encoding.lower() == "utf-8"
    return Picture(shop, seconds) if able and sys.stdout.isatty() else Lines(shop)
