"""What guests are started from, and the page that tells what was found in them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import guest_machines
import guest_seed
from guest_images import Image
from guest_machines import Machine
from guest_roots import Base
from guests import BARE_CPU, CPU, GUESTS
from tests.cluster.matrix import CGROUPS, MODES, PAIRS, journey


@pytest.fixture
def image() -> Image:
    return Image(Base(Path("/cache/base")), Path("/cache/disk"))


def test_guests_have_names_and_numbers_of_their_own() -> None:
    assert len(GUESTS) == len({guest.number for guest in GUESTS.values()})
    assert {"v1", "v2", "hybrid"} == {guest.cgroup for guest in GUESTS.values()}


def test_kernel_is_told_the_guests_name_address_and_cgroup_version() -> None:
    words = guest_machines.kernel_command_line(GUESTS["old-v1"], card="eth0").split()

    assert {"lab.name=old-v1", "lab.address=10.88.255.4", "lab.cgroup=v1"} <= set(words)


@pytest.mark.parametrize(
    ("accelerator", "asked", "given"),
    [("kvm", CPU, "host"), ("kvm", BARE_CPU, BARE_CPU), ("tcg", CPU, CPU)],
)
def test_kvm_gets_the_hosts_cpu_unless_a_poor_one_is_wanted(
    image: Image, accelerator: str, asked: str, given: str
) -> None:
    command = guest_machines.base(accelerator, asked, image)

    assert given == command[command.index("-cpu") + 1]


def test_seed_leaves_caches_out(tmp_path: Path) -> None:
    names = ["spec.py", "py.typed", "__pycache__", ".ruff_cache"]

    assert {"__pycache__", ".ruff_cache"} == guest_seed.CACHES(str(tmp_path), names)


def test_an_arm_guest_is_another_machine_and_is_never_accelerated_here(image: Image) -> None:
    guest = GUESTS["arm"]
    foreign = not guest.release.is_native

    command = guest_machines.base("tcg", guest.cpu, image, guest.release.architecture)

    assert ("qemu-system-aarch64", "virt") == (command[0], command[command.index("-machine") + 1])
    assert "console=ttyAMA0" in guest_machines.kernel_command_line(guest, card="eth0")
    if foreign:
        assert guest_machines.EMULATION == guest_machines.accelerator(guest, image)


def test_further_disks_come_behind_a_guests_own_and_are_read_only(image: Image) -> None:
    disks = (Path("/cache/one"), Path("/cache/two"))
    files = (image, Path("/run/seed"), Path("/run/console"))
    machine = Machine(GUESTS["new"], *files, "tcg", disks)

    drives = [word for word in machine.command() if word.startswith("file=")]

    names = [drive.split(",")[0] for drive in drives]
    assert [f"file={path}" for path in (image.disk, "/run/seed", *disks)] == names
    assert all("readonly=on" in drive for drive in drives[1:])


def test_a_guest_whose_root_lacks_a_capability_is_told_so() -> None:
    words = guest_machines.kernel_command_line(GUESTS["new-bare"], card="eth0").split()

    assert "lab.lacks=sys_resource" in words
    assert not any(
        "lacks" in word
        for word in guest_machines.kernel_command_line(GUESTS["new"], card="eth0").split()
    )


@pytest.mark.parametrize("full", [False, True])
def test_a_round_goes_on_from_where_it_is(*, full: bool) -> None:
    legs = journey(full=full)
    rounds = [(before, leg) for before, leg in pairwise(legs) if full or leg[2] == MODES[0]]

    assert all(arrived == source for (_, arrived, _), (source, _, _) in rounds)
    assert len(legs) == len(set(legs))


def test_every_run_tries_each_pair_in_stop_mode_and_one_pair_in_each() -> None:
    legs = journey(full=False)

    assert PAIRS | CGROUPS == {(source, target) for source, target, mode in legs if mode == "stop"}
    assert {("old", "new", mode) for mode in MODES} <= set(legs)


def test_a_full_run_tries_each_pair_in_each_mode() -> None:
    legs = journey(full=True)

    assert set(legs) == {(*pair, mode) for pair in PAIRS | CGROUPS for mode in MODES}
