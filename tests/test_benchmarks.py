"""The benchmarks run, and do not believe a contender that lost something."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as program
from benchmarks import contenders, goals
from benchmarks.goals import OURS, QUICK, Options
from benchmarks.results import Table, Verdict
from benchmarks.rig import BenchmarkError, Child, Rig

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks read /proc")

TINY = dataclasses.replace(
    QUICK,
    contenders=OURS,
    count=1000,
    connections=6,
    channels=20,
    databases=2,
    large=2000,
    pairs=20,
    paced=10,
    idle=0.1,
)

SMALLEST = dataclasses.replace(TINY, contenders=("reactor",))


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig(40) as rig:
        yield rig


@pytest.fixture
def table() -> Table:
    """Three rounds of two contenders."""
    table = Table("a title", "channels", {"cpu": "CPU µs", "wall": "wall µs"})
    for theirs, ours in ((1.0, 2.0), (2.0, 6.0), (4.0, 4.0)):
        table.add("bare", 1, cpu=theirs, wall=10.0)
        table.add("reactor", 1, cpu=ours, wall=30.0)
    return table


# -- they run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", program.BENCHMARKS)
def test_benchmark_measures_our_own_contenders(name: str, rig: Rig) -> None:
    few = TINY if name in ("throughput", "latency", "connections") else SMALLEST
    table = program.BENCHMARKS[name](rig, few)

    assert table.rows or "no server with TLS" in table.title
    assert all(figures for row in table.rows.values() for figures in row.values())
    wanted = [g for g in goals.goals(TINY) if g.benchmark == name and g.against in (g.ours, None)]
    assert all(goal.verdict(table) for goal in wanted)


def test_command_prints_and_writes_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(goals, "QUICK", TINY)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- notify -->\nold\n<!-- end -->\nafter\n", "utf-8")
    arguments = ["--quick", "--only", "notify", "--json", str(tmp_path / "new" / "figures.json")]

    assert program.main([*arguments, "--docs", str(page)]) == 0

    figures = json.loads((tmp_path / "new" / "figures.json").read_text("utf-8"))
    (goal,) = figures["goals"]
    printed = capsys.readouterr().out
    assert f"| {goal['what']} | a call each |" in printed
    assert [row["contender"] for row in figures["benchmarks"]["notify"]["rows"]] == [
        "a call each",
        "one call",
    ]
    assert figures["about"]["options"]["pairs"] == 20
    text = page.read_text("utf-8")
    assert re.fullmatch(
        r"before\n<!-- notify -->\n\n\| .*\| one call .*\n\n<!-- end -->\nafter\n", text, re.DOTALL
    )


def test_what_is_drawn_is_svg(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    # In a process of its own: matplotlib keeps files of fonts open.
    subprocess.run([sys.executable, "-c", DRAWING, str(tmp_path)], cwd=ROOT, check=True)

    drawn = {path.stem: ElementTree.parse(path).getroot() for path in tmp_path.iterdir()}
    assert drawn.keys() <= program.BENCHMARKS.keys()
    assert len(drawn) > 5
    assert all("a title" in "".join(root.itertext()) for root in drawn.values())


DRAWING = """
import sys, pathlib
from benchmarks.plots import DRAWN, draw
from benchmarks.results import Table

table = Table("a title", "channels", {"cpu": "CPU", "wall": "wall"})
table.add("bare", 1, cpu=1.0, wall=2.0)
table.add("reactor", 1, cpu=2.0, wall=3.0)
draw({name: table for name in [*DRAWN, "memory"]}, pathlib.Path(sys.argv[1]))
"""


# -- what they do not believe ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "heard",
    [
        {"count": 9, "last": 10},
        {"count": 11, "last": 10},
        {"count": 10, "last": 9},
        {"count": 8, "dropped": 1, "last": 10},
    ],
)
def test_contender_that_lost_something_ends_the_run(heard: dict[str, int]) -> None:
    with pytest.raises(BenchmarkError, match="reactor did not receive 10 in order"):
        goals.check("reactor", heard, 10)


def test_contender_that_received_everything_or_told_its_drops_is_believed() -> None:
    goals.check("reactor", {"count": 10, "last": 10}, 10)
    goals.check("reactor-default", {"count": 8, "dropped": 2, "last": 10}, 10)


def test_contender_that_fails_says_why(rig: Rig) -> None:
    task = dataclasses.replace(rig.task(), dsn="dbname=nowhere host=/nowhere")

    with (
        pytest.raises(BenchmarkError, match=r"(?s)bare ended.*OperationalError"),
        Child("bare", task),
    ):
        pass


def test_contender_that_says_nothing_is_not_waited_for(rig: Rig) -> None:
    with Child("bare", rig.task(count=1)) as child, pytest.raises(BenchmarkError, match="nothing"):
        child.hear(0.1)


def test_peers_that_are_not_installed_are_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "psycopg2" else object()
    )

    options = program.choose(program.parse(["--contenders", "bare", "psycopg2", "reactor"]))

    assert options.contenders == ("bare", "reactor")
    assert capsys.readouterr().out == "not installed, and skipped: psycopg2\n"


# -- figures ---------------------------------------------------------------------------------------


def test_figures_are_medians_and_ratios_those_of_rounds(table: Table) -> None:
    assert table.median("bare", 1) == 2.0
    assert table.median("reactor", 1, "wall") == 30.0
    assert table.ratio("reactor", "bare", 1) == 2.0  # of 2, 3 and 1
    assert table.ratio("reactor", "bare", 1, "wall") == 3.0
    assert table.ratio("reactor", "asyncpg", 1) is None
    assert "| reactor | 1 | 4 | 30 | 2 |" in table.as_text()


def test_goal_is_met_up_to_its_limit() -> None:
    assert Verdict("what", "against", 1.25, 1.25).met
    assert not Verdict("what", "against", 1.26, 1.25).met
    assert Verdict("what", "", 70.0, 64.0, " MiB").as_row() == (
        "| what |  | 70 MiB | 64 MiB | **not met** |"
    )


@pytest.mark.parametrize("options", [Options(), QUICK], ids=["all", "quick"])
def test_goals_name_what_is_there(options: Options) -> None:
    for goal in goals.goals(options):
        assert goal.benchmark in program.BENCHMARKS
    for name in options.contenders:
        assert goals.REACTORS.get(name, (name,))[0] in contenders.CONTENDERS


def test_page_has_a_place_for_every_table() -> None:
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    places = re.findall(r"^<!-- (\w+) -->$", page, re.MULTILINE)

    assert sorted(places) == sorted(
        [*program.BENCHMARKS, "about", "goals", *["end"] * (len(program.BENCHMARKS) + 2)]
    )
    pictures = re.findall(r'src="performance/(\w+)\.svg"', page)
    assert set(pictures) <= set(program.BENCHMARKS)


def test_peers_are_those_of_the_group() -> None:
    group = (
        (ROOT / "pyproject.toml").read_text("utf-8").partition("\nbench = [")[2].partition("]")[0]
    )

    for name in program.DISTRIBUTIONS[3:]:
        assert f'"{name}' in group
