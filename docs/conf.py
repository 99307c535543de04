"""How the site is built: ``make docs``.

The pages are Markdown that also reads well in a code forge; what only the site needs, its table of
contents and the pages of the API reference, is added here.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import FunctionType
from typing import Any

import blinker
from docutils import nodes
from pygments.lexers.sql import PostgresLexer

import pgsignals

project = "pgsignals"
author = "pgsignals contributors"
project_copyright = author
version = release = pgsignals.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
nitpick_ignore_regex = [("py:class", r"pgsignals\.[\w.]+\.[A-Z]")]  # type variables

html_theme = "furo"
html_title = f"pgsignals {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False

myst_heading_anchors = 4  # spelled as forges do

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80

# Files, so that the build needs no network; each line is a name that this documentation uses.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "psycopg": ("https://www.psycopg.org/psycopg3/docs", "inventories/psycopg.inv"),
    "opentelemetry": (
        "https://opentelemetry-python.readthedocs.io/en/stable",
        "inventories/opentelemetry.inv",
    ),
    "blinker": ("https://blinker.readthedocs.io/en/stable", "inventories/blinker.inv"),
}

# Where the source is stands in pyproject.toml, or nowhere: see CONTRIBUTING.md.
ROOT = Path(__file__).parents[1]
_project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
if _source := _project.get("urls", {}).get("Source"):
    html_theme_options = {
        "source_view_link": f"{_source}/blob/HEAD/docs/{{filename}}",
        "top_of_page_buttons": ["view"],
    }

CONTENTS = {
    "Begin": ["quickstart", "tutorial", "notifications", "testing", "cli", "examples"],
    "How to": [
        f"howto/{page}"
        for page in (
            "cache",
            "worker",
            "live-page",
            "django",
            "flask",
            "fastapi",
            "sqlalchemy",
            "pgbouncer",
            "tls",
            "uwsgi",
            "kubernetes",
            "notebook",
        )
    ],
    "Understand": ["guarantees", "faults", "architecture", "performance", "comparison", "glossary"],
    "Run": ["operations"],
    "Port": ["migrating", "changes"],
    "Look up": ["api"],
    "Contribute": ["contributing-where"],
}


def add_contents(_: Any, page: str, source: list[str]) -> None:
    """A forge would show the table of contents as code, so the landing page has none itself."""
    if page == "index":
        for caption, pages in CONTENTS.items():
            lines = [":hidden:", f":caption: {caption}", "", *pages]
            source[0] += "\n```{toctree}\n" + "\n".join(lines) + "\n```\n"


def show_examples(_: Any, page: str, source: list[str]) -> None:
    """A forge leads to the files of the examples; the site, which has no files, shows them."""
    if page == "examples":
        source[0] = re.sub(r"^- \[(.+)\]\(.+\)$", show_example, source[0], flags=re.MULTILINE)


def show_example(found: re.Match[str]) -> str:
    """A file, or the text of a README below its title, whose links are to the files around it."""
    name = found[1]
    if not name.endswith(".md"):
        return f"```{{literalinclude}} ../{name}\n:caption: {name}\n```\n"
    _, _, text = (ROOT / name).read_text("utf-8").partition("\n")
    text = re.sub(r"(?<!!)\[([^]]+)\]\((?!\w+:)[^)]+\)", r"\1", text)
    return text.replace("](../../docs/", "](").replace("\n## ", "\n### ")


def make_tables_narrow(_: Any, doctree: nodes.document, __: str) -> None:
    """Mark tables of sentences, whose cells stand one below the other on a phone: site.css.

    There each cell but the first says what its column is, unless there is only one other column.
    """
    for table in doctree.findall(nodes.table):
        head, *rows = ([*row.children] for row in table.findall(nodes.row))
        if len(head) > 4 or all(len(cell.astext()) < 50 for row in rows for cell in row):
            continue
        table["classes"].append("sentences")
        labels = [cell.astext() for cell in head] if len(head) > 2 else []
        for row in rows:
            for cell, label in zip(row[1:], labels[1:], strict=False):
                if label and cell.astext():
                    cell.insert(0, nodes.paragraph(text=label, classes=["label"]))


def send_home(namespace: Any) -> None:
    """Public names say that they are of the package; their comments are where they are defined."""
    for name in namespace.__all__:
        value = getattr(namespace, name)
        for function in (value, *getattr(value, "__dict__", {}).values()):
            if isinstance(function, FunctionType):
                value.__module__ = function.__globals__["__name__"]
                break


def find_public(app: Any, env: Any, node: Any, content: Any) -> Any:
    """``Reactor`` means pgsignals.Reactor in docstrings of other modules, too."""
    if node.get("refdomain") != "py" or "reftarget" not in node:
        return None
    target = f"pgsignals.{node['reftarget']}"
    return env.get_domain("py").resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], target, node, content
    )


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("source-read", show_examples)
    app.connect("doctree-resolved", make_tables_narrow)
    app.connect("missing-reference", find_public)
    app.add_lexer("sql", PostgresLexer)  # the other one does not know $$
    send_home(pgsignals)
    blinker.Signal.__module__ = "blinker"
