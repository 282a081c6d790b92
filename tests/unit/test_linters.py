"""Style, types and layers are properties of the code like any other: they are tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CHECKS = {
    "style": ("ruff", "check", "--quiet", "--output-format=concise"),
    "format": ("ruff", "format", "--check", "--quiet", "--diff"),
    "types": ("mypy", "--no-error-summary"),
    "layers": ("lint-imports", "--no-cache"),
}


@pytest.mark.parametrize("check", CHECKS)
def test_linter_finds_nothing(check: str) -> None:
    tool, *arguments = CHECKS[check]
    program = Path(sys.executable).parent / tool
    if not program.exists():
        # A machine that was set up by ./test has them all; any other need not.
        required = os.environ.get("CI") or os.environ.get("PYMIGRATE_REQUIRED")
        (pytest.fail if required else pytest.skip)(f"{tool} is not beside {sys.executable}")

    result = subprocess.run(
        [program, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout
