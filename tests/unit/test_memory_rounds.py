"""Rounds as decided, and a container that is slowed down: its quota is known before it changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from pymigrate.migrate.budget import Budget, NoConverge
from pymigrate.migrate.memory_rounds import BREATH, MOST_CUTS, MemoryRounds, Throttle
from pymigrate.migrate.memory_sender import MemorySender
from pymigrate.migrate.modes import Mode
from pymigrate.migrate.progress import Sent
from pymigrate.runtime.cgroups import Cgroup, CpuQuota
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import HostError, MigrationError, MissingFeature, Unreachable
from tests.fakes.cgroupfs import Cgroupfs

PERIOD = 100_000


@dataclass
class Sender:
    """Sends as many pages in each round as it is told, at a second for a thousand."""

    pages: Iterator[int]
    sent: Sent = field(default_factory=Sent)

    def round(self, _: object) -> int:
        count = next(self.pages)
        self.sent.sending += count / 1000
        self.sent.wire += count * 4096
        return count


@dataclass
class Standing:
    """Stands for a container: what the rounds ask of one."""

    cgroup: Cgroup
    name: str = "web"


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cgroupfs:
    return Cgroupfs(tmp_path, monkeypatch)


@pytest.fixture
def container(fs: Cgroupfs) -> Container:
    cgroup = Cgroup.named("h/c", fs.mount_v1("cpu", "freezer"))
    cgroup.create()
    return cast("Container", Standing(cgroup))


def rounds(remedy: NoConverge | None, mode: Mode, throttle: Throttle) -> MemoryRounds:
    return MemoryRounds(Budget(0.3, on_no_converge=remedy), 0.1, mode, throttle)


def send(these: MemoryRounds, container: Container, *pages: int) -> tuple[Mode, list[str]]:
    told: list[str] = []
    sender = cast("MemorySender", Sender(iter(pages)))
    return these.send(container, lambda: sender, 0.0, told.append), told


def test_they_end_when_the_rest_is_small(container: Container) -> None:
    these = rounds(None, Mode.PRE, Throttle())

    mode, told = send(these, container, 10_000, 1000, 50)

    assert (Mode.PRE, 3) == (mode, len(these.rounds))
    assert these.decision is not None
    assert these.decision.converged
    assert "web: round 3: 50 pages" in told[-1]


def test_the_quota_is_in_the_journal_before_it_is_changed_and_is_put_back(
    container: Container, fs: Cgroupfs
) -> None:
    noted: list[Any] = []

    def note(**facts: object) -> None:
        noted.append((facts, container.cgroup.cpu_quota()))

    container.cgroup.set_cpu_quota(CpuQuota(50_000, PERIOD))
    throttle = Throttle(note=note)

    _, told = send(
        rounds(NoConverge.THROTTLE, Mode.PRE, throttle), container, 900, 900, 900, 900, 100
    )

    before = CpuQuota(50_000, PERIOD)
    assert [({"cpu_quota": before.to_document()}, before)] == noted
    assert ["web: throttled by 20 %", "web: throttled by 60 %"] == [
        text for text in told if "throttled" in text
    ]
    assert CpuQuota(20_000, PERIOD) == container.cgroup.cpu_quota()
    throttle.lift(container)
    throttle.lift(container)
    assert before == container.cgroup.cpu_quota()


def test_another_process_puts_the_quota_back_from_what_the_journal_says(
    container: Container,
) -> None:
    container.cgroup.set_cpu_quota(CpuQuota(1000, PERIOD))

    Throttle(CpuQuota.from_document({"quota_us": -1, "period_us": PERIOD})).lift(container)

    assert CpuQuota(-1, PERIOD) == container.cgroup.cpu_quota()


def test_a_quota_is_never_raised_nor_below_what_the_kernel_takes(container: Container) -> None:
    container.cgroup.set_cpu_quota(CpuQuota(20_000, PERIOD))
    throttle = Throttle()
    seen = []
    for percent, used in ((20, 2.0), (99, 0.01)):
        throttle.slow(container, percent, used)
        seen.append(container.cgroup.cpu_quota())

    assert [CpuQuota(16_000, PERIOD), CpuQuota(1000, PERIOD)] == seen


def test_a_quota_that_could_not_be_noted_is_not_changed(container: Container) -> None:
    def full(**_: object) -> None:
        raise MigrationError("cannot write the journal")

    with pytest.raises(MigrationError):
        Throttle(note=full).slow(container, 20, 1.0)

    assert CpuQuota(-1, PERIOD) == container.cgroup.cpu_quota()


def test_a_kernel_that_refuses_is_told(container: Container, fs: Cgroupfs) -> None:
    fs.fail_on = "cpu.cfs_quota_us"

    with pytest.raises(HostError, match="cpu quota"):
        Throttle().slow(container, 20, 1.0)


def test_without_a_controller_nothing_can_be_slowed_down(fs: Cgroupfs) -> None:
    cgroup = Cgroup.named("h/c", fs.mount_v1("freezer"))
    cgroup.create()

    with pytest.raises(MissingFeature, match="no CPU controller"):
        Throttle().slow(cast("Container", Standing(cgroup)), 20, 1.0)


def test_giving_up_says_the_numbers(container: Container) -> None:
    with pytest.raises(MigrationError, match="1006 ms predicted, 300 ms allowed") as refused:
        send(rounds(NoConverge.ABORT, Mode.PRE, Throttle()), container, 900, 900, 900)

    assert "--max-downtime" in refused.value.hint


def test_another_mode_is_told(container: Container) -> None:
    mode, told = send(rounds(NoConverge.POST, Mode.PRE, Throttle()), container, 900, 900, 900)

    assert Mode.HYBRID is mode
    assert "web: goes on in mode hybrid" == told[-1]


class Cut(Sender):
    """Sends, but for the times that its line is cut."""

    def __init__(self, pages: Iterator[int], cuts: int) -> None:
        super().__init__(pages)
        self.cuts = cuts

    def round(self, container: object) -> int:
        if self.cuts:
            self.cuts -= 1
            raise Unreachable("beta: connection lost")
        return super().round(container)


@pytest.mark.parametrize("cuts", range(MOST_CUTS + 2))
def test_a_line_that_is_cut_is_tried_again_and_not_for_ever(
    container: Container, cuts: int
) -> None:
    these = rounds(None, Mode.PRE, Throttle())
    waited: list[float] = []
    these.pause = waited.append
    sender = cast("MemorySender", Cut(iter([1000, 50]), cuts))

    if cuts > MOST_CUTS:
        with pytest.raises(Unreachable):
            these.send(container, lambda: sender, 0.0, lambda _: None)
    else:
        assert Mode.PRE is these.send(container, lambda: sender, 0.0, lambda _: None)

    assert [BREATH * (at + 1) for at in range(min(cuts, MOST_CUTS))] == waited
    assert (0 if cuts > MOST_CUTS else 2) == len(these.rounds)
