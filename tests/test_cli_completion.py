"""``pgsignals completion``: in the shells themselves, where the machine has them."""

from __future__ import annotations

import re
import subprocess
from functools import cache

import pytest

from pgsignals import cli
from pgsignals.cli.completion import SCRIPTS, commands_of
from tests.support.commands import NOWHERE, PGSIGNALS, ROOT, environment
from tests.support.tools import tool

COMMANDS = {command.name for command in commands_of(cli.parser()) if command.name}

#: What is typed, and what must be among the completions, and what must not.
LINES = [
    ("pgsignals ", COMMANDS, {"--json"}),
    ("pgsignals li", {"listen"}, {"notify"}),
    ("pgsignals listen --", {"--dsn", "--json", "--exec", "--help"}, {"--metrics"}),
    ("pgsignals run shop --m", {"--metrics"}, {"--log"}),
    ("pgsignals run shop --log ", {"text", "json"}, {"--metrics"}),
    ("pgsignals completion ", {"bash", "zsh", "fish"}, {"listen"}),
    ("pgsignals doctor --j", {"--json"}, {"listen"}),
]


@cache
def script(shell: str) -> str:
    done = subprocess.run(
        [*PGSIGNALS, "completion", shell],
        env=environment(NOWHERE, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


def ask(shell: str, *arguments: str, text: str) -> str:
    """What a shell prints that reads *text*."""
    done = subprocess.run(
        [tool(shell), *arguments],
        input=text,
        env=environment(None, HOME="/nonexistent", TERM="dumb"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("line", "among", "not_among"), LINES, ids=range(len(LINES)))
def test_bash_completes(line: str, among: set[str], not_among: set[str]) -> None:
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    text = (
        f"{script('bash')}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        "_pgsignals; printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    found = set(ask("bash", "--norc", "-eu", text=text).split())

    assert found >= among
    assert not found & not_among


@pytest.mark.parametrize(("line", "among", "not_among"), LINES, ids=range(len(LINES)))
def test_fish_completes(line: str, among: set[str], not_among: set[str]) -> None:
    text = f"{script('fish')}\ncomplete -C '{line}'\n"
    found = {answer.split("\t")[0] for answer in ask("fish", "-N", text=text).splitlines()}

    assert found >= among
    assert not found & not_among


def test_zsh_completes() -> None:
    program = f"""
zmodload zsh/zpty
zpty -b z zsh -f
typed() {{ zpty -w -n z "$1"; }}
shows() {{
    local all=
    repeat 200; do
        while zpty -r -t z part; do all+=$part; done
        [[ $all == *$1* ]] && return 0
        sleep 0.05
    done
    print -r -- "never showed $1: $all"; return 1
}}
typed $'autoload -U compinit; compinit -D -u; PS1=; source <(cat <<\\'END\\'\\n'
typed {shell_quoted(script("zsh"))}$'END\\n)\\n'
typed $'print rea""dy\\n'; shows ready || exit
typed $'pgsignals li\\t'; shows 'pgsignals listen' || exit
typed $' --js\\t'; shows ' --json' || exit
typed $'\\x15pgsignals run shop --log js\\t'; shows '--log json' || exit
typed $'\\x15pgsignals completion fi\\t'; shows 'completion fish' || exit
zpty -d z
print all right
"""
    assert ask("zsh", "-f", text=program).strip() == "all right"


def shell_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_is_good_grammar(shell: str) -> None:
    assert ask(shell, "-n", text=script(shell)) == ""


@pytest.mark.parametrize("shell", SCRIPTS)
def test_script_knows_every_command_and_option(shell: str) -> None:
    text = script(shell)
    for command in commands_of(cli.parser()):
        for option in command.options:
            name = option.names[-1].lstrip("-") if shell == "fish" else option.names[-1]
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text), name
        assert command.name in text
