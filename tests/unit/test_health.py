"""When health checks are due, and what they say in the end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pymigrate.runtime.errors import CommandNotFound
from pymigrate.runtime.health import HEALTHY, STARTING, UNHEALTHY, Health, Prober

HEALTH = Health(("true",), interval=30.0, retries=3, timeout=5.0)
PID = 4242


class Fixture:
    """A prober whose checks are ended by hand, under a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.started = 0
        self.answer: int | Exception | None = PID
        self.told: list[str] = []
        self.prober = Prober(HEALTH, self._start, self.told.append, lambda: self.now)
        self.prober.begin()

    def _start(self) -> int | None:
        self.started += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def wait(self) -> None:
        """Let the clock go on to what is due, and have it done."""
        assert self.prober.seconds is not None
        self.now += self.prober.seconds
        self.prober.act()

    def check(self, exit_code: int) -> None:
        self.wait()
        self.prober.ended(exit_code)


def test_one_success_is_health_and_three_failures_in_a_row_are_none() -> None:
    it = Fixture()
    it.check(1)
    it.check(1)
    assert it.prober.verdict == STARTING
    it.check(0)
    for exit_code in (1, 1, 0, 1, 1, 137):
        it.check(exit_code)
    it.check(0)

    assert it.told == [HEALTHY, UNHEALTHY, HEALTHY]


def test_a_check_is_due_an_interval_after_the_last_one_ended() -> None:
    it = Fixture()
    assert it.prober.seconds == HEALTH.interval
    it.wait()
    assert it.prober.runs(PID)
    assert it.prober.seconds == HEALTH.timeout
    it.now += 2
    it.prober.ended(0)
    assert it.prober.seconds == HEALTH.interval
    assert not it.prober.runs(PID)


def test_a_command_that_cannot_be_run_is_a_failure() -> None:
    it = Fixture()
    it.answer = CommandNotFound("nonesuch")
    for _ in range(3):
        it.wait()

    assert it.told == [UNHEALTHY]


def test_what_could_not_be_tried_says_nothing() -> None:
    it = Fixture()
    it.answer = None
    for _ in range(9):
        it.wait()

    assert it.told == []
    assert it.started == 9
    assert it.prober.seconds == HEALTH.interval


def test_nothing_is_due_when_the_container_has_ended() -> None:
    it = Fixture()
    it.wait()
    it.prober.end()
    assert it.prober.seconds is None
    it.prober.begin()
    assert it.prober.verdict == STARTING


@pytest.fixture
def checking() -> tuple[Fixture, subprocess.Popen[bytes]]:
    """Begin a check that would take for ever, and has a child of its own."""
    it = Fixture()
    words = "import os, sys; os.fork(); sys.stdout.write('x'); sys.stdout.flush(); os.read(0, 1)"
    check = subprocess.Popen(
        [sys.executable, "-c", words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert check.stdout is not None
    assert check.stdout.read(2) == b"xx"  # both are there
    it.answer = check.pid
    it.wait()
    return it, check


def test_a_check_that_takes_too_long_is_ended_with_its_children_and_has_failed(
    checking: tuple[Fixture, subprocess.Popen[bytes]],
) -> None:
    it, check = checking
    it.wait()
    with check:
        assert check.stdout is not None
        assert check.stdout.read() == b""  # nobody has it open any more
        assert check.wait(timeout=20) == -9
    assert it.prober.seconds is None
    it.prober.ended(0)
    it.check(1)
    it.check(1)
    assert it.told == [UNHEALTHY]


def test_a_check_that_is_hushed_is_gone_and_says_nothing(
    checking: tuple[Fixture, subprocess.Popen[bytes]],
) -> None:
    it, check = checking
    it.prober.hush()
    with check:
        assert check.stdout is not None
        assert check.stdout.read() == b""
        with pytest.raises(ProcessLookupError):
            os.kill(check.pid, 0)
    assert it.prober.seconds == HEALTH.interval
    assert it.told == []
    it.prober.hush()  # nothing runs
