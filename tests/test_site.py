"""The documentation site: it is built, nothing in it leads nowhere, and it can be read."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.looks import faults_of_page, faults_of_picture
from tests.support.pages import DOCS, ROOT

CHECK = [sys.executable, str(DOCS / "check_site.py")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it has been built."""
    for name in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: pip install --group docs")
    folder = tmp_path_factory.mktemp("docs")
    options = ["--quiet", "--nitpicky", "--fail-on-warning", "--keep-going"]
    folders = ["--doctree-dir", str(folder / "doctrees"), str(DOCS), str(folder / "site")]
    command = [sys.executable, "-m", "sphinx", *options, *folders]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all pages."""
    with Browser() as one:
        yield one


def check(site: Path) -> tuple[int, list[str]]:
    """The status of the check, and its lines."""
    result = subprocess.run([*CHECK, str(site)], capture_output=True, text=True, check=False)
    return result.returncode, result.stderr.splitlines()


@pytest.mark.timeout(300)
def test_everything_in_the_site_leads_somewhere(site: Path) -> None:
    assert check(site) == (0, [])


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


# In a browser


@pytest.mark.timeout(300)
def test_every_page_can_be_read_on_a_phone_and_on_a_laptop(site: Path, browser: Browser) -> None:
    pages = sorted(site.rglob("*.html"))

    assert len(pages) > 30
    assert [fault for page in pages for fault in faults_of_page(browser, page)] == []


@pytest.mark.parametrize("picture", sorted(DOCS.rglob("*.svg")), ids=lambda path: path.stem)
def test_all_text_of_a_picture_is_in_it(picture: Path, browser: Browser) -> None:
    assert faults_of_picture(browser, picture) == []


HEAD = '<!doctype html><meta name="viewport" content="width=device-width"><article>'
WIDE = "<pre>" + "wide " * 300 + "</pre>"
LOOKS = {
    "a picture that is there": ('<img src="picture.svg">', []),
    "a picture that is missing": ('<img src="lost.svg">', ["broken image: lost.svg"] * 2),
    "a file that is no picture": ('<img src="page.html">', ["broken image: page.html"] * 2),
    "code that can be scrolled": (f"<style>pre {{ overflow-x: auto }}</style>{WIDE}", []),
    "code that makes the page wide": (WIDE, ["the page is", "cut off: wide wide"] * 2),
    "code that cannot be scrolled": (
        f"<style>pre {{ overflow: hidden }}</style>{WIDE}",
        ["cut off: wide wide"] * 2,
    ),
    "a scrolled box that is cut off itself": (
        f"<style>div {{ overflow: hidden }} pre {{ overflow-x: auto; width: 600px }}</style>"
        f"<div>{WIDE}</div>",
        ["cut off: wide wide"],
    ),
    "lines below the end of their box": (
        '<p style="height: 1.5em; overflow: hidden">one<br>two<br>three',
        ["cut off: two", "cut off: three"] * 2,
    ),
    "text beside the page": ('<p style="margin-left: -3em">before', ["cut off: before"] * 2),
    "text for screen readers": (
        '<p style="width: 1px; height: 1px; overflow: hidden; position: absolute">skip this',
        [],
    ),
    "a column of letters": (
        '<table><td style="overflow-wrap: anywhere; width: 1em">ValueError<td>' + "x " * 300,
        ["squeezed: ValueError"] * 2,
    ),
}


@pytest.mark.parametrize(("body", "faults"), LOOKS.values(), ids=LOOKS)
def test_what_cannot_be_read_is_found(
    body: str, faults: list[str], tmp_path: Path, browser: Browser
) -> None:
    (tmp_path / "picture.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', "utf-8")
    page = tmp_path / "page.html"
    page.write_text(HEAD + body, "utf-8")

    found = faults_of_page(browser, page)

    assert len(found) == len(faults), found
    for line, fault in zip(found, faults, strict=True):
        assert fault in line


def test_text_outside_of_a_picture_is_found(tmp_path: Path, browser: Browser) -> None:
    picture = tmp_path / "picture.svg"
    picture.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="200" height="40"><text x="5" y="20">in it'
        '</text><text x="180" y="20">half of it</text><text x="5" y="60">below it</text></svg>',
        "utf-8",
    )

    found = faults_of_picture(browser, picture)

    outside = "picture.svg: outside of the picture: "
    assert found == [f"{outside}half of it", f"{outside}below it"]
