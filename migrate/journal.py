"""The journal of one migration: an append-only file that decides who may run.

One JSON object a line, written with ``O_APPEND`` and fsync. ``begin`` is written before a phase has
any effect and carries what its undo needs; ``reach`` after. A ``begin`` without a ``reach`` means
"undo me too". A line that a crash cut short is removed when the file is opened: nothing had been
done on its strength, since every line is on disk before anybody acts on it.

The line ``reach committed`` is the commit of the migration. So a failed append must leave the file
as it was; where even that fails, `JournalBroken` says that nobody knows what the disk holds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pymigrate.migrate.phases import Phase
from pymigrate.runtime.errors import MigrationError, WrongState

MAX_JOURNAL = 4 << 20
"""Bytes; a journal has about twenty lines, so more than this is not one of ours."""


class JournalBroken(MigrationError):
    """A line could neither be written nor taken back: what the disk holds is unknown."""


@dataclass(frozen=True)
class Line:
    """One line: what happened to which phase, and the facts that go with it."""

    event: str
    phase: Phase
    facts: Mapping[str, object]


@dataclass(frozen=True)
class History:
    """What the lines of a journal add up to."""

    lines: tuple[Line, ...]

    @property
    def reached(self) -> Phase:
        """The highest phase that was completed."""
        return max(
            (line.phase for line in self.lines if line.event == "reach"), default=Phase.PLANNED
        )

    @property
    def begun(self) -> Phase:
        """The highest phase that may have had effects."""
        return max((line.phase for line in self.lines), default=Phase.PLANNED)

    @property
    def rolled_back(self) -> bool:
        """Whether the roll back was completed: the source runs, the target holds nothing."""
        return any(line.event == "rolled-back" for line in self.lines)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return self.rolled_back or self.reached is Phase.DONE

    def facts(self) -> dict[str, object]:
        """All facts, later lines winning."""
        return {key: value for line in self.lines for key, value in line.facts.items()}


class Journal:
    """The file, open for appending and locked against a second driver."""

    def __init__(self, path: Path, descriptor: int, lines: list[Line]) -> None:
        """Wrap an open, locked file; use `create` or `open_existing`."""
        self.path = path
        self._descriptor = descriptor
        self._lines = lines

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a new journal; its directory is made too and both are on disk on return."""
        path.parent.mkdir(mode=0o700, parents=True)
        descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        _lock(descriptor, path)
        os.fsync(descriptor)
        for directory in (path.parent, path.parent.parent):
            sync_directory(directory)
        return cls(path, descriptor, [])

    @classmethod
    def open_existing(cls, path: Path, *, wait: bool = False) -> Self:
        """Open for going on; cuts off a torn last line.

        Raises WrongState while another process has it, or with `wait` waits for that one.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            _lock(descriptor, path, wait=wait)
            lines, whole = _parse(_content(descriptor))
            if whole < os.fstat(descriptor).st_size:
                os.ftruncate(descriptor, whole)
                os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, lines)

    @property
    def history(self) -> History:
        """What has been written so far."""
        return History(tuple(self._lines))

    def begin(self, phase: Phase, **facts: object) -> None:
        """Say that work towards `phase` starts, with what its undo will need."""
        self._append("begin", phase, facts)

    def reach(self, phase: Phase, **facts: object) -> None:
        """Say that `phase` is complete. For COMMITTED this is the commit itself."""
        self._append("reach", phase, facts)

    def roll_back(self, **facts: object) -> None:
        """Say that everything has been undone."""
        self._append("rolled-back", self.history.begun, facts)

    def note(self, **facts: object) -> None:
        """Keep facts that belong to no phase, such as what the report will show."""
        self._append("note", self.history.begun, facts)

    def _append(self, event: str, phase: Phase, facts: Mapping[str, object]) -> None:
        line = Line(event, phase, dict(facts))
        document = {"event": event, "phase": phase.label, **({"facts": facts} if facts else {})}
        encoded = json.dumps(document, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, encoded) != len(encoded):
                raise OSError(errno.ENOSPC, "short write", str(self.path))
            os.fsync(self._descriptor)
        except OSError as error:
            self._take_back(before, error)
            raise MigrationError(
                f"cannot write the journal {self.path}: {error.strerror}",
                hint="free some space on that disk",
            ) from error
        self._lines.append(line)

    def _take_back(self, length: int, cause: OSError) -> None:
        """Make sure that a line whose write failed can never be read, not even after a crash."""
        try:
            os.ftruncate(self._descriptor, length)
            os.fsync(self._descriptor)
        except OSError as error:
            raise JournalBroken(
                f"the journal {self.path} can neither be written nor shortened "
                f"({cause.strerror}; {error.strerror}): nothing more was done",
                hint="make that disk writable again, then: pymigrate recover",
            ) from error

    def close(self) -> None:
        """Close the file, which lets another driver have it."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        """Use as a context manager: closed at the end."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def read(path: Path) -> History:
    """Read a journal without locking it, as ``migrations ls`` does."""
    with _opened(path) as descriptor:
        lines, _ = _parse(_content(descriptor))
    return History(tuple(lines))


def sync_directory(path: Path) -> None:
    """Put a directory's entries on disk: a new file exists only after this (fsync(2), NOTES)."""
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > MAX_JOURNAL:
        raise MigrationError(f"a journal of {size} bytes is not one of ours")
    return os.pread(descriptor, size, 0)


def _parse(content: bytes) -> tuple[list[Line], int]:
    """Return the lines, and how many bytes of `content` they take: the rest is a torn line."""
    lines: list[Line] = []
    whole = 0
    for raw in content.splitlines(keepends=True):
        if not raw.endswith(b"\n"):
            break
        try:
            document = json.loads(raw)
            lines.append(
                Line(
                    str(document["event"]),
                    Phase.from_label(str(document["phase"])),
                    dict(document.get("facts", {})),
                )
            )
        except (ValueError, KeyError, TypeError) as error:
            # A torn line can only be the last one; a bad line before others is damage.
            if whole + len(raw) == len(content):
                break
            raise MigrationError(
                f"the journal is damaged at byte {whole}",
                hint="compare both hosts with `pymigrate ps`, then settle it by hand",
            ) from error
        whole += len(raw)
    return lines, whole


def _lock(descriptor: int, path: Path, *, wait: bool = False) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise WrongState(
            f"migration {path.parent.name} is being driven by another process",
            hint="wait for it to end",
        ) from None
