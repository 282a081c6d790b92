"""What cannot be moved is refused in one line with a hint and an exit code, and nothing changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.lab import Host, Lab
from tests.privileged.migration.conftest import ADDRESS, Counter

pytestmark = [pytest.mark.privileged, pytest.mark.criu]


def check_refusal(
    said: subprocess.CompletedProcess[str], code: int, message: str, counter: Counter
) -> None:
    """Check that it is one line and a hint, and that the container runs on at alpha, alone."""
    said_lines = said.stderr.splitlines()
    complaints = [line for line in said_lines if line.startswith("pymigrate: ")]
    assert 1 == len(complaints), said.stderr
    assert (code, True) == (said.returncode, message in complaints[0]), said.stderr
    assert any(line.startswith("hint: ") for line in said_lines), said.stderr
    assert "Traceback" not in said.stderr
    assert [counter.lab["alpha"]] == counter.running()
    assert "absent" == counter.status(counter.lab["beta"])


def test_unknown_container(lab: Lab, counter: Counter) -> None:
    said = lab["alpha"].pymigrate("migrate", "nobody", "root@beta", check=False)

    check_refusal(said, 11, "no container 'nobody'", counter)


def test_paused_container(lab: Lab, counter: Counter) -> None:
    lab["alpha"].pymigrate("pause", "counter")
    said = lab["alpha"].pymigrate("migrate", "counter", "root@beta", check=False)
    assert "paused" == counter.status(lab["alpha"])
    lab["alpha"].pymigrate("resume", "counter")

    check_refusal(said, 13, "only a running container can be moved", counter)


def test_name_in_use_at_the_target(lab: Lab, counter: Counter) -> None:
    lab["beta"].sh("mkdir -p /srv/empty/bin; cp /bin/busybox /srv/empty/bin/")
    lab["beta"].pymigrate("create", "--name", "counter", "--rootfs", "/srv/empty", "/bin/busybox")
    said = lab["alpha"].pymigrate("migrate", "counter", "root@beta", check=False)
    assert "created" == counter.status(lab["beta"])
    lab["beta"].pymigrate("rm", "counter")

    check_refusal(said, 52, "a container counter on this host already", counter)


def test_same_host(lab: Lab, counter: Counter) -> None:
    said = lab["alpha"].pymigrate("migrate", "counter", "root@alpha", check=False)

    check_refusal(said, 21, "[same-host]", counter)


TRACER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.ptrace(0x4206, int(sys.argv[1]), 0, 0):  # PTRACE_SEIZE, which stops nothing
    sys.exit(f"errno {ctypes.get_errno()}")
print("traced", flush=True)
sys.stdin.read()
"""


