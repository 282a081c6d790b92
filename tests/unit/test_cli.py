"""The command line at its edges: streams that are closed, full or left, and what comes twice."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import pytest

from pymigrate.migrate import cli

COMMAND = (sys.executable, "-I", "-m", "pymigrate.migrate")


def shell(redirected: str, *words: str) -> subprocess.CompletedProcess[str]:
    text = f"{shlex.join([*COMMAND, *words])} {redirected}"
    return subprocess.run(text, shell=True, capture_output=True, text=True, timeout=30, check=False)


def test_closed_output_is_no_error() -> None:
    found = shell(">&-", "version")
    assert (0, "") == (found.returncode, found.stderr)


def test_closed_stderr_hides_an_error_but_not_its_code() -> None:
    found = shell("2>&-", "no-such-verb")
    assert (2, "") == (found.returncode, found.stdout)


def test_full_output_is_told_once() -> None:
    found = shell(">/dev/full", "version")
    assert 24 == found.returncode
    assert ["pymigrate", "hint"] == [line.split(":")[0] for line in found.stderr.splitlines()]


def test_empty_root_is_not_the_current_directory() -> None:
    found = shell("", "--root", "", "ps")
    assert 2 == found.returncode
    assert "--root: it is empty" in found.stderr


def test_relative_root_of_another_host_is_refused() -> None:
    found = shell("", "migrate", "web", "root@beta", "--remote-root", "srv")
    assert 2 == found.returncode
    assert "--remote-root srv is relative" in found.stderr
    assert "nothing was touched" in found.stderr


def test_second_interrupt_does_not_end_what_the_first_has_begun_to_undo(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, cli._interrupt)
    undone: list[bool] = []

    def interrupted() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            undone.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert undone
    assert "already stopping" in capfd.readouterr().err
