"""What root in a container may not do, and who else it can be."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from pymigrate.runtime.errors import (
    MissingFeature,
)
from pymigrate.runtime.settings import (
    Capabilities,
    Rlimit,
    User,
)
from pymigrate.runtime.spec import default_process, default_spec
from tests.privileged.isolation.box import (
    Box,
)

pytestmark = [pytest.mark.privileged, pytest.mark.requires("root")]


def test_pid_1_holds_what_podman_grants_and_no_more(box: Box) -> None:
    spec = default_spec(["cat", "/proc/1/status"])
    text = box.output(lambda stdio: box.start(spec, stdio).pid)
    status = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)

    assert {"00000000800405fb"} == {status[name] for name in ("CapBnd", "CapPrm", "CapEff")}
    assert {"0000000000000000"} == {status[name] for name in ("CapInh", "CapAmb")}
    assert ("1", "2") == (status["NoNewPrivs"], status["Seccomp"])
    for name in ("SigBlk", "SigIgn", "SigCgt"):
        assert int(status[name], 16) == 0, name


def test_all_five_sets_are_as_asked(box: Box) -> None:
    kill = frozenset({"CAP_KILL"})
    process = default_process(
        ["x"], capabilities=Capabilities(kill | {"CAP_CHOWN"}, kill, kill, kill, kill)
    )
    spec = default_spec(["x"], process=process, seccomp=None)
    text = box.run("grep Cap /proc/self/status", spec)
    status = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)

    assert 0x21 == int(status.pop("CapBnd"), 16)
    # With no_new_privs not even root's exec adds what is in the bounding set.
    assert 0x20 == int(status.pop("CapPrm"), 16) == int(status.pop("CapEff"), 16)
    assert {0x20} == {int(value, 16) for value in status.values()}


def test_another_user_has_groups_limits_a_directory_and_no_capabilities(box: Box) -> None:
    user = User(1000, 100, (5, 6))
    (box.root / "srv").mkdir()
    process = default_process(
        ["x"], user=user, cwd="/srv", rlimits=(Rlimit("RLIMIT_NOFILE", 100, 200),),
        env=("PATH=/bin", "A=b=c"),
    )  # fmt: skip
    process = replace(process, capabilities=replace(process.capabilities, effective=frozenset(),
                                                    permitted=frozenset()))  # fmt: skip
    text = box.run(
        "id -u; id -g; id -G; pwd; umask; ulimit -Sn; ulimit -Hn; echo $A;"
        " grep CapEff /proc/1/status; echo again > /dev/stdout",
        default_spec(["x"], process=process),
    )
    assert [
        "1000", "100", "100 5 6", "/srv", "0022", "100", "200", "b=c",
        "CapEff:\t0000000000000000", "again",
    ] == text.splitlines()  # fmt: skip


def test_a_capability_that_the_host_lacks_is_an_error(box: Box) -> None:
    lacking = frozenset({"CAP_SYS_RESOURCE"})
    process = default_process(["x"], capabilities=Capabilities(lacking, lacking, lacking))
    bounding = subprocess.run(
        ["grep", "CapBnd", "/proc/self/status"], check=True, capture_output=True, text=True
    )
    if int(bounding.stdout.split()[1], 16) >> 24 & 1:
        pytest.skip("this host can grant CAP_SYS_RESOURCE")
    with pytest.raises(MissingFeature, match="cannot grant CAP_SYS_RESOURCE"):
        box.run("true", default_spec(["x"], process=process))


@pytest.mark.parametrize(
    "way_out",
    [
        "mount -t tmpfs none /bin",
        "unshare -m true",
        "unshare -U true",
        "mknod /disk b 254 0",
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo h > /proc/sysrq-trigger",
        "echo 1 > /sys/kernel/uevent_seqnum",
        "touch /proc/1/root/proc/sys/x",
        "hostname other",
    ],
)
def test_a_way_out_is_closed(box: Box, way_out: str) -> None:
    assert "open" not in box.run(f"{{ {way_out}; }} 2>/dev/null && echo open")


def test_seccomp_can_be_left_out_and_can_be_ones_own(box: Box) -> None:
    script = "grep Seccomp: /proc/self/status; mkdir /made 2>&1"
    unconfined = box.run(script, default_spec(["x"], seccomp=None))
    assert "Seccomp:\t0" == unconfined

    own = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
        ],
    }
    text = box.run(script.replace("made", "other"), default_spec(["x"], seccomp=own))
    assert "Seccomp:\t2" in text
    assert "No space left on device" in text
