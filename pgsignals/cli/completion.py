"""``pgsignals completion``: scripts for shells, generated from the command line itself."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Iterator
from typing import NamedTuple

from pgsignals.cli.arguments import Commands, Parser, add_command

ABOUT = """\
Print a script that completes commands and options in a shell.

  bash, in ~/.bashrc:                 source <(pgsignals completion bash)
  zsh, in ~/.zshrc after compinit:    source <(pgsignals completion zsh)
  fish, in ~/.config/fish/config.fish:   pgsignals completion fish | source

Exit status: 0.
"""


class Option(NamedTuple):
    """An option of a command."""

    names: tuple[str, ...]
    help: str
    value: str  # the name of its value; "" if it takes none
    choices: tuple[str, ...]  # its possible values; empty if any value will do


class Command(NamedTuple):
    """A command."""

    name: str
    help: str
    options: tuple[Option, ...]
    choices: tuple[str, ...]  # for its first argument


def add(commands: Commands, top_level: Parser) -> None:
    """Define ``pgsignals completion`` and its options.

    :param top_level: the parser whose commands and options are completed.
    """
    run = functools.partial(completion, top_level)
    parser = add_command(commands, "completion", "set up completion in a shell", ABOUT, "", run)
    parser.add_argument("shell", metavar="SHELL", choices=SCRIPTS, help=", ".join(SCRIPTS))


def completion(top_level: Parser, args: argparse.Namespace) -> int:
    """Print the script, and return the exit status."""
    print("\n".join(SCRIPTS[args.shell](commands_of(top_level))))
    return 0


# argparse has no public way to list what a parser accepts.
def commands_of(top_level: Parser) -> list[Command]:
    """The top level, named ``""``, and each command."""
    found = [Command("", "", options_of(top_level), ())]
    for action in top_level._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                parser = action.choices[choice.dest]
                found.append(
                    Command(
                        choice.dest, choice.help or "", options_of(parser), arguments_of(parser)
                    )
                )
    return found


def options_of(parser: argparse.ArgumentParser) -> tuple[Option, ...]:
    """The options of one command."""
    return tuple(
        Option(
            tuple(action.option_strings),
            action.help or "",
            "" if action.nargs == 0 else str(action.metavar or action.dest.upper()),
            tuple(action.choices or ()),
        )
        for action in parser._actions
        if action.option_strings
    )


def arguments_of(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """The possible values of its arguments."""
    return tuple(
        choice
        for action in parser._actions
        if not action.option_strings
        for choice in action.choices or ()
    )


# -- the shells ----------------------------------------------------------------------------------


def bash(commands: list[Command]) -> Iterator[str]:
    """The script for bash."""
    yield "_pgsignals() {"
    yield "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}"
    yield "    local command= words= word"
    yield '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield "        case $word in -*) ;; *) command=$word; break ;; esac"
    yield "    done"
    yield "    COMPREPLY=()"
    yield "    case $command in"
    names = [command.name for command in commands if command.name]
    for command in commands:
        yield f"    {command.name or quoted('')})"
        yield "        case $before in"
        for option in command.options:
            if option.value:
                reply = f"words={quoted(' '.join(option.choices))}" if option.choices else "return"
                yield f"        {'|'.join(option.names)}) {reply} ;;"
        words = [*(names if not command.name else command.choices), *long_names(command)]
        yield f"        *) words={quoted(' '.join(words))} ;;"
        yield "        esac ;;"
    yield "    esac"
    yield '    COMPREPLY=($(compgen -W "$words" -- "$current"))'
    yield "}"
    yield "complete -o default -F _pgsignals pgsignals"


def zsh(commands: list[Command]) -> Iterator[str]:
    """The script for zsh."""
    yield "#compdef pgsignals"
    yield "_pgsignals() {"
    yield "    local -a commands"
    yield "    commands=("
    for command in commands[1:]:
        yield f"        {quoted(f'{command.name}:{command.help}')}"
    yield "    )"
    yield "    if (( CURRENT == 2 )) && [[ $words[2] != -* ]]; then"
    yield "        _describe command commands"
    yield "        return"
    yield "    fi"
    yield "    shift words; (( CURRENT-- ))"
    yield "    case $words[1] in"
    for command in (*commands[1:], commands[0]):
        specs = [spec for option in command.options for spec in zsh_specs(option)]
        values = f"({' '.join(command.choices)})" if command.choices else "_files"
        specs.append(quoted(f"*: :{values}"))
        yield f"    {command.name or '*'}) _arguments {' '.join(specs)} ;;"
    yield "    esac"
    yield "}"
    yield "if [[ $zsh_eval_context[-1] == loadautofunc ]]; then"
    yield '    _pgsignals "$@"'
    yield "else"
    yield "    compdef _pgsignals pgsignals"
    yield "fi"


def zsh_specs(option: Option) -> Iterator[str]:
    """The specs of an option for ``_arguments``; each option may be repeated."""
    text = "".join("\\" + c if c in "[]:\\" else c for c in option.help)
    for name in option.names:
        value = f":{option.value}:({' '.join(option.choices)})" if option.value else ""
        yield quoted(f"*{name}[{text}]{value}")


def fish(commands: list[Command]) -> Iterator[str]:
    """The script for fish."""
    yield "complete -c pgsignals -f"
    for command in commands[1:]:
        yield (
            f"complete -c pgsignals -n __fish_use_subcommand -a {command.name} "
            f"-d {fish_quoted(command.help)}"
        )
    for command in commands:
        when = "__fish_use_subcommand"
        if command.name:
            when = f"__fish_seen_subcommand_from {command.name}"
        begin = f"complete -c pgsignals -n {fish_quoted(when)}"
        if command.choices:
            yield f"{begin} -xa {fish_quoted(' '.join(command.choices))}"
        for option in command.options:
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                for name in option.names
            )
            value = " -r" if option.value else ""
            if option.choices:
                value = f" -xa {fish_quoted(' '.join(option.choices))}"
            yield f"{begin} {names}{value} -d {fish_quoted(option.help)}"


def long_names(command: Command) -> list[str]:
    """The options of a command, each by one name."""
    return [option.names[-1] for option in command.options]


def quoted(text: str) -> str:
    """*text* as one word of bash and zsh, always in quotes."""
    return shlex.quote(text) if text else "''"


def fish_quoted(text: str) -> str:
    """*text* as one word of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
