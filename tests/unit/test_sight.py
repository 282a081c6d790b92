"""What is seen of a process that does not stand still."""

from __future__ import annotations

import os
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
