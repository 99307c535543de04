"""Runs a server, says where it is, and ends in the way that the argument names.

A second argument is the account to become first, as which even root's interpreter could not be
started where it lies in root's home.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys

from pgsignals import embedded


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def wait_for_signal() -> None:
    sys.stdin.read()


def become(name: str) -> None:
    account = pwd.getpwnam(name)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def end(ending: str, server: embedded.Postgres) -> None:
    if ending == "exception":
        raise RuntimeError("on purpose")
    if ending == "os._exit":
        os._exit(3)
    if ending == "signal":
        wait_for_signal()
    if ending == "signal after a killed server":
        server.stop("kill")
        say(stopped=True)
        wait_for_signal()
    if ending == "signal with a forked child":
        if (child := os.fork()) == 0:
            wait_for_signal()
            os._exit(0)
        say(child=child)
        wait_for_signal()
    if ending == "forked child closes":
        if (child := os.fork()) == 0:
            server.close()
            sys.exit(server.running)
        _, status = os.waitpid(child, 0)
        say(status=status, running=server.running, exists=server.data_directory.exists())


def main() -> None:
    # What runs the tests in the background may ignore these, and its children with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    ending, *account = sys.argv[1:]
    if account:
        become(*account)
    server = embedded.Postgres()
    say(directory=str(server.directory))
    server.start()
    say(pid=server.pid, dsn=server.dsn)
    if ending == "left open":
        return
    with server:
        end(ending, server)


if __name__ == "__main__":
    main()
