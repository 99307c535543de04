"""The processes of an embedded server: their account, and the watchdog that ends them."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypeAlias

from pgsignals.errors import Error

StrPath: TypeAlias = str | os.PathLike[str]

# Below the system's ephemeral ports: there, connecting to a closed port can reach itself.
PORTS = range(15_000, 30_000)
_LONGEST_SOCKET_PATH = 103  # bytes, on macOS; Linux allows 107

# $1 is where to create the directory, whose name is printed.  Each line of the input says what
# runs: "<pid> <postgres>" is a server, "<pid>" another program, "ended" follows each; finally
# "close", or the end of the pipe with the end of our program.  Programs are asked to end before
# they are killed, as they would leave System V shared memory behind; a killed server leaves
# postmaster.pid, too, and another start frees both.  Zombies may never go away: pid 1 of a
# container often reaps none.
_WATCHDOG = r"""
trap '' HUP INT TERM PIPE
directory=$(mktemp -d "$1/pgsig-XXXXXXXX") || exit
echo "$directory"
exec >/dev/null
pid='' postgres=''  # not from the environment
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


def server_account() -> pwd.struct_passwd | None:
    """Return the account to run a server as; None for the current one."""
    if os.geteuid():
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError("needs an account 'nobody', because root may not run it") from None


def popen(
    command: Sequence[str],
    *,
    account: pwd.struct_passwd | None = None,
    cwd: StrPath = "/",
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start a process detached from the terminal, and without the PG* variables of libpq."""
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


def output_of(command: Sequence[str], process: subprocess.Popen[bytes]) -> str:
    """Wait until a process has ended, and return its output."""
    with process:
        output, complaint = (text.decode(errors="replace") for text in process.communicate())
    if process.returncode:
        reason = " ".join(complaint.split()) or f"exit status {process.returncode}"
        raise EmbeddedError(f"cannot run {command[0]}: {reason}")
    return output


def run(command: Sequence[str], account: pwd.struct_passwd | None = None) -> str:
    return output_of(command, popen(command, account=account))


class Watchdog:
    """The process that creates the server's directory, and removes it however the program ends."""

    def __init__(self, parent: str, account: pwd.struct_passwd | None) -> None:
        command = ["/bin/sh", "-c", _WATCHDOG, "pgsignals-watchdog", parent]
        null = subprocess.DEVNULL
        self._process = popen(command, account=account, stdin=subprocess.PIPE, stderr=null)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._account = account
        self.pipe = self._process.stdin
        with self._process.stdout as answer:
            self.directory = Path(os.fsdecode(answer.readline().rstrip(b"\n")))
        if not self.directory.is_absolute():
            self.close()
            raise EmbeddedError(f"cannot create a directory in {parent}")

    def run(self, command: Sequence[str], stdin: int | IO[bytes] = subprocess.DEVNULL) -> None:
        """Run a program as the server's account in the directory, until it or our program ends."""
        process = popen(command, account=self._account, cwd=self.directory, stdin=stdin)
        self.report(f"{process.pid}")
        output_of(command, process)
        self.report("ended")

    def start(self, command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start the server, which ends with our program at the latest."""
        process = popen(command, account=self._account, cwd=self.directory, stdout=log, stderr=log)
        self.report(f"{process.pid} {command[0]}")
        return process

    def report(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it was killed, or is closed
            self.pipe.write(os.fsencode(f"{line}\n"))

    def close(self) -> None:
        self.report("close")  # closing the pipe is not enough: a forked child may hold it, too
        self._process.wait()
        self.pipe.close()


def start_watchdog(account: pwd.struct_passwd | None) -> Watchdog:
    parent = tempfile.gettempdir()
    socket_path = f"{parent}/pgsig-XXXXXXXX/.s.PGSQL.{PORTS[-1]}"
    if len(os.fsencode(socket_path)) <= _LONGEST_SOCKET_PATH:
        with contextlib.suppress(EmbeddedError):  # this account may not write there
            return Watchdog(parent, account)
    return Watchdog("/tmp", account)


def make_certificates(watchdog: Watchdog) -> None:
    """Make an authority, and a certificate for ``localhost`` and 127.0.0.1, in the directory."""
    new = ["openssl", "req", "-x509", "-nodes", "-days", "365", "-newkey", "rsa:2048"]
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    for options in (
        "-keyout ca.key -out ca.crt -subj /CN=pgsignals",
        "-keyout server.key -out server.crt -CA ca.crt -CAkey ca.key -subj /CN=localhost "
        f"-addext {names}",
    ):
        watchdog.run([*new, *options.split()])
