"""Who gets a lock next."""

from __future__ import annotations

import threading

from pymigrate.checkpoint.turns import Turns

WAIT = 20.0


def test_who_is_urgent_goes_before_who_has_waited_longer() -> None:
    turns = Turns()
    order: list[str] = []
    wants, waited = threading.Event(), threading.Event()

    def urgent() -> None:
        wants.set()
        with turns.urgent():
            order.append("urgent")

    def calm() -> None:
        waited.set()
        with turns.calm():
            order.append("calm")

    threads = [threading.Thread(target=calm), threading.Thread(target=urgent)]
    with turns.urgent():  # before which `calm` cannot be in front of the lock itself
        threads[0].start()
        assert waited.wait(WAIT)
        threads[1].start()
        assert wants.wait(WAIT)
        while turns._urgent < 2:
            threading.Event().wait(0.001)
    for thread in threads:
        thread.join(WAIT)

    assert ["urgent", "calm"] == order


def test_nobody_is_in_it_with_another() -> None:
    turns = Turns()
    inside: list[int] = []
    seen: list[int] = []

    def take(urgent: bool) -> None:
        for _ in range(200):
            with turns.urgent() if urgent else turns.calm():
                inside.append(1)
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=take, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)

    assert {1} == set(seen)
    assert 800 == len(seen)
