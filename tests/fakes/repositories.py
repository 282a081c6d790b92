"""Small repositories, and a disk that fails or loses power at the n-th thing done to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.repository import Repository
from pymigrate.checkpoint.repository_directory import Directory
from pymigrate.checkpoint.repository_writer import writing
from pymigrate.checkpoint.snapshot import Snapshot
from pymigrate.runtime import state
from pymigrate.runtime.spec import default_spec

Content = Mapping[str, bytes]


class Crash(BaseException):
    """The process is gone: no clean-up of its reaches the disk any more."""


class FailingDisk(Directory):
    """Fails the n-th change (from 0), as a full or broken disk does, or by a crash.

    A write that fails has written half of its bytes. After a crash nothing changes any more.
    ``done`` counts the changes, so a run without failures says how many there are.
    """

    def __init__(self, root: Path, fails_at: int = -1, error: int | None = None) -> None:
        super().__init__(root)
        self.done = 0
        self._fails_at = fails_at
        self._error = error
        self._dead = False

    def _fails(self) -> bool:
        if self._dead:
            raise Crash
        self.done += 1
        return self.done - 1 == self._fails_at

    def _fail(self) -> OSError:
        if self._error is None:
            self._dead = True
            raise Crash
        return OSError(self._error, os.strerror(self._error))

    def write(self, descriptor: int, data: memoryview) -> int:
        if self._fails():
            super().write(descriptor, data[: len(data) // 2])
            raise self._fail()
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        if self._fails():
            raise self._fail()

    def rename(self, draft: str, place: str) -> None:
        if self._fails():
            raise self._fail()
        super().rename(draft, place)

    def link(self, draft: str, place: str) -> None:
        if self._fails():
            raise self._fail()
        super().link(draft, place)

    def unlink(self, place: str) -> None:
        if self._fails() and self._error in (None, errno.EIO):
            raise self._fail()
        super().unlink(place)

    def create(self, place: str) -> int:
        if self._fails():
            raise self._fail()
        return super().create(place)

    def mkdir(self, folder: str) -> None:
        if self._fails():
            raise self._fail()
        super().mkdir(folder)


def manifest(name: str = "web", created: str = "2026-01-02T03:04:05Z") -> Manifest:
    """Return the manifest of a container that never was."""
    return Manifest(
        created=created,
        software="pymigrate 0.1.0",
        criu="4.2.1",
        kernel="6.18",
        machine=os.uname().machine,
        page_size=os.sysconf("SC_PAGE_SIZE"),
        cgroup="v2",
        tcp="established",
        descriptors=("/dev/null", "pipe:[1]", "pipe:[2]"),
        record=state.Record(
            id="ab" * 32,
            name=name,
            image="web:1",
            image_digest="cd" * 32,
            layers=("ef" * 32,),
            created="2026-01-01T00:00:00Z",
            network=state.NetworkSettings(mode="none"),
        ),
        spec=default_spec(["true"]),
        members={},
    )


def add(
    repository: Repository,
    content: Content,
    scratch: Path,
    created: str = "2026-01-02T03:04:05Z",
    name: str = "web",
) -> Snapshot:
    """Add a snapshot with these members."""
    scratch.mkdir(exist_ok=True)
    with writing(repository) as writer:
        members = []
        for member, data in content.items():
            path = scratch / member.replace("/", "_")
            path.write_bytes(data)
            members.append(writer.add(member, path, digest=member.startswith("volumes/")))
        described = manifest(name, created)
        return writer.publish(Snapshot("", created, "alpha", described, tuple(members)))


def restored(repository: Repository, identity: str, scratch: Path) -> dict[str, bytes]:
    """Restore all members of a snapshot."""
    scratch.mkdir(exist_ok=True)
    found = {}
    with repository.reading():
        contents = repository.contents()
        for member in repository.snapshot(identity).members:
            path = scratch / "restored"
            path.unlink(missing_ok=True)
            repository.extract(contents, member, path)
            found[member.name] = path.read_bytes()
            path.unlink()
    return found
