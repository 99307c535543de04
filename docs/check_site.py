"""Finds what the built site refers to and does not have.

::

    python docs/check_site.py build/docs

Every ``src`` and ``href`` of every page must lead to a file of the site, and where it names a place
in a page, to that place.  Other sites are not asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page refers to, and the places in it that others may refer to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.references: list[str] = []
        self.places: set[str] = {""}
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("src", "href"):
                self.references.append(value)
            if value and name in ("id", "name"):
                self.places.add(value)


def dead_links(site: Path) -> Iterator[str]:
    """A line for each reference that leads nowhere."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for reference in page.references:
            parts = urlsplit(reference)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = target.is_file()
            if found and target in pages:
                found = unquote(parts.fragment) in pages[target].places
            if not found:
                yield f"{path.relative_to(site.resolve())} refers to {reference}"


def main(argv: Sequence[str]) -> int:
    """Print what is missing; 0 when nothing is."""
    lines = list(dead_links(Path(argv[0])))
    sys.stderr.writelines(f"{line}\n" for line in lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
