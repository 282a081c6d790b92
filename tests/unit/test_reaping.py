"""The init that --init puts before a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.runtime import errors, reaping


def test_the_first_that_is_there_is_taken(tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_text("")

    assert reaping.find((str(tmp_path / "first"), str(second))) == second
    with pytest.raises(errors.MissingFeature, match="--init"):
        reaping.find((str(tmp_path / "first"),))


def test_whoever_the_containers_users_are_may_run_the_copy(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    program = tmp_path / "program"
    program.write_bytes(b"machine code")
    program.chmod(0o700)
    reaping.put(program, tmp_path / "upper")

    copy = tmp_path / "upper/.pymigrate-init"
    assert copy.read_bytes() == b"machine code"
    assert copy.stat().st_mode & 0o7777 == 0o755
    assert reaping.before(reaping.INSIDE, ("sleep", "-x")) == (
        "/.pymigrate-init", "--", "sleep", "-x",
    )  # fmt: skip
