"""What a stranger may put into a schema of ``search_path``, to be run by the statements of others.

Every function, operator, type and view of the server has a namesake in ``public`` that logs
:data:`MARK` when it is used; functions that are asked for, and the common operators, have them for
many other types, too, which are an exact match where the server's own are not.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import psycopg

#: In the server's log, which no rollback takes back.
MARK = "PLANTED"

#: Of parameters and operands, in all combinations.
TYPES = (
    *("text", "name", "integer", "bigint", "oid", "boolean", "double precision", "bytea"),
    *("timestamp with time zone", "text[]"),
)
OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "+", "-", "*", "/", "%", "||", "~~", "~~*", "~", "~*")

#: What once was called with just these types, on a parameter that takes any.
FORMAT = "text, integer, text, name, text, timestamp with time zone, text"

_FUNCTIONS = """
    SELECT proname, array_to_string(ARRAY(
               SELECT CASE WHEN i = cardinality(proargtypes::oid[]) AND provariadic <> 0
                      THEN 'VARIADIC ' ELSE '' END || format_type(t, NULL)
               FROM unnest(proargtypes::oid[]) WITH ORDINALITY AS u(t, i)), ', '),
           CASE WHEN proretset THEN 'SETOF ' ELSE '' END || format_type(prorettype, NULL)
    FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind IN ('f', 'a', 'w')
"""
_OPERATORS = """
    SELECT oprname, CASE oprleft WHEN 0 THEN '' ELSE format_type(oprleft, NULL) END,
           format_type(oprright, NULL), format_type(oprresult, NULL)
    FROM pg_operator WHERE oprright <> 0 AND oprnamespace = 'pg_catalog'::regnamespace
"""
_TYPES = """
    SELECT typname, CASE typtype WHEN 'b' THEN format_type(oid, NULL) ELSE 'integer' END
    FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typname !~ '^_'
    AND (typtype = 'b' OR typname IN ('record', 'trigger', 'void'))
"""
_VIEWS = """
    SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace
    AND relkind IN ('r', 'v') AND NOT EXISTS (SELECT FROM pg_attribute
        WHERE attrelid = pg_class.oid
        AND atttypid IN ('anyarray'::regtype, 'pg_statistic[]'::regtype))
"""

# Only functions in C have these in their signatures, or return what they were not given.
_PSEUDO = re.compile(
    r"\b(internal|cstring|trigger|\w+_handler|event_trigger|pg_ddl_command|unknown|anyenum)\b"
)
_ANY = re.compile(r"\bany\w+\b")


def plant(dsn: str, names: Iterable[str]) -> int:
    """Fill the schema ``public`` of a database, and return with how many.

    :param names: of functions that are called, which get many signatures.
    """
    with psycopg.connect(dsn, autocommit=True, application_name="planter") as connection:
        connection.execute("SET search_path = pg_catalog")
        connection.execute("SET check_function_bodies = off")

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return connection.execute(sql.encode()).fetchall()

        statements = [
            "CREATE FUNCTION public.planted(what text) RETURNS boolean LANGUAGE plpgsql "
            f"AS $$ BEGIN RAISE LOG '{MARK} %', what; RETURN true; END $$",
            *_functions(rows(_FUNCTIONS), names),
            *_operators(rows(_OPERATORS)),
            *_types(rows(_TYPES)),
            *_views(rows(_VIEWS)),
        ]
        for start in range(0, len(statements), 300):
            connection.execute("; ".join(statements[start : start + 300]).encode())
    return len(statements)


def _functions(there: Iterable[tuple[Any, ...]], names: Iterable[str]) -> Iterator[str]:
    made = set()
    for name, their_types, returns in there:
        # What is not in C cannot take "any".
        types = their_types.replace('VARIADIC "any"', "VARIADIC anyarray")
        types = types.replace('"any"', "anyelement")
        if _PSEUDO.search(f"{types} {returns}") or "void" in types or (name, types) in made:
            continue
        if _ANY.search(returns) and not _ANY.search(types):
            continue
        made.add((name, types))
        yield _function(name, types, returns, f"function {name}({types})")
    combinations = [
        ", ".join(types) for count in (1, 2) for types in itertools.product(TYPES, repeat=count)
    ]
    for name in names:
        for types in [*combinations, "anyelement", FORMAT]:
            if (name, types) not in made:
                yield _function(name, types, "text", f"function {name}({types})")


def _function(name: str, types: str, returns: str, what: str) -> str:
    end = "RETURN" if returns == "void" or returns.startswith("SETOF ") else "RETURN NULL"
    return (
        f'CREATE FUNCTION public."{name}"({types}) RETURNS {returns} LANGUAGE plpgsql '
        f"AS $$ BEGIN RAISE LOG '{MARK} {what.replace('%', '%%')}'; {end}; END $$"
    )


def _operators(there: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    all_of_them = {(name, left, right): returns for name, left, right, returns in there}
    for name, left, right in itertools.product(OPERATORS, TYPES, TYPES):
        returns = left if name in "||+-*/%" else "boolean"
        all_of_them.setdefault((name, left, right), returns)
    for number, ((name, left, right), returns) in enumerate(all_of_them.items()):
        if _PSEUDO.search(f"{left} {right} {returns}"):
            continue
        if _ANY.search(returns) and not _ANY.search(f"{left} {right}"):
            continue
        types = ", ".join(filter(None, (left, right)))
        function = f"operator {number}"
        yield _function(function, types, returns, f"operator {left} {name} {right}")
        operand = f"LEFTARG = {left}, " if left else ""
        yield (
            f'CREATE OPERATOR public.{name} (FUNCTION = public."{function}", '
            f"{operand}RIGHTARG = {right})"
        )


def _types(there: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    for name, base in there:
        yield f"CREATE DOMAIN public.\"{name}\" AS {base} CHECK (public.planted('type {name}'))"


def _views(there: Iterable[tuple[Any, ...]]) -> Iterator[str]:
    for (name,) in there:
        yield (
            f"CREATE VIEW public.{name} AS SELECT * FROM pg_catalog.{name} "
            f"WHERE public.planted('view {name}')"
        )
