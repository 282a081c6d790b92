"""Completion scripts know every verb and option, and the shells accept them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from pymigrate.migrate import cli, cli_completion


@pytest.fixture(scope="module")
def found() -> list[cli_completion.Command]:
    return sorted(
        cli_completion.commands(cli.build_parser(None)), key=lambda command: command.words
    )


def complete(script: str, *words: str) -> list[str]:
    """Ask a real bash what it offers for a command line."""
    line = " ".join(f'"{word}"' for word in words)
    program = (
        f"{script}\n_pymigrate_names() {{ echo web; }}\n"
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _pymigrate; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_verbs_options_and_containers(found: list[cli_completion.Command]) -> None:
    script = cli_completion._bash(found)

    assert complete(script, "pymigrate", "chec") == ["check", "checkpoint"]
    assert complete(script, "pymigrate", "image", "b") == ["bootstrap", "build"]
    assert complete(script, "pymigrate", "run", "--memory-s") == ["--memory-swap"]
    assert complete(script, "pymigrate", "stop", "w") == ["web"]
    assert "agent" not in complete(script, "pymigrate", "")


def test_every_verb_of_every_family_is_offered(found: list[cli_completion.Command]) -> None:
    verbs = {command.words[0] for command in found if command.words}

    assert verbs == {verb for names in cli.FAMILIES.values() for verb in names.split()} - {"agent"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_take_their_scripts(
    shell: str, found: list[cli_completion.Command]
) -> None:
    script = {"zsh": cli_completion._zsh, "fish": cli_completion._fish}[shell](found)
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    subprocess.run([program, "-n"], input=script, text=True, check=True, timeout=30)
