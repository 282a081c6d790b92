"""The command with a root of its own, and a busybox to run in its containers."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pymigrate.runtime.state import Identity
from pymigrate.runtime.terminal import set_window_size

DEADLINE = 20.0
BUSYBOX = "/bin/busybox"
APPLETS = (
    "cat dd echo env false grep hostname id ip ls mkdir mount nc ps pwd readlink seq sh sleep stty "
    "touch true tty wc"
)
Result = subprocess.CompletedProcess[str]


class Tool:
    """Runs ``pymigrate`` with its own --root."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.rootfs = directory / "rootfs"
        (self.rootfs / "bin").mkdir(parents=True)
        (self.rootfs / "etc").mkdir()
        (self.rootfs / "bin/busybox").write_bytes(Path(BUSYBOX).read_bytes())
        (self.rootfs / "bin/busybox").chmod(0o755)
        for name in APPLETS.split():
            (self.rootfs / "bin" / name).symlink_to("busybox")
        (self.rootfs / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:\n")
        (self.rootfs / "etc/group").write_text("web:x:33:\ndisk:x:6:web\n")

    def argv(self, *words: str) -> list[str]:
        program = (sys.executable, "-I", "-m", "pymigrate.migrate")
        return [*program, "--root", str(self.root), *words]

    def __call__(self, *words: str, code: int | None = 0, data: str | None = None) -> Result:
        stdin = {"stdin": subprocess.DEVNULL} if data is None else {}
        found = subprocess.run(  # type: ignore[call-overload]
            self.argv(*words),
            input=data,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **stdin,
        )
        assert code is None or code == found.returncode, found
        assert "Traceback" not in found.stderr, found
        return found  # type: ignore[no-any-return]

    def run(self, *words: str, code: int | None = 0, data: str | None = None) -> Result:
        """Run a container of busybox, without a network unless the options say otherwise."""
        net = () if "--net" in words or "--join" in words else ("--net", "none")
        return self("run", *net, "--rootfs", str(self.rootfs), *words, code=code, data=data)

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        argv = self.argv("run", "--net", "none", "--rootfs", str(self.rootfs), *words)
        pipe = subprocess.PIPE
        return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe)

    def state(self, name: str) -> dict[str, object]:
        found: dict[str, dict[str, object]] = json.loads(self("inspect", name).stdout)
        return found["state"]

    def supervisor(self, name: str) -> Identity:
        state = self.state(name)
        return Identity(int(str(state["supervisor_pid"])), int(str(state["supervisor_started"])))


class Terminal:
    """A command with a terminal, through which we type."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.execv(argv[0], list(argv))
            finally:
                os._exit(127)

    def size(self, rows: int, columns: int) -> None:
        set_window_size(self.fd, rows, columns)

    def expect(self, wanted: bytes) -> bytes:
        return read_until(self.fd, wanted)

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def end(self) -> int:
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass  # EIO: it has closed its side
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def until(condition: Callable[[], bool]) -> None:
    """Wait for what no descriptor tells of; fails after the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        select.select([], [], [], 0.01)


def names(directory: Path | str) -> list[str]:
    """List a directory in order."""
    return sorted(path.name for path in Path(directory).iterdir())


def read_link(path: str) -> str:
    """Say where a link of /proc leads, which is not always a path."""
    return os.readlink(path)  # noqa: PTH115


def read_until(stream: int, wanted: bytes) -> bytes:
    """Read up to the text; what comes in the same piece after it is returned too."""
    found = b""
    end = time.monotonic() + DEADLINE
    while wanted not in found:
        ready, _, _ = select.select([stream], [], [], max(end - time.monotonic(), 0))
        assert ready, f"no {wanted!r} in {found!r}"
        piece = os.read(stream, 65536)
        assert piece, f"ended without {wanted!r}: {found!r}"
        found += piece
    return found
