"""What is done in a thread beside its caller: what it returns or raises is had from it."""

from __future__ import annotations

import threading

import pytest

from pymigrate.runtime.beside import Beside


def test_it_goes_on_while_its_caller_does_and_its_result_may_be_had_again() -> None:
    go_on = threading.Event()

    def act() -> int:
        assert go_on.wait(60)
        return 7

    made = Beside(act, "some")
    assert not made.wait(0)
    go_on.set()  # which it would wait for in vain if the caller had waited for it
    assert [made.result(), made.result()] == [7, 7]


def test_what_it_raised_is_raised_where_its_result_is_wanted_and_not_by_waiting() -> None:
    def act() -> None:
        raise OSError("no")

    made = Beside(act, "some")
    assert made.wait()
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            made.result()
