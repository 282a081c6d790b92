"""paramiko is loaded without what only ``Match exec`` needs, and that works all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def python(code: str, *words: str) -> str:
    """Return what an interpreter of its own prints: in this one everything is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_loading_ssh_loads_no_runner_of_programs() -> None:
    printed = python(
        "import sys; import pymigrate.transport.ssh; "
        "print(sorted({'invoke', 'asyncio', 'unittest'} & set(sys.modules)))"
    )

    assert printed == "[]\n"


@pytest.mark.parametrize(("command", "user"), [("true", "admin"), ("false", "guest")])
def test_match_exec_is_obeyed(tmp_path: Path, command: str, user: str) -> None:
    config = tmp_path / "config"
    config.write_text(f'Match exec "{command}"\n  User admin\nHost *\n  User guest\n')

    printed = python(
        "import sys, pathlib; from pymigrate.transport import destination, ssh; "
        "there = destination.Destination.parse('beta'); "
        "print(ssh.resolve(there, ssh_config=pathlib.Path(sys.argv[1])).user)",
        str(config),
    )

    assert printed == f"{user}\n"
