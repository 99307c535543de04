"""Which names of a statement the server would look up in ``search_path``: a small reader of SQL.

It knows as much of the grammar as statements of ours need, and takes what it does not know for a
fault.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""
    (?P<space> \s+ | --[^\n]* | /\*.*?\*/ )
  | (?P<body> (?P<tag>\$\w*\$) .*? (?P=tag) )
  | (?P<text> [EeBbXx]? '(?:[^']|'')*' )
  | (?P<parameter> %s | %\(\w+\)s | \$\d+ )
  | (?P<number> \d[\d.]* )
  | (?P<word> "(?:[^"]|"")+" | [^\W\d]\w* )
  | (?P<cast> :: )
  | (?P<operator> (?:%%|[-+*/<>=~!@\#%^&|`?])+ )
  | (?P<sign> [().,;\[\]:] )
    """,
    re.VERBOSE | re.DOTALL,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: These look operators or functions up by their names, or have forms that do.
_SYNTAX = _words(
    "LIKE ILIKE SIMILAR BETWEEN IN NULLIF NATURAL USING OVERLAPS EXTRACT CAST POSITION SUBSTRING "
    "TRIM OVERLAY COLLATE"
)

#: What may stand before a parenthesis, besides functions, whose names are qualified.
_BEFORE_PARENTHESIS = _words(
    "ALL AND ANY ARRAY AS BY CASE CHECK COALESCE ELSE EXISTS FROM IN KEY NOT ON OPERATOR OR "
    "RETURNING SELECT SET THEN VALUES WHEN WHERE WITH"
)

#: Before the name of a relation.
_BEFORE_RELATION = _words("FROM INTO JOIN REFERENCES TABLE UPDATE")

_KEYWORDS = _words("SELECT FROM WHERE AND OR NOT BY ON AS THEN ELSE WHEN SET RETURNING")
_CLAUSES = _words("SELECT FROM WHERE RETURNING VALUES ORDER LIMIT SET")

#: Types, where a definition names them; the words that the grammar itself takes for
#: pg_catalog's are among them, to keep the rule simple.
_TYPES = _words(
    "bigint bit bool boolean bytea char date float4 float8 int int2 int4 int8 integer interval "
    "json jsonb name numeric oid real record regclass smallint text time timestamp timestamptz "
    "trigger uuid varchar void xml"
)

#: Statements of which literals and parameters have no type to be chosen by.
_WITH_EXPRESSIONS = frozenset(("SELECT", "WITH", "UPDATE", "DELETE", "PERFORM"))

Token = tuple[str, str]


def looked_up(sql: str) -> list[str]:
    """What in *sql* is looked up in ``search_path``, or has a type that has to be guessed."""
    return [fault for statement in _statements(sql) for fault in _faults(statement)]


def functions_of(sql: str) -> set[str]:
    """The names of functions that *sql* calls, qualified or not."""
    tokens = [token for statement in _statements(sql) for token in statement]
    return {
        word.lower()
        for (kind, word), (_, after) in itertools.pairwise(tokens)
        if kind == "word" and after == "(" and word.upper() not in _BEFORE_PARENTHESIS
    }


def _tokens(sql: str) -> Iterator[Token]:
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None:
            raise ValueError(f"not understood: {sql[at : at + 40]!r}")
        at = match.end()
        kind = next(name for name, found in match.groupdict().items() if found and name != "tag")
        if kind == "body":
            quote = len(match["tag"])
            yield kind, match[0][quote:-quote]
        elif kind != "space":
            yield kind, match[0]


def _statements(sql: str) -> Iterator[list[Token]]:
    """Split at semicolons; the bodies of functions are read, too."""
    statement: list[Token] = []
    for kind, text in [*_tokens(sql), ("sign", ";")]:
        if kind == "body":
            yield from _statements(text)
        if text.upper() in ("BEGIN", "DECLARE") and kind == "word" and not statement:
            continue
        if (kind, text) != ("sign", ";"):
            statement.append((kind, text))
        elif statement:
            yield statement
            statement = []


def _faults(statement: list[Token]) -> Iterator[str]:
    first = statement[0][1].upper()
    ours = _common_tables(statement)  # names that the statement itself has made
    clauses = [first]  # the clause that each open parenthesis stands in
    padded = [("", ""), ("", ""), *statement, ("", ""), ("", "")]
    for before2, before, (kind, text), after, after2 in zip(
        padded, padded[1:], padded[2:], padded[3:], padded[4:], strict=False
    ):
        word = text.upper()
        if text == "(":
            clauses.append(before[1].upper())
        elif text == ")":
            clauses.pop()
        elif kind == "cast":
            if after[1] != "pg_catalog" or after2[1] != ".":
                yield f"type {after[1]}"
        elif kind in ("text", "parameter"):
            typed = after[0] == "cast" or (after[1] == ")" and after2[0] == "cast")
            if first in _WITH_EXPRESSIONS and not typed and clauses[-1] != "VALUES":
                yield f"untyped {text}"
        elif kind == "operator":
            is_star = text == "*" and before[1].upper() in ("(", "SELECT", ",", ".")
            assigns = text == "=" and (first == "SET" or clauses[-1] == "SET")
            options = text == "=" and first in ("CREATE", "ALTER")
            qualified = before[1] == "." and before2[1] == "pg_catalog"
            if not (is_star or assigns or options or qualified):
                yield f"operator {text}"
        elif kind == "word":
            if word in _CLAUSES:
                clauses[-1] = word
            if before[1] == ".":
                continue
            yield from _word(word, before, before2, after, clauses[-1], ours)


def _word(
    word: str, before: Token, before2: Token, after: Token, clause: str, ours: set[str]
) -> Iterator[str]:
    """What may be wrong with a word that nothing qualifies."""
    if after[1] == ".":
        return
    previous = before[1].upper()
    if word in _SYNTAX:
        yield f"syntax {word}"
    elif word == "CASE" and after[1].upper() != "WHEN":
        yield "syntax CASE x WHEN"
    elif word == "FROM" and previous == "DISTINCT":
        yield "syntax IS DISTINCT FROM"
    elif after[1] == "(" and word not in _BEFORE_PARENTHESIS:
        is_alias = previous == "AS"
        is_rows_from = word == "FROM" and previous == "ROWS"
        if not (is_alias or is_rows_from or word in ("ROLE", "DATABASE")):
            yield f"function {word.lower()}"
    elif word.lower() in _TYPES and previous not in ("", "SELECT", ",", "CREATE", "AS"):
        if (before[0] == "word" and previous not in _KEYWORDS) or previous == "RETURNS":
            yield f"type {word.lower()}"
    elif previous in _BEFORE_RELATION or (previous == "," and clause == "FROM"):
        is_other = word in ("ROWS", "SELECT", "ONLY", "ON", "OF", "SET", "LATERAL")
        if not is_other and word.strip('"').lower() not in ours:
            yield f"relation {word.lower()}"


def _common_tables(statement: list[Token]) -> set[str]:
    """The names after WITH."""
    return {
        word.lower()
        for (kind, word), (_, as_), (_, sign) in zip(
            statement, statement[1:], statement[2:], strict=False
        )
        if kind == "word" and as_.upper() == "AS" and sign == "("
    }
