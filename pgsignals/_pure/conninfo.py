"""Connection strings: forms that other programs use but libpq rejects, and what is wrong with one
that cannot be read.

libpq's own messages repeat what it could not read, which may be a password.  The messages here name
schemes and keywords, and never a value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import unquote

EXAMPLES = "postgresql://app@db.example.com:5432/shop or host=db.example.com dbname=shop"

ENCODE = "percent-encode special characters in it: %40 for @, %2F for /, %25 for %"

# Those of SQLAlchemy (postgresql+asyncpg), Django (postgis) and the like.
_OURS = re.compile(r"(?:postgres|postgresql|postgis|pgsql|psql)(?:\+\w+)?://", re.IGNORECASE)

_SCHEME = re.compile(r"((?:jdbc:)?[A-Za-z][A-Za-z0-9+.-]{0,29})://")

# The authority up to the last "@" that can end it, and the rest, for libpq's own scheme.
_URI = re.compile(r"postgresql://([^/?]*)(/[^?]*)?(?:\?(.*))?", re.DOTALL)

_KEYWORD = re.compile(r"\s*([^\s=]+)\s*(=?)\s*")
_VALUE = re.compile(r"'(?:[^'\\]|\\.)*'|(?!')(?:[^\s\\]|\\.)*", re.DOTALL)

# What may be shown in place of a keyword; part of a password rarely looks like this.
_NAME = re.compile(r"[A-Za-z][A-Za-z_]{1,39}")


def tidy(conninfo: str) -> str:
    """*conninfo* for libpq: without line ends and blanks around it, and a URI with its scheme."""
    text = conninfo.strip()
    found = _OURS.match(text)
    return text if found is None else f"postgresql://{text[found.end() :]}"


def suspicion(text: str, settings: Mapping[str, Any]) -> str | None:
    """What libpq has evidently misread, such as part of a password as the name of the host; None if
    there is no sign of that.

    :param text: from :func:`tidy`.
    :param settings: what libpq has read, plus keywords.
    """
    host, port = str(settings.get("host") or ""), str(settings.get("port") or "")
    uri = _URI.match(text)
    if uri is not None and "@" in (uri[2] or ""):
        return f"it has an @ after the first /; if that is part of the password, {ENCODE}"
    if host.startswith("@") and not (uri and "@@" in uri[1]):
        return "psycopg cannot use abstract sockets (host=@...); give the directory of a socket"
    if "@" in host:
        return f"the host has an @ in its name; if that is part of the password, {ENCODE}"
    if port.strip("0123456789,"):
        return f"the port is not a number; if that is part of the password, {ENCODE}"
    return None


def fault(text: str, known: Collection[str]) -> str:
    """What is wrong with a connection string that libpq cannot read.

    :param text: from :func:`tidy`.
    :param known: libpq's keywords.
    """
    if text[:1] in ("'", '"', "`"):
        return "it begins with a quotation mark; remove the quotation marks around it"
    uri = _URI.match(text)
    if uri is not None:
        return _fault_of_uri(text, uri, known)
    scheme = _SCHEME.match(text)
    if scheme is not None:
        return f"its scheme is {scheme[1]}://, and must be postgresql://"
    if re.match(r"[A-Za-z_]+\s*=", text) is None:
        if "=" in text and not re.search(r"[/:@]", text.partition("=")[0]):
            return "it begins with an unknown keyword"
        return "it has neither a scheme nor keywords; put postgresql:// before it"
    return _fault_of_pairs(text, known)


def _fault_of_uri(text: str, uri: re.Match[str], known: Collection[str]) -> str:
    authority, path, query = uri[1], uri[2] or "", uri[3] or ""
    if "@" in path + query:
        return f"it has an @ after the host; if that is part of the password, {ENCODE}"
    if "\0" in text or re.search(r"%(?![0-9A-Fa-f]{2})|%00", text):
        return f"a % in it is not followed by two digits; if that is part of the password, {ENCODE}"
    for pair in query.split("&") if query else ():
        name, equals, value = pair.partition("=")
        if not equals or "=" in value:
            return "a parameter after the ? is not of the form name=value"
        if (name := unquote(name)) not in known and name != "ssl":
            return f"it has {unknown(name, known, 'parameter')}"
    if authority.count("[") != authority.count("]"):
        return "an IPv6 address needs both brackets, as in [::1]"
    return f"its parts cannot be told apart; if the password has special characters, {ENCODE}"


def _fault_of_pairs(text: str, known: Collection[str]) -> str:
    at, secret = 0, False
    while (found := _KEYWORD.match(text, at)) is not None:
        name, equals = found.groups()
        if not equals:
            return "a value with blanks must be in quotation marks: password='two words'"
        if name not in known:
            # Perhaps part of a password with blanks, unless it nearly matches a keyword.
            if secret and not _close_matches(name, known, cutoff=0.75):
                return (
                    "it has an unknown keyword after the password; if that is part of the "
                    "password, put quotation marks around all of it: password='two words'"
                )
            return f"it has {unknown(name, known, 'keyword')}"
        value = _VALUE.match(text, found.end())
        if value is None:
            return "a quotation mark in it is not closed"
        secret = secret or "password" in name
        at = value.end()
    return "a value in it holds something that libpq does not accept"


def _close_matches(
    word: str, words: Collection[str], most: int = 3, cutoff: float = 0.6
) -> list[str]:
    import difflib  # which few programs need, and none that is started correctly

    return difflib.get_close_matches(word, words, most, cutoff)


def unknown(name: str, known: Collection[str], what: str) -> str:
    """Say that libpq has no keyword of that name, and which one may have been meant."""
    if _NAME.fullmatch(name) is None:
        return f"an unknown {what}"
    near = _close_matches(name.lower(), known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"the unknown {what} {name!r}, which libpq does not accept{hint}"


def place(host: str | bytes, port: str | bytes, dbname: str | bytes) -> str:
    """Where a connection leads, as one printable word without secrets."""
    texts = (
        part if isinstance(part, str) else part.decode(errors="replace")
        for part in (host, port, dbname)
    )
    host, port, dbname = texts
    place = f"{host or 'localhost'}:{port}/{dbname}"
    return place if place.isprintable() else place.encode("unicode_escape").decode()


def one_line(text: object) -> str:
    """A message of libpq's in one line."""
    return "; ".join(line.strip() for line in str(text).splitlines() if line.strip())
