"""Every example runs to its end, as a function and as a program."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from examples.cache import read_through
from pgsignals.embedded import Postgres
from tests.support.admin import Admin
from tests.support.pages import PAGES

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
#: Those that come to an end by themselves; the others have test files of their own.
PROGRAMS = [*sorted(EXAMPLES.glob("*.py")), EXAMPLES / "cache" / "read_through.py"]
READMES = sorted(EXAMPLES.glob("*/README.md"))

each_program = pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
each_readme = pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)


def test_there_is_an_example_of_each_way() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    folders = {path.parent.name for path in READMES}

    assert names == {"background_handlers", "several_databases", "typed_handlers", "wait_loop"}
    assert folders == {"cache", "django_signals", "live_orders", "worker"}


@each_program
def test_main_runs_on_the_database_of_its_argument(
    path: Path, dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    main = importlib.import_module(module).main

    assert main([dsn]) == 0
    assert capsys.readouterr().out.count("\n") > 2


@each_program
def test_program_takes_its_database_from_the_environment(path: Path, dsn: str) -> None:
    result = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "DATABASE_URL": dsn, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_several_databases_are_watched_at_once(
    dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module("examples.several_databases").main

    assert main([dsn, dsn, dsn]) == 0
    printed = capsys.readouterr().out
    assert all(f"number {number}, " in printed for number in range(3))
    assert "is back" in printed


@each_program
def test_program_explains_itself(path: Path) -> None:
    command = [sys.executable, str(path), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert "dsn" in result.stdout


#: What the examples' SQL calls, planted before PostgreSQL's own.
PLANTED = """
CREATE FUNCTION public.planted() RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'planted'; END $$;
CREATE FUNCTION public.pg_notify(text, text) RETURNS void LANGUAGE sql AS
    'SELECT public.planted()';
CREATE FUNCTION public.pg_terminate_backend(int) RETURNS bool LANGUAGE sql AS
    'SELECT public.planted(); SELECT true';
CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql AS
    'SELECT public.planted(); SELECT pg_catalog.now()';
CREATE FUNCTION public.hashtext(text) RETURNS int LANGUAGE sql AS
    'SELECT public.planted(); SELECT 1';
CREATE FUNCTION public.pg_advisory_xact_lock(bigint) RETURNS void LANGUAGE sql AS
    'SELECT public.planted()';
CREATE FUNCTION public.octet_length(text) RETURNS int LANGUAGE sql AS
    'SELECT public.planted(); SELECT 1';
CREATE FUNCTION public.refuse(text, text) RETURNS bool LANGUAGE sql AS
    'SELECT public.planted(); SELECT true';
CREATE FUNCTION public.refuse(int, int) RETURNS bool LANGUAGE sql AS
    'SELECT public.planted(); SELECT true';
CREATE FUNCTION public.refuse(bigint, bigint) RETURNS bool LANGUAGE sql AS
    'SELECT public.planted(); SELECT true';
CREATE FUNCTION public.refuse(bigint, int) RETURNS bool LANGUAGE sql AS
    'SELECT public.planted(); SELECT true';
"""
OPERATORS = ("=", "<>", "<", ">", ">=")
TYPES = ("text, text", "int, int", "bigint, bigint", "bigint, int")
FILLED = {
    "jobs": "INSERT INTO jobs (payload) VALUES ('1'), ('2'); UPDATE jobs SET state = 'ready'",
    "live_orders": "INSERT INTO live_orders (customer, item, cents) VALUES ('Ada', 'cup', 1);"
    "UPDATE live_orders SET cents = 2; TRUNCATE live_orders",
    read_through.TABLE: f"INSERT INTO {read_through.TABLE} VALUES ('cup', 1);"
    f"UPDATE {read_through.TABLE} SET cents = 2; DELETE FROM {read_through.TABLE};"
    f"TRUNCATE {read_through.TABLE}",
}
SCHEMAS = {
    "jobs": (EXAMPLES / "worker" / "schema.sql").read_text("utf-8"),
    "live_orders": (EXAMPLES / "live_orders" / "schema.sql").read_text("utf-8"),
    read_through.TABLE: read_through.SCHEMA,
}


@pytest.fixture
def hostile(admin: Admin, postgres: Postgres, channel: str) -> Iterator[Admin]:
    """A session on a database whose search_path puts what is planted before PostgreSQL's own."""
    name = f"hostile_{channel}".replace(".", "_")
    admin.execute(f'CREATE DATABASE "{name}"')
    admin.execute(f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')
    with contextlib.closing(Admin(postgres.dsn_for(name))) as session:
        session.execute(PLANTED)
        for operator in OPERATORS:
            for types in TYPES:
                left, right = types.split(", ")
                session.execute(
                    f"CREATE OPERATOR public.{operator} (LEFTARG = {left}, RIGHTARG = {right},"
                    " FUNCTION = public.refuse)"
                )
        yield session
    admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.mark.parametrize("table", SCHEMAS)
def test_nothing_planted_is_called(hostile: Admin, table: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="planted"):
        hostile.execute("SELECT pg_notify('a', 'b')")
    hostile.execute(SCHEMAS[table])
    hostile.execute(FILLED[table])


@each_program
def test_program_calls_nothing_planted(
    hostile: Admin, postgres: Postgres, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    ((name,),) = hostile.execute("SELECT pg_catalog.current_database()")

    assert importlib.import_module(module).main([postgres.dsn_for(name)]) == 0
    assert "planted" not in capsys.readouterr().out


def test_long_keys_do_not_fail_the_writer(admin: Admin) -> None:
    admin.execute(read_through.SCHEMA)
    try:
        table = read_through.TABLE
        admin.execute(f"INSERT INTO {table} VALUES (repeat('x', 9000), 1)")
        admin.execute(f"UPDATE {table} SET item = repeat('y', 9000)")
        admin.execute(f"DELETE FROM {table}")
    finally:
        admin.execute(read_through.CLEAN_UP)


#: SQL that names a function or view of PostgreSQL's without its schema.
UNQUALIFIED = re.compile(
    r"(?<!pg_catalog\.)(?<![\w.`])"
    r"(pg_notify|pg_terminate_backend|pg_backend_pid|pg_stat_\w+|pg_advisory\w+|hashtext|now|"
    r"current_database|octet_length|repeat|count|pg_sleep|version)(\(| WHERE)"
)
SQL = re.compile(r"\b(SELECT|PERFORM|UPDATE|INSERT|DEFAULT|CALL|IF|FROM)\b")


@pytest.mark.parametrize(
    "path",
    [path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sql")] + PAGES,
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_sql_names_the_schema_of_what_it_calls(path: Path) -> None:
    text = path.read_text("utf-8")
    lines = [line for line in text.splitlines() if SQL.search(line) and not line.startswith("|")]
    assert [line for line in lines if UNQUALIFIED.search(line)] == []
    for body in re.findall(r"CREATE (?:OR REPLACE )?FUNCTION(.*?)AS \$\$", text, re.DOTALL):
        assert "SET search_path = ''" in body, body


@each_readme
def test_readme_leads_to_what_is_there(path: Path) -> None:
    text = path.read_text("utf-8")
    programs = re.findall(r"^.*\bpython (\S+)", text, re.MULTILINE)
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)

    assert programs
    for program in programs:
        assert (ROOT / program).is_file() or program == "manage.py"
    for link in links:
        assert (path.parent / link).exists(), link
