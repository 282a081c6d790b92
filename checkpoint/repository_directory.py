"""A repository's storage in a directory of this host: its disk and its locks."""

from __future__ import annotations

from contextlib import AbstractContextManager

from pymigrate.checkpoint import repository_locks
from pymigrate.checkpoint.repository_disk import Disk
from pymigrate.checkpoint.repository_storage import PATIENCE_SECONDS


class Directory(Disk):
    """A directory, as repository_storage.py wants it."""

    def held(
        self, *, exclusive: bool = False, patience: float = PATIENCE_SECONDS
    ) -> AbstractContextManager[repository_locks.Lock]:
        """Hold a lock for the block, waiting for up to ``patience`` seconds; raises WrongState."""
        return repository_locks.held(self, exclusive=exclusive, patience=patience)

    def sweep(self) -> None:
        """Remove the drafts of those who died."""
        repository_locks.sweep(self)
