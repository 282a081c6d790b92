"""Leaving a processor to others: which one, whose threads; what is started for good has all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime import priority

CPUS = st.sets(st.integers(0, 7), min_size=1)
GIVE_WAY = """
import json, os, threading
from pymigrate.runtime import priority

os.setpriority(os.PRIO_PROCESS, 0, 0)  # whatever the tests have
begin, end, seen = threading.Barrier(3), threading.Event(), {}

def run(name, prepare):
    prepare()
    begin.wait()
    end.wait()
    seen[name] = os.getpriority(os.PRIO_PROCESS, 0)

threads = [
    threading.Thread(target=run, args=("early", lambda: None)),
    threading.Thread(target=run, args=("favoured", priority.favour)),
]
for thread in threads:
    thread.start()
begin.wait()
priority.give_way()
begin = threading.Barrier(1)
threads.append(threading.Thread(target=run, args=("late", lambda: None)))
threads[-1].start()
end.set()
for thread in threads:
    thread.join()
print(json.dumps({"mine": os.getpriority(os.PRIO_PROCESS, 0), **seen}))
"""
SAY = "import os; print(sorted(os.sched_getaffinity(0)))"


@given(CPUS, CPUS)
def test_one_of_theirs_is_left_unless_it_is_all_that_we_have(
    ours: set[int], theirs: set[int]
) -> None:
    used = priority.left_for_others(ours, theirs)

    common = ours & theirs
    if not common or len(ours) == 1:
        assert used == ours
    else:
        assert used == ours - {min(common)}


def test_all_who_step_aside_leave_the_same_one() -> None:
    assert priority.left_for_others({0, 1, 2}, {1, 2}) == {0, 2}
    assert priority.left_for_others({1, 2, 3}, {1, 2}) == {2, 3}


@pytest.fixture
def whole() -> Iterator[set[int]]:
    """Give the processors of this process, which has them again afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    priority.come_back()
    assert os.sched_getaffinity(0) == before


class Thread:
    """A thread that does what it is told."""

    def __init__(self) -> None:
        self._wanted: Callable[[], object] | None = None
        self._told = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self._result: object = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self._told.acquire()
            if self._wanted is None:
                return
            self._result = self._wanted()
            self._done.release()

    def processors(self) -> object:
        self._wanted = lambda: os.sched_getaffinity(0)
        self._told.release()
        self._done.acquire()
        return self._result

    def close(self) -> None:
        self._wanted = None
        self._told.release()
        self._thread.join()


@contextmanager
def a_thread() -> Iterator[Thread]:
    thread = Thread()
    try:
        yield thread
    finally:
        thread.close()


def test_threads_of_before_and_of_since_step_aside_and_come_back(whole: set[int]) -> None:
    aside = priority.left_for_others(whole, whole)
    with a_thread() as before:
        priority.step_aside(whole)
        with a_thread() as since:
            assert [before.processors(), since.processors()] == [aside, aside]
            assert os.sched_getaffinity(0) == aside

            priority.come_back()

            assert [before.processors(), since.processors()] == [whole, whole]
            assert os.sched_getaffinity(0) == whole


def test_who_stepped_aside_twice_has_all_again(whole: set[int]) -> None:
    priority.step_aside(whole)
    priority.step_aside(whole)
    priority.come_back()

    assert os.sched_getaffinity(0) == whole


def test_all_processors_are_counted_also_by_who_stepped_aside(whole: set[int]) -> None:
    assert priority.processors() == len(whole)
    priority.step_aside(whole)
    assert priority.processors() == len(whole)


def test_what_is_started_for_good_has_all_processors(whole: set[int]) -> None:
    priority.step_aside(whole)
    with priority.wholly():
        child = subprocess.run(
            [sys.executable, "-c", SAY], capture_output=True, text=True, check=True
        )

    assert child.stdout.strip() == str(sorted(whole))
    assert os.sched_getaffinity(0) == priority.left_for_others(whole, whole)


def test_who_has_not_stepped_aside_starts_programs_as_ever(whole: set[int]) -> None:
    some = {min(whole)}
    os.sched_setaffinity(0, some)
    try:
        with priority.wholly():
            assert os.sched_getaffinity(0) == some
    finally:
        os.sched_setaffinity(0, whole)


def test_a_child_that_is_aside_comes_back_with_all_its_threads(whole: set[int]) -> None:
    aside = priority.left_for_others(whole, whole)
    program = (
        "import os, threading\n"
        "go = threading.Event()\n"
        "def say(): print(sorted(os.sched_getaffinity(0)), flush=True)\n"
        "threading.Thread(target=lambda: (go.wait(), say())).start()\n"
        "say(); input(); go.set()\n"
    )
    priority.step_aside(whole)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == str(sorted(aside))
        priority.come_back()
        priority.bring_back(child.pid)
        said, _ = child.communicate("\n")

    assert said.strip() == str(sorted(whole))


def test_a_child_that_has_ended_needs_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    priority.bring_back(child.pid)


def test_who_gives_way_does_so_with_all_threads_but_those_that_are_favoured() -> None:
    said = subprocess.run(
        [sys.executable, "-I", "-c", GIVE_WAY], check=True, capture_output=True, text=True
    ).stdout
    favoured = -10 if os.geteuid() == 0 else 10  # only root may favour
    assert {"mine": 10, "early": 10, "favoured": favoured, "late": 10} == json.loads(said)
