"""Large tables lie in a file without a name, and grow there."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pymigrate.runtime.errors import NoSpace
from pymigrate.runtime.scratch import LEAST, Growing, Scratch

BYTE = np.dtype(np.uint8)


def is_in_a_file(array: NDArray[Any]) -> bool:
    """Say whether an array, or what it is a part of, is a mapping."""
    owner: object = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return isinstance(owner, mmap.mmap) or (
        isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap)
    )


def test_arrays_are_zeros_of_their_own_and_stay_good(tmp_path: Path) -> None:
    with closing(Scratch(tmp_path)) as made:
        one, two = (made.zeros(LEAST + 1, BYTE) for _ in range(2))
    one[:] = 7

    assert ([7] * (LEAST + 1), [0] * (LEAST + 1)) == (one.tolist(), two.tolist())
    assert [] == [*tmp_path.iterdir()]


def test_only_what_is_large_is_in_a_file(tmp_path: Path) -> None:
    with closing(Scratch(tmp_path)) as made:
        assert not is_in_a_file(made.zeros(LEAST - 1, BYTE))
        assert is_in_a_file(made.zeros(LEAST, BYTE))


def test_who_closes_it_leaves_no_descriptor_and_may_go_on(tmp_path: Path) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    made = Scratch(tmp_path)
    for value in (1, 2):
        array = made.zeros(LEAST, BYTE)
        array[:] = value
        made.close()
        made.close()
        assert value == int(array[-1])
    del array

    assert before == len([*Path("/proc/self/fd").iterdir()])


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with closing(Scratch(tmp_path)) as made, pytest.raises(NoSpace, match="full"):
        made.zeros(LEAST, BYTE)


@given(st.lists(st.lists(st.integers(0, 255), max_size=3000), max_size=8))
def test_an_array_that_grows_has_all_values(pieces: list[list[int]]) -> None:
    growing = Growing(BYTE)

    for piece in pieces:
        growing.extend(np.array(piece, np.uint8))

    assert [*itertools.chain(*pieces)] == growing.values.tolist()
    assert len(growing) == len(growing.values)
