"""A shell in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Iterator

import pytest

from tests.lab import Host, Lab, Process
from tests.privileged.programs.conftest import Relocate

pytestmark = [pytest.mark.privileged, pytest.mark.criu]


class Terminal:
    """A person at a terminal on which `pymigrate attach` runs."""

    def __init__(self, master: int, process: Process) -> None:
        self.master = master
        self.process = process
        self.shown = b""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def read_until(self, text: str, patience: float = 20) -> str:
        """Wait until this is shown; return all that was shown before it."""
        deadline = time.monotonic() + patience
        while text.encode() not in self.shown:
            left = max(0, deadline - time.monotonic())
            readable, _, _ = select.select([self.master], [], [], left)
            assert readable, f"{text!r} was not shown in {patience} s, but {self.shown.decode()!r}"
            self.shown += os.read(self.master, 4096)
        before, _, self.shown = self.shown.partition(text.encode())
        return before.decode()


@contextlib.contextmanager
def attached(host: Host, name: str, rows: int, columns: int) -> Iterator[Terminal]:
    """Attach a terminal of this size to a container."""
    master, slave = os.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        with host.popen(
            ["pymigrate", "attach", name], terminal=True, stdin=slave, stdout=slave, stderr=slave
        ) as process:
            try:
                yield Terminal(master, process)
            finally:
                process.kill()
    finally:
        os.close(slave)
        os.close(master)


def test_shell_in_a_terminal_keeps_its_variables_and_job(lab: Lab, relocate: Relocate) -> None:
    run = ("run", "-d", "-i", "-t", "--name", "shell", "programs", "bash", "--norc")
    lab["alpha"].pymigrate(*run)
    with attached(lab["alpha"], "shell", 24, 80) as terminal:
        terminal.type("cd /tmp; kept=forty-two; sleep 1000 &\n")
        terminal.type("echo sta''rted $(tty)\n")
        terminal.read_until("started /dev/")
        terminal.type("stty size; echo si''zed\n")
        assert "24 80" in terminal.read_until("sized")

    host = relocate("shell")

    with attached(host, "shell", 30, 100) as terminal:
        terminal.type("echo is''now $kept $PWD $(jobs -r | wc -l)\n")
        terminal.read_until("isnow forty-two /tmp 1")
        terminal.type("stty size; echo si''zed\n")
        assert "30 100" in terminal.read_until("sized")
        terminal.type("exit\n")
        terminal.process.wait(30)
    assert "0\n" == host.pymigrate("wait", "shell").stdout
