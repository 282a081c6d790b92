"""When rounds of files end, and what becomes of a target that does not know them."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate.file_rounds import MOST_ROUNDS, SMALL, FileRounds, Round, enough
from pymigrate.runtime import tree
from pymigrate.runtime.tree_apply import apply
from pymigrate.transport import messages as m
from tests.fakes.trees import look


def rounds(*sizes: int) -> list[Round]:
    return [Round(size << 20, 1, 1.0) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((), False),
        ((1000,), False),
        ((1,), True),
        ((1000, 500), False),
        ((1000, 500, 100), False),
        ((1000, 500, 100, 1), True),
        ((1000, 900), True),
        ((100, 20, 19), True),
        ((100, 1000), True),
        ((0,), True),
    ],
)
def test_rounds_end_when_the_rest_is_small_or_does_not_shrink(
    sizes: tuple[int, ...], *, expected: bool
) -> None:
    assert enough(rounds(*sizes)) == expected


@given(st.lists(st.integers(0, 1 << 40), min_size=MOST_ROUNDS))
def test_rounds_end(sizes: list[int]) -> None:
    done: list[Round] = []
    for size in sizes:
        if enough(done):
            break
        done.append(Round(size, 1, 1.0))
    assert len(done) <= MOST_ROUNDS
    assert enough(done)
    assert all(each.bytes > SMALL for each in done[:-1])


class Target:
    """What a peer does with streams of files; an older one knows whole trees only."""

    def __init__(self, directory: Path, *, knows_rounds: bool) -> None:
        self.directory = directory
        self.knows_rounds = knows_rounds
        self.asked: list[str] = []

    def serves(self, request: object) -> bool:
        assert request is m.PutChanges
        return self.knows_rounds

    def put_files(self, name: str, stream: Any) -> int:
        self.asked.append(f"whole {name}")
        return self._take(name, stream, tree.read)

    def put_changes(self, name: str, number: int, stream: Any) -> int:
        self.asked.append(f"{number} {name}")
        return self._take(name, stream, apply)

    def _take(self, name: str, stream: Any, take: Any) -> int:
        into = self.directory / name.strip("/")
        into.mkdir(exist_ok=True)
        data = io.BytesIO()
        stream(data)
        data.seek(0)
        take(data, into, overlay=name == m.UPPER, devices=True)
        return data.tell()


def container(directory: Path) -> Any:
    """Return what is asked of a container: where its files are, and its processes."""
    for name in ("upper", "volume"):
        (directory / name).mkdir()
        (directory / name / "file").write_bytes(bytes(2 << 20))
    volume = SimpleNamespace(destination="/data", source=str(directory / "volume"))
    return SimpleNamespace(
        upper=directory / "upper",
        volumes_to_travel=[volume],
        cgroup=SimpleNamespace(pids=lambda: ()),
    )


@pytest.mark.parametrize("knows_rounds", [True, False])
def test_an_older_target_gets_everything_at_once(tmp_path: Path, *, knows_rounds: bool) -> None:
    source = container(tmp_path)
    (tmp_path / "target").mkdir()
    target = Target(tmp_path / "target", knows_rounds=knows_rounds)
    sending = FileRounds.begin(source, cast(Any, target))
    sending.send_while_running()
    (tmp_path / "volume" / "file").write_bytes(b"changed")
    sending.send_rest()

    assert look(tmp_path / "target" / "upper") == look(tmp_path / "upper")
    assert look(tmp_path / "target" / "data") == look(tmp_path / "volume")
    if knows_rounds:
        assert target.asked == ["1 upper", "1 /data", "2 /data"]
    else:
        assert target.asked == ["whole upper", "whole /data"]
    assert [each.frozen for each in sending.rounds][-1]
