"""A root directory, ways to run something in it, and what tests ask of it."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pymigrate.runtime import enter, init, namespaces
from pymigrate.runtime.settings import (
    IdMapping,
    Process,
    Spec,
)
from pymigrate.runtime.spec import default_spec
from pymigrate.runtime.stdio import Stdio
from tests.fakes.offspring import offspring

APPLETS = (
    "cat echo grep head hostname id ls mkdir mknod mount ps pwd readlink sh sleep stat touch true"
    " tty unshare wc"
)
PATIENCE = 20.0
MAPPINGS = (IdMapping(0, 100000, 65536),)


@dataclass
class Box:
    """A busybox root directory and ways to run something in it."""

    root: Path
    cache: Path

    def start(self, spec: Spec, stdio: Stdio, **more: Any) -> init.Started:
        return init.spawn_init(
            spec,
            **{"rootfs": str(self.root), "netns_fd": None, "cgroup": None, "cache": self.cache}
            | more,
            stdio=stdio,
        )

    def run(self, script: str, spec: Spec | None = None, **more: Any) -> str:
        """Run a shell script as pid 1; returns what it printed, also on stderr."""
        spec = default_spec(["true"], hostname="web") if spec is None else spec
        spec = replace(spec, process=replace(spec.process, args=("sh", "-c", script)))
        return self.output(lambda stdio: self.start(spec, stdio, **more).pid)

    def exec(self, pid: int, spec: Spec, process: Process) -> str:
        """Run a process in a container; returns what it printed, also on stderr."""
        return self.output(
            lambda stdio: (
                enter.enter(pid, spec, process, cgroup=None, stdio=stdio, cache=self.cache).pid
            )
        )

    def output(self, start: Callable[[Stdio], int]) -> str:
        read, write = os.pipe()
        with os.fdopen(read) as stream:
            try:
                pid = start(Stdio(None, write, write))
            finally:
                os.close(write)
            text = stream.read()
        os.waitpid(pid, 0)
        return text.strip()


def no_children() -> None:
    assert offspring() == []


def link(path: str) -> str:
    return str(Path(path).readlink())


def own_namespaces() -> dict[str, str]:
    names = namespaces.FILES.values()
    return {name: link(f"/proc/self/ns/{name}") for name in names}


LIST_NAMESPACES = (
    "for n in "
    + " ".join(namespaces.FILES.values())
    + ("; do echo $n `readlink /proc/self/ns/$n`; done")
)


def listed(text: str) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in text.splitlines())


def read_until_end(master: int) -> str:
    text = b""
    while select.select([master], [], [], PATIENCE)[0]:
        try:
            piece = os.read(master, 4096)
        except OSError:  # EIO: the last slave was closed
            break
        text += piece
    return text.decode().replace("\r\n", "\n")
