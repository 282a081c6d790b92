"""What is seen of a process that does not stand still."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from pymigrate.checkpoint import sight


@pytest.mark.parametrize("changes", [1, 3, 1000])
def test_a_descriptor_that_becomes_another_amid_the_look_is_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: int
) -> None:
    """A shell's output is a file of the container's for a moment, then the host's pipe again."""
    paths = [tmp_path / "first", tmp_path / "second"]
    files = [os.open(path, os.O_CREAT | os.O_WRONLY) for path in paths]
    number = os.dup(files[0])
    fields = sight._fields
    done = 0

    def changing(path: str) -> dict[str, str]:
        nonlocal done
        if path.endswith(f"/fdinfo/{number}") and done < changes:
            done += 1
            os.dup2(files[done % 2], number)
        return fields(path)

    monkeypatch.setattr(sight, "_fields", changing)
    try:
        seen = {each.number: each for each in sight._opened(f"/proc/{os.getpid()}")}
        if changes == 1000:  # it never was the same: nothing is said of it
            assert number not in seen
        else:
            assert str(paths[1]) == seen[number].link
            assert paths[1].stat().st_ino == seen[number].inode
    finally:
        for fd in (*files, number):
            os.close(fd)


def refused(path: str) -> PermissionError:
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def test_who_ends_while_its_files_are_looked_at_is_gone_though_the_kernel_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = os.readlink
    with subprocess.Popen(["sleep", "1000"]) as child:

        def ended(path: str) -> str:
            if "/fd/" not in path:
                return look(path)
            child.kill()
            child.wait()
            raise refused(path)

        monkeypatch.setattr(os, "readlink", ended)
        assert sight.process(child.pid, own_group=True) is None


def test_who_may_not_be_looked_at_is_no_process_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(path: str) -> str:
        raise refused(path)

    monkeypatch.setattr(os, "readlink", look)
    with pytest.raises(PermissionError):
        sight.process(os.getpid(), own_group=True)
