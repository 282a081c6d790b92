"""The verb ``completion``: what a shell needs to complete our command lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from pymigrate.migrate import output

# Verbs whose words are containers, which the script asks us for.
_OF_CONTAINERS = frozenset(
    {"start", "stop", "kill", "pause", "resume", "restart", "rm", "wait"}
    | {"exec", "attach", "logs", "inspect", "top", "path", "cp", "diff", "stats", "update"}
    | {"checkpoint", "migrate", "check"}
)
_OF_PROGRAMS = frozenset({"agent"})  # verbs that nobody types
_NAMES = "pymigrate ps -a --names 2>/dev/null"


@dataclass(frozen=True)
class Command:
    """A verb, such as "image ls", its options, and what it says of itself."""

    words: tuple[str, ...]
    options: tuple[str, ...]
    text: str


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``completion``."""
    parser = verbs.add_parser(
        "completion",
        help="print a script by which a shell completes verbs, options and containers",
        epilog="example: pymigrate completion bash > /etc/bash_completion.d/pymigrate",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="your shell")
    parser.set_defaults(run=completion)


def completion(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from pymigrate.migrate.cli import build_parser

    found = sorted(commands(build_parser(None)), key=lambda each: each.words)
    make = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell]
    output.say(make(found))
    return 0


def commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = (), text: str = ""
) -> Iterator[Command]:
    """Yield the parser and those below it."""
    options = [
        option
        for action in parser._actions  # argparse tells it in no other way
        for option in action.option_strings
        if action.help is not argparse.SUPPRESS
    ]
    yield Command(words, tuple(sorted(options)), text)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {each.dest: each.help or "" for each in action._choices_actions}
            for name, below in action.choices.items():
                if name in helps and name not in _OF_PROGRAMS:
                    yield from commands(below, (*words, name), helps[name])


def _below(found: list[Command], words: tuple[str, ...]) -> list[Command]:
    return [each for each in found if each.words[:-1] == words and each.words]


def _bash(found: list[Command]) -> str:
    cases = []
    for each in found:
        offered = [*(one.words[-1] for one in _below(found, each.words)), *each.options]
        names = " $(_pymigrate_names)" if each.words[:1] and each.words[0] in _OF_CONTAINERS else ""
        cases.append(f'    "{" ".join(each.words)}") words="{" ".join(offered)}{names}" ;;')
    verbs = "|".join(" ".join(each.words) for each in found if each.words)
    return "\n".join(
        (
            "# bash completion of pymigrate",
            f"_pymigrate_names() {{ {_NAMES}; }}",
            "_pymigrate() {",
            '  local current="${COMP_WORDS[COMP_CWORD]}" path="" word words',
            '  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
            '    case "${path:+$path }$word" in',
            "      " + "|".join(f'"{each}"' for each in verbs.split("|")) + ")",
            '        path="${path:+$path }$word" ;;',
            "    esac",
            "  done",
            '  case "$path" in',
            *cases,
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "  # Where nothing fits, files do.",
            "}",
            "complete -o bashdefault -o default -F _pymigrate pymigrate",
        )
    )


def _zsh(found: list[Command]) -> str:
    return "\n".join(
        (
            "#compdef pymigrate",
            "# zsh completion of pymigrate: that of bash, which zsh can run",
            "autoload -Uz bashcompinit && bashcompinit",
            _bash(found),
        )
    )


def _fish(found: list[Command]) -> str:
    lines = ["# fish completion of pymigrate", "complete -c pymigrate -f"]
    for each in found:
        within = _fish_condition(found, each.words)
        start = f"complete -c pymigrate -n '{within}'"
        lines += (
            f"{start} -a {below.words[-1]} -d {_quoted(below.text)}"
            for below in _below(found, each.words)
        )
        for option in each.options:
            kind = "-l" if option.startswith("--") else "-s"
            lines.append(f"{start} {kind} {option.lstrip('-')}")
        if each.words and each.words[0] in _OF_CONTAINERS:
            lines.append(f"{start} -F -a '({_NAMES})'")
    return "\n".join(lines)


def _fish_condition(found: list[Command], words: tuple[str, ...]) -> str:
    if not words:
        verbs = " ".join(each.words[-1] for each in _below(found, ()))
        return f"not __fish_seen_subcommand_from {verbs}"
    return "; and ".join(f"__fish_seen_subcommand_from {word}" for word in words)


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
