"""What one does with CRIU and a copier: dump to files, copy them, restore; all in tmpfs."""

from __future__ import annotations

from bench.subjects.bare import IMAGES, Bare
from bench.subjects.subject import fresh
from tests.lab import Host


class CriuCopied(Bare):
    """Frozen from its dump until it is restored; ``copy`` is the copier with its options."""

    def __init__(self, source: Host, target: Host, copy: str) -> None:
        super().__init__(source, target)
        self._copy = copy

    def _move(self, login: tuple[str, str]) -> None:
        source, target = self._source, self._target
        for host in (source, target):
            fresh(host, IMAGES)
        what = ("--tree", str(self._pid), "--manage-cgroups=ignore")
        self._wait(("dump", self._start(source, "dump", *what), source))
        to = f"{target.ssh_destination}:{IMAGES}/"
        source.sh(self._copy.format(ssh=" ".join(login), images=IMAGES, to=to), timeout=600)
        restore = self._start(target, "restore", "--restore-detached", "--manage-cgroups=ignore")
        self._wait(("restore", restore, target))
