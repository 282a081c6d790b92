"""runc's command line as pymigrate has it, and bundles to run by it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pymigrate.runtime import syscalls
from tests.fakes.oci import bundle
from tests.privileged.tool import Result, Tool

PR_SET_CHILD_SUBREAPER = 36


class Oci:
    """Runs ``pymigrate oci`` with its own --root."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "oci"
        self.directory = directory
        self.rootfs = Tool(directory).rootfs
        for name in ("proc", "dev", "sys", "root", "tmp"):  # the root of most bundles is read-only
            (self.rootfs / name).mkdir()

    def argv(self, *words: str) -> list[str]:
        program = (sys.executable, "-I", "-m", "pymigrate.migrate", "oci")
        return [*program, "--root", str(self.root), *words]

    def __call__(self, *words: str, code: int | None = 0, **settings: Any) -> Result:
        streams = {
            "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE
        }  # fmt: skip
        found: Result = subprocess.run(
            self.argv(*words), text=True, timeout=60, check=False, **(streams | settings)
        )
        assert code is None or code == found.returncode, found
        assert "Traceback" not in (found.stderr or ""), found
        return found

    def bundle(self, *command: str, change: Any = lambda _: None) -> str:
        return str(bundle(self.directory / "bundle", self.rootfs, *command, change=change))

    def run(self, *command: str, change: Any = lambda _: None, code: int = 0) -> str:
        """Run a bundle to its end."""
        return self("run", "-b", self.bundle(*command, change=change), "one", code=code).stdout

    def shell(self, script: str, change: Any = lambda _: None, code: int = 0) -> str:
        return self.run("/bin/sh", "-c", script, change=change, code=code)

    def state(self, name: str = "one") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("state", name).stdout)
        return found

    @contextlib.contextmanager
    def created(self, *command: str, change: Any = lambda _: None) -> Iterator[int]:
        """Create a container whose output can be read from the descriptor, as conmon does it.

        Its first process is given to us, who reap it.
        """
        read, write = os.pipe2(os.O_CLOEXEC)
        syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            made = subprocess.run(
                self.argv("create", "-b", self.bundle(*command, change=change),
                          "--pid-file", str(self.directory / "pid"), "one"),
                stdin=subprocess.DEVNULL, stdout=write, stderr=write, check=False,
            )  # fmt: skip
            os.close(write)
            assert 0 == made.returncode, os.read(read, 65536)
            try:
                yield read
            finally:
                self("delete", "--force", "one")
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(int((self.directory / "pid").read_text()), 0)
        finally:
            syscalls.prctl(PR_SET_CHILD_SUBREAPER, 0)
            os.close(read)