def test_what_cannot_be_dumped_is_refused_before_anything_is_touched(
    lab: Lab, counter: Counter
) -> None:
    alpha = lab["alpha"]
    pid = alpha.pymigrate_json("inspect", "counter")["state"]["pid"]
    with alpha.popen(
        [sys.executable, "-c", TRACER, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as tracer:
        assert tracer.stdin is not None
        assert tracer.stdout is not None
        try:
            assert "traced" in str(tracer.stdout.readline())
            said = alpha.pymigrate("migrate", "counter", "root@beta", check=False)
            dry = alpha.pymigrate("migrate", "counter", "root@beta", "--dry-run", check=False)
            skipped = alpha.pymigrate(
                "migrate", "counter", "root@beta", "--dry-run", "--skip", "traced"
            )
        finally:
            tracer.stdin.close()
            tracer.wait()

    assert (21, True) == (dry.returncode, "[traced]" in dry.stderr)
    assert "skipped [traced]" in skipped.stdout
    assert "looked at in" in skipped.stdout
    check_refusal(said, 21, "is traced by process", counter)


def test_unknown_host_key(lab: Lab, counter: Counter) -> None:
    lab["alpha"].sh("touch /srv/nobody")
    said = lab["alpha"].pymigrate(
        "migrate", "counter", "root@beta", "--known-hosts", "/srv/nobody", check=False
    )

    check_refusal(said, 42, "beta", counter)


def test_changed_host_key(lab: Lab, counter: Counter) -> None:
    alpha = lab["alpha"]
    alpha.sh(
        "rm -f /srv/other /srv/other.pub; ssh-keygen -q -t ed25519 -N '' -f /srv/other;"
        f'echo "beta,{lab["beta"].address} $(cut -d" " -f1,2 /srv/other.pub)" > /srv/changed'
    )
    said = alpha.pymigrate(
        "migrate", "counter", "root@beta", "--known-hosts", "/srv/changed", check=False
    )

    check_refusal(said, 42, "beta", counter)


def test_refused_authentication(lab: Lab, counter: Counter) -> None:
    said = lab["alpha"].pymigrate("migrate", "counter", "nobody@beta", check=False)

    check_refusal(said, 46, "beta", counter)


def test_nobody_listens(lab: Lab, counter: Counter) -> None:
    said = lab["alpha"].pymigrate("migrate", "counter", "root@10.88.255.1:9", check=False)

    check_refusal(said, 41, "10.88.255.1", counter)


def test_no_pymigrate_at_the_target(lab: Lab, counter: Counter) -> None:
    said = lab["alpha"].pymigrate(
        "migrate", "counter", "root@beta", "--remote-command", "/nowhere/pymigrate", check=False
    )

    check_refusal(said, 22, "/nowhere/pymigrate", counter)


def test_what_answers_is_not_pymigrate(lab: Lab, counter: Counter) -> None:
    said = lab["alpha"].pymigrate(
        "migrate", "counter", "root@beta", "--remote-command", "echo hello", check=False
    )

    check_refusal(said, 43, "beta", counter)


def test_older_protocol_at_the_target(lab: Lab, counter: Counter) -> None:
    """An agent that speaks only version 0 is refused by name of both versions."""
    lab["beta"].sh(
        f"cat > /srv/bin-old <<'.'\n#!/bin/sh\nexec {sys.executable} -c '"
        "from pymigrate.transport import messages as m;"
        "ask = m.negotiate; m.negotiate = lambda peer: ask(peer, lowest=0, highest=0);"
        'import runpy, sys; sys.argv = ["pymigrate", "agent"];'
        'runpy.run_module("pymigrate.migrate", run_name="__main__")\'\n.\n'
        "chmod 755 /srv/bin-old"
    )
    said = lab["alpha"].pymigrate(
        "migrate", "counter", "root@beta", "--remote-command", "/srv/bin-old", check=False
    )

    check_refusal(said, 43, "different protocols", counter)


def test_address_in_use_at_the_target(lab: Lab, counter: Counter) -> None:
    beta = lab["beta"]
    beta.ip(f"address add {ADDRESS}/32 dev pymigrate0")
    said = lab["alpha"].pymigrate("migrate", "counter", "root@beta", check=False)
    beta.ip(f"address del {ADDRESS}/32 dev pymigrate0")

    check_refusal(said, 52, "is in use", counter)


def test_unwritable_report_is_refused_before_anything(lab: Lab, counter: Counter) -> None:
    said = lab["alpha"].pymigrate(
        "migrate", "counter", "root@beta", "--report", "/srv/report.txt", check=False
    )

    check_refusal(said, 2, "report", counter)


@pytest.mark.parametrize(("full", "left"), [("alpha", 128 << 10), ("beta", 1 << 20)])
def test_disk_full_on_either_side_rolls_back(
    lab: Lab, counter: Counter, full: str, left: int
) -> None:
    """The disk is full when the images or files arrive: what was begun is undone."""
    host = lab[full]
    lab["alpha"].pymigrate("exec", "counter", "sh", "-c", "head -c 8m /dev/urandom > /big")
    used = used_bytes(host)
    host.resize_disk(str(used + left))
    said = lab["alpha"].pymigrate("migrate", "counter", "root@beta", "--skip", "disk", check=False)
    host.resize_disk("50%")

    check_refusal(said, 52, "runs on here as before", counter)
    assert used_bytes(host) <= used + (64 << 10)


def used_bytes(host: Host) -> int:
    return int(host.sh("df --output=used -B1 /srv | tail -1"))


def test_of_two_moves_at_once_one_is_refused_and_the_other_goes_on(
    lab: Lab, counter: Counter
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    moves = [alpha.popen(["pymigrate", "migrate", "counter", "root@beta"]) for _ in range(2)]
    ends = []
    for move in moves:
        with move:
            _, text = move.communicate(timeout=60)
            ends.append((move.returncode, text))

    ends.sort()
    assert (0, 13) == tuple(code for code, _ in ends), ends
    assert "is being moved by migration" in ends[1][1]
    assert [beta] == counter.running()
    assert "absent" == counter.status(alpha)
