"""Makes the links and pictures of README.md absolute, as the page of a package index needs them.

::

    python docs/absolute_links.py        # rewrites README.md

Where they lead is ``Source`` of ``[project.urls]`` in pyproject.toml, the one place that says where
the repository is.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: A link or a picture whose target has no scheme and is no place in the same page.
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)\s]+)(?=\))")
PICTURE = re.compile(r"(src=\")(?!\w+:)([^\"]+)(?=\")")


def absolute(text: str, source: str) -> str:
    """*text* with links that lead into the repository at *source*."""
    text = LINK.sub(rf"\1{source}/blob/HEAD/\2", text)
    return PICTURE.sub(rf"\1{source}/raw/HEAD/\2", text)


def source() -> str | None:
    """Where the repository is; None as long as pyproject.toml does not say."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address: str | None = project.get("urls", {}).get("Source")
    return address and address.rstrip("/")


def main() -> int:
    """Rewrite README.md; 0 when it could be done."""
    address = source()
    if address is None:
        sys.stderr.write("pyproject.toml must have Source below [project.urls]\n")
        return 1
    readme = ROOT / "README.md"
    readme.write_text(absolute(readme.read_text("utf-8"), address), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
