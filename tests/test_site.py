"""The documentation site: it is built, and nothing in it leads nowhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import DOCS, ROOT

CHECK = [sys.executable, str(DOCS / "check_site.py")]


def check(site: Path) -> tuple[int, list[str]]:
    """The status of the check, and its lines."""
    result = subprocess.run([*CHECK, str(site)], capture_output=True, text=True, check=False)
    return result.returncode, result.stderr.splitlines()


@pytest.mark.timeout(300)
def test_everything_in_the_site_leads_somewhere(tmp_path: Path) -> None:
    for name in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install --group docs")
    options = ["--quiet", "--nitpicky", "--fail-on-warning", "--keep-going"]
    doctrees = ["--doctree-dir", str(tmp_path / "doctrees")]
    command = [
        sys.executable,
        "-m",
        "sphinx",
        *options,
        *doctrees,
        str(DOCS),
        str(tmp_path / "site"),
    ]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr

    assert check(tmp_path / "site") == (0, [])


def test_check_finds_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "picture.svg").write_text("<svg/>", "utf-8")
    (tmp_path / "page.html").write_text(
        '<p id="here"><img src="picture.svg"><img src="lost.svg"><a href="#here">'
        '<a href="#there"><a href="other.html#here"><a href="other.html#gone">'
        '<a href="https://example.org/lost.html">',
        "utf-8",
    )
    (tmp_path / "other.html").write_text('<p id="here"><a href="page.html">', "utf-8")

    assert check(tmp_path) == (
        1,
        [
            "page.html refers to lost.svg",
            "page.html refers to #there",
            "page.html refers to other.html#gone",
        ],
    )


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_pictures_of_a_page_are_copied_to_the_site(path: Path) -> None:
    """Sphinx copies what Markdown names, and does not look into HTML."""
    assert "<img" not in path.read_text("utf-8")
