"""Files put aside during a restore come back, wherever it was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.runtime import aside


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/precious").touch()
    return tmp_path


def test_only_one_restores_at_a_time(directory: Path) -> None:
    (directory / "rootfs").mkdir()
    with aside.alone(directory) as first, aside.alone(directory) as second:
        assert (True, False) == (first, second)
    with aside.alone(directory) as third:
        assert third


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_what_is_aside_comes_back(directory: Path) -> None:
    aside.begin(directory)
    (directory / "upper/new").touch()

    aside.put_back(directory)
    aside.put_back(directory)

    assert ["upper", "upper/precious"] == names(directory)


def test_second_try_after_a_killed_one_loses_nothing(directory: Path) -> None:
    aside.begin(directory)
    (directory / "upper/new").touch()
    aside.begin(directory)

    aside.put_back(directory)

    assert ["upper", "upper/precious"] == names(directory)


def test_killed_between_the_two_steps_of_the_beginning(directory: Path) -> None:
    (directory / "upper").rename(directory / "upper.before")

    aside.put_back(directory)

    assert ["upper", "upper/precious"] == names(directory)


def test_what_is_forgotten_does_not_come_back(directory: Path) -> None:
    aside.begin(directory)
    (directory / "upper/new").touch()

    aside.forget(directory)
    aside.put_back(directory)

    assert ["upper", "upper/new"] == names(directory)


def test_killed_while_forgetting(directory: Path) -> None:
    aside.begin(directory)
    (directory / "upper.before").rename(directory / "upper.gone")

    aside.put_back(directory)

    assert ["upper"] == names(directory)
