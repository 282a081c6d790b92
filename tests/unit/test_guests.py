"""What guests are started from, and the page that tells what was found in them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

import guest_machines
import guest_seed
from guest_images import Image
from guest_roots import Base
from guests import BARE_CPU, CPU, GUESTS


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


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("opt/pymigrate/source/runtime/spec.py", True),
        ("opt/pymigrate/source/runtime/__pycache__", False),
        ("opt/pymigrate/source/runtime/.ruff_cache", False),
    ],
)
def test_seed_leaves_caches_out(name: str, *, taken: bool) -> None:
    assert taken == (guest_seed.ours(tarfile.TarInfo(name)) is not None)


def test_an_arm_guest_is_another_machine_and_is_never_accelerated_here(image: Image) -> None:
    guest = GUESTS["arm"]
    foreign = not guest.release.is_native

    command = guest_machines.base("tcg", guest.cpu, image, guest.release.architecture)

    assert ("qemu-system-aarch64", "virt") == (command[0], command[command.index("-machine") + 1])
    assert "console=ttyAMA0" in guest_machines.kernel_command_line(guest, card="eth0")
    if foreign:
        assert guest_machines.EMULATION == guest_machines.accelerator(guest, image)


def test_a_guest_whose_root_lacks_a_capability_is_told_so() -> None:
    words = guest_machines.kernel_command_line(GUESTS["new-bare"], card="eth0").split()

    assert "lab.lacks=sys_resource" in words
    assert not any(
        "lacks" in word
        for word in guest_machines.kernel_command_line(GUESTS["new"], card="eth0").split()
    )
