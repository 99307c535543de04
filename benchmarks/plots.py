"""Draws what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.results import Table, number

#: The same figures give the same file, and its text stays text.
STYLE = {
    "svg.hashsalt": "pgsignals",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.figsize": (7, 3),
}

#: Ours in colour, others in grey.
COLOURS = {
    "bare": "#333333",
    "psycopg": "#7a7a7a",
    "psycopg+blinker": "#9c9c9c",
    "psycopg2": "#5f6b76",
    "asyncpg": "#8fa1b0",
    "py-postgresql": "#b9b9b9",
    "manager": "#2e6da4",
    "wait": "#2d8659",
    "reactor": "#b03a2e",
    "reactor-block": "#c96a4a",
    "reactor-default": "#d98b5f",
    "reactor-batch": "#8e44ad",
    "notifier": "#333333",
}


def draw(tables: dict[str, Table], directory: Path) -> None:
    """Write one SVG for each table that has more than one setting or contender to compare."""
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, table in tables.items():
            if name not in DRAWN or not table.rows:
                continue
            figure = Figure(layout="constrained")  # no pyplot, which looks for a screen
            axes = figure.subplots()
            figure.set_figheight(max(3, 1 + 0.35 * len(table.contenders)))
            DRAWN[name](axes, table)
            axes.set_title(table.title, loc="left", fontsize=10)
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})


def lines(axes: Any, table: Table) -> None:
    """The first measure over the settings, both logarithmic."""
    for contender in table.contenders:
        xs = [x for x in table.settings if (contender, x) in table.rows]
        ys = [table.median(contender, x) for x in xs]
        axes.plot(xs, ys, marker="o", color=COLOURS[contender], label=contender)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(table.settings, [number(float(x)) for x in table.settings])
    axes.minorticks_off()
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500) if within(axes, tick)]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel(table.setting)
    axes.set_ylabel(next(iter(table.measures.values())))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def within(axes: Any, value: float) -> bool:
    low, high = axes.get_ylim()
    return bool(low <= value <= high)


def bars(axes: Any, table: Table) -> None:
    """The first measure, with a group of bars for each contender."""
    measure, label = next(iter(table.measures.items()))
    series = [(f"{table.setting}: {x}", x, measure) for x in table.settings]
    grouped(axes, table, series)
    axes.set_xlabel(label)


def percentiles(axes: Any, table: Table) -> None:
    """Every measure, with a group of bars for each contender."""
    (setting,) = table.settings
    grouped(axes, table, [(label, setting, name) for name, label in table.measures.items()])


def grouped(axes: Any, table: Table, series: list[tuple[str, Any, str]]) -> None:
    """Horizontal bars; the first series is full, the next ones are paler."""
    names = list(reversed(table.contenders))
    height = 0.8 / len(series)
    for index, (label, setting, measure) in enumerate(series):
        at = [place + (len(series) / 2 - index - 0.5) * height for place in range(len(names))]
        values = [table.median(name, setting, measure) or 0.0 for name in names]
        alpha = 1.0 - 0.5 * index / max(1, len(series) - 1)
        drawn = axes.barh(at, values, height, color=[COLOURS[name] for name in names], alpha=alpha)
        axes.bar_label(drawn, [number(value) for value in values], padding=2, fontsize=7)
        axes.barh([0], [0], color="black", alpha=alpha, label=label)  # for the legend
    axes.set_yticks(range(len(names)), names)
    axes.figure.legend(frameon=False, loc="outside lower center", ncols=len(series))


DRAWN = {
    "throughput": bars,
    "latency": percentiles,
    "connections": lines,
    "channels": lines,
    "handlers": lines,
    "payloads": lines,
    "tls": bars,
    "workers": bars,
    "listeners": bars,
}
