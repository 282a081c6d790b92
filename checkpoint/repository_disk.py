"""Where a repository meets the disk: files that appear whole or not at all.

A file is written below ``tmp/``, synced, renamed to its place, and the directory is synced. So
after a crash each file of the repository is complete, or it is a draft that nobody refers to.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pymigrate.checkpoint.repository_storage import FOLDERS, Ends
from pymigrate.checkpoint.sealing import Damaged
from pymigrate.runtime.errors import HostError, NoSpace, NotFound

_DRAFTS = "tmp"


class Disk:
    """The directory of a repository; paths are relative to it."""

    def __init__(self, root: Path) -> None:
        """Take the directory, which need not exist yet."""
        self.root = root
        self._drafts = 0

    # What changes the disk goes through these seven, so that a test can fail each of them.

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write once; see write(2)."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Wait until a file or directory is on the disk."""
        os.fsync(descriptor)

    def rename(self, draft: str, place: str) -> None:
        """Put a draft in its place."""
        (self.root / draft).rename(self.root / place)

    def link(self, draft: str, place: str) -> None:
        """Put a draft in its place, where nothing may be yet; it keeps its own as well."""
        os.link(self.root / draft, self.root / place)

    def unlink(self, place: str) -> None:
        """Remove a file."""
        (self.root / place).unlink()

    def create(self, place: str) -> int:
        """Create a file (0600) that must not be there, and open it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.root / place, flags, 0o600)

    def mkdir(self, folder: str) -> None:
        """Make a directory (0700) and those above it; it may be there."""
        (self.root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def where(self) -> str:
        """Where it is, for people."""
        return str(self.root)

    @property
    def exists(self) -> bool:
        """Whether there is a repository."""
        return (self.root / "config").is_file()

    @property
    def foreign(self) -> bool:
        """Whether something else lies in the directory."""
        if not self.root.is_dir():
            return False
        ours = {*FOLDERS, "lost+found"}  # a maker that died may have left our folders
        return any(path.name not in ours for path in self.root.iterdir())

    def make(self) -> None:
        """Make the directories (0700); may be repeated."""
        with self.translated("make the repository"):
            for folder in ("", *FOLDERS):
                self.mkdir(folder)

    @contextlib.contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """Say in words what the disk refuses."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    f"the disk of the repository {self.root} is full; every snapshot in it is as "
                    "it was",
                    hint="pymigrate snapshot rm and prune free some, or use another --repo",
                ) from error
            raise HostError(
                f"cannot {what} in {self.root}: {error.strerror}; every snapshot in it is as it "
                "was",
                hint="look at the disk: dmesg, and pymigrate snapshot verify --data",
            ) from error

    @contextlib.contextmanager
    def draft(self, owner: str) -> Iterator[Draft]:
        """Begin a file for the holder of a lock; it is discarded unless it was published."""
        self._drafts += 1
        name = f"{_DRAFTS}/{owner}.{self._drafts}"
        with self.translated("write"):
            draft = Draft(self, name, self.create(name))
        try:
            yield draft
        finally:
            draft.discard()

    def publish(self, place: str, data: bytes, owner: str) -> None:
        """Make a small file appear."""
        with self.draft(owner) as draft:
            draft.write(data)
            draft.publish(place)

    def publish_first(self, place: str, data: bytes) -> bool:
        """Make a file appear unless it is there already; of two at once one wins."""
        name = f"{_DRAFTS}/{os.urandom(8).hex()}.first"
        with self.translated("write"):
            draft = Draft(self, name, self.create(name))
            try:
                draft.write(data)
                draft.sync()
                self.link(name, place)
            except FileExistsError:
                return False
            finally:
                draft.discard()
            self.sync_folder(Path(place).parent)
        return True

    def sync_folder(self, folder: Path) -> None:
        """Make what appeared in or went from a folder last."""
        descriptor = os.open(self.root / folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, *places: str) -> None:
        """Remove files, for good; those that are gone already are well."""
        with self.translated("remove files"):
            for place in places:
                with contextlib.suppress(FileNotFoundError):
                    self.unlink(place)
            for folder in {Path(place).parent for place in places}:
                self.sync_folder(folder)

    def names(self, folder: str) -> list[str]:
        """List a folder in order."""
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except FileNotFoundError as error:
            raise NotFound(f"{self.root} is no repository: {folder}/ is missing") from error

    def size(self, place: str) -> int:
        """Return the size of a file in bytes."""
        with self._reading(place):
            return (self.root / place).stat().st_size

    def ends(self, places: Sequence[str], head: int, tail: int) -> list[Ends | Damaged]:
        """Return the first and last bytes of files, so many where there are; one for each place."""
        found: list[Ends | Damaged] = []
        for place in places:
            try:
                found.append(self._ends(place, head, tail))
            except Damaged as error:
                found.append(error)
        return found

    def _ends(self, place: str, head: int, tail: int) -> Ends:
        with self._reading(place), (self.root / place).open("rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            first = stream.read(head)
            stream.seek(max(size - tail, 0))
            return Ends(size, first, stream.read(tail))

    def read(self, place: str, limit: int) -> bytes:
        """Return a whole file; raises Damaged if it is larger than the limit."""
        with self._reading(place), (self.root / place).open("rb") as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise Damaged(f"{place} is larger than it may be")
        return data

    def read_at(self, place: str, offset: int, length: int) -> bytes:
        """Return a part of a file; it is shorter where the file ends."""
        with self._reading(place), (self.root / place).open("rb", buffering=0) as stream:
            stream.seek(offset)
            return stream.read(length)

    @contextlib.contextmanager
    def _reading(self, place: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise Damaged(f"{place} is missing") from error
        except OSError as error:
            raise Damaged(f"{place} cannot be read: {error.strerror}") from error


class Draft:
    """A file being written below ``tmp/``; it appears when it is published, or not at all."""

    def __init__(self, disk: Disk, name: str, descriptor: int) -> None:
        """Take an open file; use `Disk.draft`."""
        self._disk = disk
        self._name: str | None = name
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        """Write all of it at the end."""
        view = memoryview(data)
        with self._disk.translated("write"):
            while view:
                view = view[self._disk.write(self._descriptor, view) :]

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        self._disk.sync(self._descriptor)

    def publish(self, place: str) -> None:
        """Put it in its place, complete and on the disk."""
        if self._name is None:
            raise AssertionError("a draft is published once")
        with self._disk.translated("write"):
            self.sync()
            self._disk.rename(self._name, place)
            self._name = None
            self._disk.sync_folder(Path(place).parent)

    def discard(self) -> None:
        """Close it, and remove it unless it was published; may be repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._name is not None:
            name, self._name = self._name, None
            with contextlib.suppress(FileNotFoundError):  # somebody held us for dead and swept it
                self._disk.unlink(name)
