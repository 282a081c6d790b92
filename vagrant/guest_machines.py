"""Start virtual machines with QEMU, after trying what really accelerates them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from debian_packages import say
from guest_images import Image
from guests import BARE_CPU, CACHE, Guest

EMULATION = "tcg,thread=multi"
VARIABLE = "PYMIGRATE_LAB_ACCELERATOR"
MEMORY_MIB = 1024
PROBE_SECONDS = 15.0
ALIVE = "lab-guest-alive"  # what guest/init says when it is asked
READY = "lab-guest-ready"  # what guest/rc says at its end


@dataclass(frozen=True)
class Board:
    """What QEMU calls the machine of an architecture."""

    program: str
    machine: str
    console: str


BOARDS = {
    "amd64": Board("qemu-system-x86_64", "q35", "ttyS0"),
    "arm64": Board("qemu-system-aarch64", "virt", "ttyAMA0"),
}


@dataclass(frozen=True)
class Machine:
    """What one virtual machine is started from; files of the host.

    `disks` are further ones that it can only read; other machines may have them, too.
    """

    guest: Guest
    image: Image
    seed: Path
    console: Path
    accelerator: str
    disks: tuple[Path, ...] = ()

    @property
    def interface(self) -> str:
        """The host's end of its network card, at most 15 characters."""
        return f"tap-{self.guest.number}"

    def command(self) -> list[str]:
        """Return QEMU's command line, to be run in the lab's namespaces; it goes on when it ends.

        The disk is shared by all machines of this image and is never written to: what a guest
        writes goes to an unlinked temporary file of QEMU's.
        """
        card = f"virtio-net-pci,netdev=lan,mac={self.guest.mac}"
        disks = [f"file={disk},if=virtio,format=raw,readonly=on" for disk in self.disks]
        return [
            *base(self.accelerator, self.guest.cpu, self.image, self.guest.release.architecture),
            "-m", str(MEMORY_MIB),
            "-append", kernel_command_line(self.guest, card="eth0"),
            "-drive", f"file={self.image.disk},if=virtio,format=raw,snapshot=on",
            "-drive", f"file={self.seed},if=virtio,format=raw,readonly=on",
            *[word for disk in disks for word in ("-drive", disk)],
            "-netdev", f"tap,id=lan,ifname={self.interface},script=no,downscript=no",
            "-device", card,
            "-serial", f"file:{self.console}",
            "-daemonize",
        ]  # fmt: skip


def base(accelerator: str, cpu: str, image: Image, architecture: str = "amd64") -> list[str]:
    """Return what all our command lines begin with."""
    board = BOARDS[architecture]
    if accelerator == "kvm" and cpu != BARE_CPU:
        cpu = "host"
    return [
        board.program, "-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none",
        "-machine", board.machine, "-accel", accelerator, "-cpu", cpu, "-smp", "1", "-no-reboot",
        "-device", "virtio-rng-pci",
        "-kernel", str(image.base.kernel), "-initrd", str(image.base.initrd),
    ]  # fmt: skip


def kernel_command_line(guest: Guest, *, card: str) -> str:
    """Return the words for the kernel and, beginning with "lab.", for guest/rc."""
    console = BOARDS[guest.release.architecture].console
    words = [f"console={console}", "quiet", "panic=-1"]
    words += [f"lab.name={guest.name}", f"lab.address={guest.address}", f"lab.mac={guest.mac}"]
    words += [f"lab.cgroup={guest.cgroup}", f"lab.card={card}"]
    words += [f"lab.lacks={guest.lacks}"] if guest.lacks else []
    return " ".join(words)


def accelerator(guest: Guest, image: Image) -> str:
    """Return what to give to -accel: kvm where a kernel really boots with it, else emulation.

    That /dev/kvm exists says little: in some nested machines it is there and no kernel boots. The
    answer is kept for as long as this machine's kernel runs. PYMIGRATE_LAB_ACCELERATOR decides
    without a trial.
    """
    if not guest.release.is_native:
        return EMULATION
    if chosen := os.environ.get(VARIABLE):
        return chosen
    if not Path("/dev/kvm").exists():
        return EMULATION
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    kept = CACHE / "accelerator"
    if kept.exists() and kept.read_text().startswith(f"{boot} "):
        return kept.read_text().split()[1]
    found = "kvm" if boots_with("kvm", image) else EMULATION
    if found != "kvm":
        say("  /dev/kvm exists and boots no kernel: the guests are emulated")
    kept.write_text(f"{boot} {found}\n")
    return found


def boots_with(accelerator: str, image: Image) -> bool:
    """Say whether the image's kernel comes as far as its first program within PROBE_SECONDS."""
    command = [*base(accelerator, "max", image), "-m", "512", "-serial", "stdio"]
    command += ["-append", "console=ttyS0 quiet panic=-1 lab.probe"]
    try:
        said = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired:
        return False
    return ALIVE.encode() in said
