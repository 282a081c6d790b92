"""Compressed or not, as it was measured: by a link and CPUs that are made up."""

from __future__ import annotations

import pytest

from pymigrate.transport.choice import STAY, TRIAL, Choice

MIB = 1 << 20


def carry(choice: Choice, pieces: int, *, link: float, cpus: float, ratio: float) -> list[bool]:
    """Send pieces by a link and CPUs of so many bytes a second; return which were compressed."""
    now, packed = 0.0, []
    for _ in range(pieces):
        level = choice.level
        wire = MIB if level is None else MIB / ratio
        now += max(wire / link, 0.0 if level is None else MIB / cpus)
        choice.sent(MIB, now, level=level)
        packed.append(level is not None)
    return packed


@pytest.mark.parametrize(
    ("link", "cpus", "ratio", "compressed"),
    [
        (12.5e6, 500e6, 2.0, True),
        (125e6, 500e6, 2.0, True),
        (1e9, 500e6, 2.0, False),
        (125e6, 100e6, 2.0, False),  # the CPUs have other work
        (125e6, 500e6, 1.0, True),  # nothing is lost by it, and the next may shrink
    ],
)
def test_what_is_faster_is_kept(link: float, cpus: float, ratio: float, compressed: bool) -> None:
    choice = Choice(1)

    packed = carry(choice, 2 * TRIAL + 2 + STAY, link=link, cpus=cpus, ratio=ratio)

    assert [True] * (TRIAL + 1) == packed[: TRIAL + 1]
    assert [False] * (TRIAL + 1) == packed[TRIAL + 1 : 2 * TRIAL + 2]
    assert {compressed} == set(packed[2 * TRIAL + 2 :])


def test_it_is_tried_again_when_some_time_has_passed() -> None:
    choice = Choice(1)
    carry(choice, 2 * TRIAL + 2, link=1e9, cpus=500e6, ratio=2.0)
    fast = choice.level

    carry(choice, STAY + 2 * TRIAL + 4, link=12.5e6, cpus=500e6, ratio=2.0)  # now it is slow

    assert (None, 1) == (fast, choice.level)


def test_short_streams_stay_compressed_and_pauses_count_for_nothing() -> None:
    choice = Choice(1)

    for _ in range(50):
        choice.begins()
        carry(choice, TRIAL, link=1e9, cpus=500e6, ratio=2.0)

    assert 1 == choice.level


@pytest.mark.parametrize(("level", "fixed"), [(1, True), (None, False)])
def test_who_knows_better_is_not_contradicted(level: int | None, fixed: bool) -> None:
    choice = Choice(level, fixed=fixed)

    packed = carry(choice, 4 * TRIAL, link=1e9, cpus=1e6, ratio=1.0)

    assert {level is not None} == set(packed)


def test_pieces_that_were_begun_before_a_change_are_not_counted() -> None:
    choice = Choice(1)
    carry(choice, TRIAL + 1, link=1e9, cpus=500e6, ratio=2.0)

    for _ in range(TRIAL + 1):
        choice.sent(MIB, 1e6, level=1)

    assert None is choice.level
