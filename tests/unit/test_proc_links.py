"""Who has ended is gone, though the kernel says that it may not be looked at."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from pymigrate.runtime import write_tracking
from pymigrate.runtime.proc_links import gone_if_ended


def refused() -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_who_has_ended_is_gone() -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    with pytest.raises(FileNotFoundError), gone_if_ended(child.pid):
        raise refused()


def test_who_is_there_may_not_be_looked_at() -> None:
    with pytest.raises(PermissionError), gone_if_ended(os.getpid()):
        raise refused()


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ProcessLookupError), gone_if_ended(os.getpid()):
        raise ProcessLookupError


def test_all_memory_of_who_ends_while_its_files_are_looked_at_counts_as_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:

        def ended(_pid: int, _descriptor: os.DirEntry[str]) -> bool:
            child.kill()
            child.wait()
            raise refused()

        monkeypatch.setattr(write_tracking, "_is_direct", ended)
        assert write_tracking._reads_directly(child.pid)
