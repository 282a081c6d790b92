"""Cables with a rate and a delay between the lab's hosts and its switch, for kernels without netem.

::

    alpha ── veth ── bridge ── NEAR ··· workloads/wire.c ··· FAR ── the switch's bridge
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench import workload
from bench.harness import BenchError
from tests.lab import Lab

PROGRAM = "/tmp/wire"
BRIDGE = "lan"  # the switch's own; see tests/lab/lab.py


def lay(lab: Lab) -> None:
    """Build the program where `wired` finds it."""
    workload.build("wire", lab.switch.outside("/tmp"))


@contextmanager
def wired(lab: Lab, bits_per_second: int, delay_us: int) -> Iterator[None]:
    """Have all that a host sends go over such a cable, while the block runs.

    As with `Lab.shape`, a round trip between two hosts takes twice the delay.
    """
    with ExitStack() as stack:
        for name in lab.hosts:
            stack.enter_context(_wired(lab, name, bits_per_second, delay_us))
        yield


@contextmanager
def _wired(lab: Lab, name: str, bits_per_second: int, delay_us: int) -> Iterator[None]:
    near, far, bridge = f"n-{name}", f"f-{name}", f"b-{name}"
    with ExitStack() as stack:
        process = lab.switch.popen(
            [PROGRAM, near, far, str(bits_per_second), str(delay_us)],
            stdin=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        stack.callback(process.communicate, "")
        assert process.stdout is not None
        if (said := process.stdout.readline()) != "ready\n":
            raise BenchError(f"no cable can be laid: {said}")
        lab.switch.ip(f"link add name {bridge} type bridge\n")
        stack.callback(lab.switch.ip, f"link delete {bridge}\n")
        lab.switch.ip(
            f"link set {bridge} up\nlink set {near} up\nlink set {far} up\n"
            f"link set {far} master {BRIDGE}\nlink set {near} master {bridge}\n"
        )
        stack.callback(lab.switch.ip, f"link set {name} master {BRIDGE}\n")
        lab.switch.ip(f"link set {name} master {bridge}\n")
        yield
