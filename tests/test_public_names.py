"""The public classes show what the reference documents, and nothing that only we need."""

from __future__ import annotations

import re

from pgsignals import Reactor
from tests.support.pages import DOCS


def documented(name: str) -> set[str]:
    """The members that the reference lists for a class."""
    text = (DOCS / "api.md").read_text("utf-8")
    (members,) = re.findall(rf"autoclass:: {name}\n   :members: (.*)", text)
    return set(members.split(", "))


def test_reactor_shows_what_the_reference_documents() -> None:
    shown = {name for name in dir(Reactor("dbname=never_opened")) if not name.startswith("_")}

    assert shown == documented("Reactor")
