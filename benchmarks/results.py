"""Figures of rounds, their medians and ratios."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any, TypeAlias

X: TypeAlias = int | str


@dataclass
class Table:
    """What one benchmark has measured: for each contender and setting a list of figures, one of
    each round, by the name of the measure."""

    title: str
    setting: str
    """What the settings are, such as ``channels``."""
    measures: dict[str, str]
    """Their names, and what each means with its unit; the first is the one that counts."""
    rows: dict[tuple[str, X], dict[str, list[float]]] = field(default_factory=dict)

    def add(self, contender: str, setting: X, **figures: float) -> None:
        """Note what a round has measured."""
        row = self.rows.setdefault((contender, setting), {name: [] for name in self.measures})
        for name, figure in figures.items():
            if name in row:
                row[name].append(figure)

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(contender for contender, _ in self.rows))

    @property
    def settings(self) -> list[X]:
        return list(dict.fromkeys(setting for _, setting in self.rows))

    def median(self, contender: str, setting: X, measure: str = "") -> float | None:
        """None if it was not measured."""
        row = self.rows.get((contender, setting))
        return statistics.median(row[measure or next(iter(self.measures))]) if row else None

    def ratio(
        self, one: str, other: str, setting: X, measure: str = "", against: X | None = None
    ) -> float | None:
        """How many times the figure of *other* that of *one* is: the median of the ratios of the
        rounds, since what disturbs a round disturbs both.

        :param against: the setting of *other*, if it is not the same.
        """
        ours = self.rows.get((one, setting))
        theirs = self.rows.get((other, setting if against is None else against))
        if not (ours and theirs):
            return None
        name = measure or next(iter(self.measures))
        return statistics.median(a / b for a, b in zip(ours[name], theirs[name], strict=True))

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "setting": self.setting,
            "measures": self.measures,
            "rows": [
                {
                    "contender": contender,
                    "setting": setting,
                    **{
                        name: {
                            "median": rounded(statistics.median(figures)),
                            "rounds": [rounded(figure) for figure in figures],
                        }
                        for name, figures in row.items()
                        if figures
                    },
                }
                for (contender, setting), row in self.rows.items()
            ],
        }

    def as_text(self, floor: str = "bare") -> str:
        """A Markdown table of the medians, with ratios to the floor where there is one."""
        compared = floor in self.contenders and len(self.contenders) > 1
        heads = ["", self.setting, *self.measures.values(), *([f"/ {floor}"] if compared else [])]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for contender, setting in self.rows:
            figures = [self.median(contender, setting, name) for name in self.measures]
            if compared:
                figures.append(self.ratio(contender, floor, setting))
            cells = [contender, text(setting), *map(number, figures)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def text(setting: X) -> str:
    return f"{setting:,}" if isinstance(setting, int) else setting


def rounded(value: float) -> float:
    """With four digits that count, which is more than a benchmark knows."""
    return float(f"{value:.4g}")


def number(value: float | None) -> str:
    """With three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Verdict:
    """A goal, and whether it is met."""

    what: str
    against: str
    measured: float
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.measured <= self.limit

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "measured": rounded(self.measured), "met": self.met}

    def as_row(self) -> str:
        """A row of a Markdown table."""
        cells = [self.what, self.against]
        cells += [f"{number(self.measured)}{self.unit}", f"{number(self.limit)}{self.unit}"]
        return f"| {' | '.join(cells)} | {'met' if self.met else '**not met**'} |"
