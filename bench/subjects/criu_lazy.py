"""CRIU's own post-copy: its page server and its lazy-pages daemon, as its manual says."""

from __future__ import annotations

import select
import time

from bench.harness import BenchError
from bench.limits import PIPE_SIZE, raised
from bench.subjects.bare import IMAGES, PATIENCE, Bare
from bench.subjects.lazy_pages import PIPE
from bench.subjects.subject import fresh
from bench.workload import Workload

PORT = 7100
STEP = 0.002  # seconds between two looks at whether it listens, which it says to nobody


class CriuLazy(Bare):
    """Dumped without its pages, which follow once it is restored."""

    def launch(self, workload: Workload) -> None:
        """Start it, with the pipes that CRIU needs until `remove`."""
        self._undo.enter_context(raised(PIPE_SIZE, PIPE))
        super().launch(workload)

    def _move(self, login: tuple[str, str]) -> None:
        source, target = self._source, self._target
        for host in (source, target):
            fresh(host, IMAGES)
        dump = self._start(
            source,
            *("dump", "--lazy-pages", "--address", str(source.address), "--port", str(PORT)),
            *("--tree", str(self._pid), "--manage-cgroups=ignore"),
            *("--status-fd", "1"),
        )
        assert dump.stdout is not None
        readable, _, _ = select.select([dump.stdout], [], [], PATIENCE)
        if not readable or dump.stdout.read(1) != "\0":
            raise BenchError(f"criu dump: {self._log(source, 'dump')}")
        to = f"{target.ssh_destination}:{IMAGES}/"
        source.sh(f"scp -q {' '.join(login)} {IMAGES}/*.img {to}")
        pages = self._start(
            target,
            *("lazy-pages", "--page-server", "--address", str(source.address)),
            *("--port", str(PORT)),
        )
        socket = target.outside(IMAGES) / "lazy-pages.socket"
        deadline = time.monotonic() + PATIENCE
        while not socket.exists():
            if pages.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"criu lazy-pages: {self._log(target, 'lazy-pages')}")
            time.sleep(STEP)
        restore = self._start(
            target, "restore", "--lazy-pages", "--restore-detached", "--manage-cgroups=ignore"
        )
        self._wait(
            ("restore", restore, target), ("lazy-pages", pages, target), ("dump", dump, source)
        )
