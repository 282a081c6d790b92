"""When a container that ended is run again."""

from __future__ import annotations

import pytest

from pymigrate.runtime.restarting import FIRST_DELAY, MOST_DELAY, SETTLED, Again, Policy


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def runs(text: str, exit_code: int, count: int = 0) -> bool:
    return Policy.parse(text).wants(exit_code, count)


def test_policies_say_after_which_ends() -> None:
    assert not runs("no", 1)
    assert runs("always", 0, 1000)
    assert not runs("on-failure", 0)
    assert runs("on-failure", 137, 1000)
    assert runs("on-failure:3", 1, 2)
    assert not runs("on-failure:3", 1, 3)


@pytest.mark.parametrize("text", ["", "often", "always:3", "on-failure:", "on-failure:0", "no:1"])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        Policy.parse(text)


def test_each_wait_is_twice_the_last_up_to_a_minute_and_anew_after_a_run_that_lasted() -> None:
    clock = Clock()
    again = Again(Policy("always"), clock)

    def wait_after(seconds: float) -> float:
        again.began()
        clock.now += seconds
        assert again.ended(1)
        assert again.seconds is not None
        return again.seconds

    waits = [wait_after(SETTLED - 1) for _ in range(12)]
    assert waits[:3] == pytest.approx([FIRST_DELAY, 2 * FIRST_DELAY, 4 * FIRST_DELAY])
    assert waits[-1] == pytest.approx(MOST_DELAY)
    assert wait_after(SETTLED) == pytest.approx(FIRST_DELAY)
    assert again.count == 13


def test_a_run_that_could_not_begin_is_no_run_that_lasted() -> None:
    clock = Clock()
    again = Again(Policy("always"), clock)
    again.began()
    clock.now += SETTLED
    again.ended(1)
    clock.now += SETTLED
    again.ended(125)

    assert again.seconds == pytest.approx(2 * FIRST_DELAY)


def test_it_is_due_when_the_wait_is_over_and_can_be_put_off() -> None:
    clock = Clock()
    again = Again(Policy("always"), clock)
    assert again.seconds is None
    again.ended(0)
    clock.now += FIRST_DELAY
    assert again.seconds == 0
    again.put_off()
    assert again.seconds is not None
    assert again.seconds > 0
    again.began()
    assert again.seconds is None


def test_an_end_that_is_wanted_is_the_end() -> None:
    again = Again(Policy("always"))
    again.unwanted = True

    assert not again.ended(1)
    assert again.seconds is None
