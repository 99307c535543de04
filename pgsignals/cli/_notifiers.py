"""Who listens to a channel and what notifies it, for ``pgsignals doctor --channel``.

The server's catalogue is read; nothing is notified on the channel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pgsignals._pure.names import MAX_CHANNEL_BYTES
from pgsignals._pure.statements import ROUND_TRIP_BEGINS
from pgsignals.cli._findings import Finding

Ask: TypeAlias = Callable[[str], list[tuple[Any, ...]]]


def _ident(column: str) -> str:
    """SQL that quotes the name in *column* where it needs quotes."""
    return f"pg_catalog.quote_ident({column}::pg_catalog.text)"


#: The last statement of each session in this database.
LISTENERS = (
    "SELECT pid, application_name, query, "
    f"pg_catalog.starts_with(query, '{ROUND_TRIP_BEGINS}'::pg_catalog.text) "
    "FROM pg_catalog.pg_stat_activity "
    "WHERE datname OPERATOR(pg_catalog.=) pg_catalog.current_database() "
    "AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() ORDER BY pid"
)

_SOURCE = (
    "CASE WHEN p.prosqlbody IS NULL THEN p.prosrc "
    "ELSE pg_catalog.pg_get_function_sqlbody(p.oid) END"
)
FUNCTIONS = (
    f"SELECT p.oid, {_ident('n.nspname')}, {_ident('p.proname')}, "
    "pg_catalog.pg_get_function_identity_arguments(p.oid), "
    f"{_SOURCE} FROM pg_catalog.pg_proc AS p "
    "JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace "
    "WHERE n.nspname OPERATOR(pg_catalog.<>) 'pg_catalog'::pg_catalog.name "
    "AND n.nspname OPERATOR(pg_catalog.<>) 'information_schema'::pg_catalog.name "
    f"AND {_SOURCE} OPERATOR(pg_catalog.~*) 'notify'::pg_catalog.text "
    "ORDER BY n.nspname, p.proname"
)

# Without the copies that partitions inherit from their table.
TRIGGERS = (
    f"SELECT t.tgfoid, {_ident('t.tgname')}, {_ident('n.nspname')}, {_ident('c.relname')}, "
    "t.tgenabled::pg_catalog.text, "
    "pg_catalog.encode(t.tgargs, 'hex'::pg_catalog.text) FROM pg_catalog.pg_trigger AS t "
    "JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid "
    "JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace "
    "WHERE NOT t.tgisinternal AND t.tgparentid OPERATOR(pg_catalog.=) 0::pg_catalog.oid "
    f"UNION ALL SELECT evtfoid, {_ident('evtname')}, ''::pg_catalog.text, "
    "evtevent::pg_catalog.text, "
    "evtenabled::pg_catalog.text, ''::pg_catalog.text FROM pg_catalog.pg_event_trigger"
)
RULES = (
    f"SELECT {_ident('r.rulename')}, {_ident('n.nspname')}, {_ident('c.relname')}, "
    "r.ev_enabled::pg_catalog.text, "
    "pg_catalog.pg_get_ruledef(r.oid) FROM pg_catalog.pg_rewrite AS r "
    "JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) r.ev_class "
    "JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace "
    "WHERE r.rulename OPERATOR(pg_catalog.<>) '_RETURN'::pg_catalog.name "
    "ORDER BY n.nspname, c.relname, r.rulename"
)

#: Why a trigger or a rule does not fire in ordinary sessions, by its state in the catalogue.
ASLEEP = {"D": "disabled", "R": "for replicas only"}

_IDENTIFIER = r'"(?:[^"]|"")+"|[A-Za-z_\x80-\U0010ffff][\w$]*'
_LISTEN = re.compile(rf"\b(UN)?LISTEN\s+({_IDENTIFIER}|\*)", re.IGNORECASE)
_COMMENT = re.compile(r"('(?:[^']|'')*')|--[^\n]*|/\*.*?\*/", re.DOTALL)
_NOTIFY = re.compile(rf"\bNOTIFY\s+({_IDENTIFIER})?", re.IGNORECASE)
_PG_NOTIFY = re.compile(
    r"\bpg_notify\s*\(\s*(?:channel\s*=>\s*)?(?:'((?:[^']|'')*)'\s*(?:::\s*[\w.\"]+\s*)?(?=,))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Notifier:
    """A function, trigger or rule that notifies."""

    what: str
    names: frozenset[str]
    """The channels that it names."""
    computes: bool = False
    """Whether it also notifies channels whose name it computes."""
    asleep: str | None = None
    """Why it does not fire; None if it does."""
    remedy: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def channel_findings(ask: Ask, channels: Sequence[str]) -> Iterator[Finding]:
    """Yield what is known about each of *channels*.

    :param ask: returns the rows of a statement.
    """
    sessions = [
        (pid, application, listened(query), is_reactor)
        for pid, application, query, is_reactor in ask(LISTENERS)
    ]
    notifiers = [*functions_and_triggers(ask), *rules(ask)]
    for channel in channels:
        text = (
            f"{channel}: not notified, as its listeners would act on it; delivery was tested on "
            "a separate channel"
        )
        yield Finding("channel", "ok", text, facts={"channel": channel})
        yield listeners(channel, sessions)
        yield notifying(channel, notifiers)
        yield from similar(channel, sessions, notifiers)


# -- channels in SQL -----------------------------------------------------------------------------


def identified(token: str) -> str:
    """The name that an SQL identifier stands for."""
    quoted = token.startswith('"')
    name = token[1:-1].replace('""', '"') if quoted else token.lower()
    return name.encode()[:MAX_CHANNEL_BYTES].decode(errors="ignore")


def listened(query: str) -> frozenset[str]:
    """The channels that a session listens to after *query*, as far as it shows."""
    names: set[str] = set()
    for unlisten, token in _LISTEN.findall(query):
        if not unlisten:
            names.add(identified(token))
        elif token == "*":
            names.clear()
        else:
            names.discard(identified(token))
    return frozenset(names)


def notified(source: str) -> tuple[frozenset[str], bool]:
    """The channels that *source* notifies by name, and whether it computes other names."""
    source = _COMMENT.sub(lambda found: found[1] or " ", source)
    literals = [found[1] for found in _PG_NOTIFY.finditer(source)]
    tokens = [found[1] for found in _NOTIFY.finditer(source)]
    names = {literal.replace("''", "'") for literal in literals if literal is not None}
    names |= {identified(token) for token in tokens if token}
    return frozenset(names), None in (*literals, *tokens)


# -- the catalogue -------------------------------------------------------------------------------


def functions_and_triggers(ask: Ask) -> Iterator[Notifier]:
    """Yield triggers that notify, and functions that notify and that no trigger calls."""
    triggers = ask(TRIGGERS)
    for oid, schema, name, arguments, source in ask(FUNCTIONS):
        names, computes = notified(source)
        if not names and not computes:
            continue
        function = f"{schema}.{name}({arguments})"
        called = False
        for of, trigger, table_schema, table, enabled, arguments_in_hex in triggers:
            if of == oid:
                called = True
                given = bytes.fromhex(arguments_in_hex).decode(errors="replace").split("\0")
                place = f"{table_schema}.{table}" if table_schema else table
                kind = "TRIGGER" if table_schema else "EVENT TRIGGER"
                remedy = f"to enable it: ALTER EVENT TRIGGER {trigger} ENABLE"
                if table_schema:
                    remedy = f"to enable it: ALTER TABLE {place} ENABLE TRIGGER {trigger}"
                asleep = ASLEEP.get(enabled)
                yield Notifier(
                    f"{kind.lower()} {trigger} on {place}, which calls {function}",
                    names | frozenset(given[:-1] if computes else ()),
                    computes,
                    asleep,
                    remedy if asleep else None,
                    {"trigger": trigger, "on": place, "function": function, "asleep": asleep},
                )
        if not called:
            facts = {"function": function}
            yield Notifier(
                f"function {function}, which no trigger calls", names, computes, facts=facts
            )


def rules(ask: Ask) -> Iterator[Notifier]:
    """Yield rules that notify."""
    for name, schema, table, enabled, definition in ask(RULES):
        names, computes = notified(definition)
        if names or computes:
            asleep = ASLEEP.get(enabled)
            place = f"{schema}.{table}"
            yield Notifier(
                f"rule {name} on {place}",
                names,
                computes,
                asleep,
                f"to enable it: ALTER TABLE {place} ENABLE RULE {name}" if asleep else None,
                {"rule": name, "on": place, "asleep": asleep},
            )


# -- findings ------------------------------------------------------------------------------------


def listeners(channel: str, sessions: list[tuple[int, str, frozenset[str], bool]]) -> Finding:
    """Report which sessions seem to listen to *channel*."""
    known = [(pid, name or "no name") for pid, name, names, _ in sessions if channel in names]
    reactors = sum(1 for *_, is_reactor in sessions if is_reactor)
    facts = {
        "channel": channel,
        "sessions": [{"pid": pid, "application_name": name} for pid, name in known],
        "reactors": reactors,
    }
    said = ", ".join(f"pid {pid} ({name})" for pid, name in known[:5])
    text = f"{channel}: sessions whose last statement was LISTEN: {said or 'none'}"
    text += ", ..." if len(known) > 5 else ""
    if reactors:
        text += f"; reactors, whose channels the server does not show: {reactors}"
    if known or reactors:
        return Finding("listeners", "ok", text, facts=facts)
    advice = (
        "the server shows only the last statement of a session, so a listener that has run "
        "another one since is not found"
    )
    return Finding("listeners", "note", text, advice, facts)


def notifying(channel: str, notifiers: list[Notifier]) -> Finding:
    """Report what notifies *channel*."""
    by_name = [one for one in notifiers if channel in one.names]
    asleep = [one for one in by_name if one.asleep]
    computing = [one for one in notifiers if one.computes and one not in by_name]
    facts = {
        "channel": channel,
        "notifiers": [one.facts for one in by_name],
        "computing": [one.facts for one in computing],
    }
    found = [one.what + (f" ({one.asleep})" if one.asleep else "") for one in by_name]
    text = f"{channel}: {'; '.join(found) or 'no function, trigger or rule names it'}"
    if computing:
        text += f"; may be notified by {'; '.join(one.what for one in computing)}"
    if asleep:
        advice = "; ".join(one.remedy for one in asleep if one.remedy)
        return Finding("notifiers", "warning", text, advice, facts)
    if by_name:
        return Finding("notifiers", "ok", text, facts=facts)
    advice = "a program may notify it; if a trigger should, create it in this database"
    return Finding("notifiers", "note", text, advice, facts)


def similar(
    channel: str,
    sessions: list[tuple[int, str, frozenset[str], bool]],
    notifiers: list[Notifier],
) -> Iterator[Finding]:
    """Report other channel names that may be meant to be this one."""
    where: dict[str, list[str]] = {}
    for pid, _, names, _ in sessions:
        for name in names:
            where.setdefault(name, []).append(f"pid {pid} listens to it")
    for notifier in notifiers:
        for name in notifier.names:
            where.setdefault(name, []).append(notifier.what)
    found = {name: places for name, places in where.items() if confusable(name, channel)}
    if not found:
        return
    others = "; ".join(f"{name!r} ({', '.join(places)})" for name, places in sorted(found.items()))
    advice = (
        "these are different channels: pg_notify() and quoted names keep case, blanks and quotes; "
        f"unquoted names become lower case; beyond {MAX_CHANNEL_BYTES} bytes LISTEN and NOTIFY "
        "truncate a name, and pg_notify() rejects it"
    )
    facts = {"channel": channel, "similar": found}
    yield Finding("names", "warning", f"{channel}: there is also {others}", advice, facts)


def confusable(name: str, channel: str) -> bool:
    """Whether two names differ only in case, blanks or quotes, or beyond the length limit."""
    if name == channel:
        return False
    cut = (text.encode()[:MAX_CHANNEL_BYTES].decode(errors="ignore") for text in (name, channel))
    first, second = (text.strip(" \t\r\n\"'").casefold() for text in cut)
    return first == second
