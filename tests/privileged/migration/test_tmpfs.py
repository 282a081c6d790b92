"""What is in a container's file systems in memory arrives, and they are as they were."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import Host, Lab
from tests.privileged.migration.conftest import clear

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

# A file that is written to, one without a name, one that lost the name it was opened by, a socket.
PROGRAM = """
exec 3<>/dev/shm/open 4<>/dev/shm/gone 5<>/dev/shm/one
echo first >&3; echo nameless >&4; echo linked >&5
ln /dev/shm/one /dev/shm/two; rm /dev/shm/gone /dev/shm/one
syslogd -n -O /dev/shm/syslog & echo $! > /tmp/logger; renice -n 7 -p $!
until [ -S /dev/log ]; do usleep 5000; done
echo yes > /tmp/ready
while true; do
    usleep 5000
    if [ -e /dev/shm/go ]; then echo second >&3; rm /dev/shm/go; fi
done
"""
SECRET = "dev/shm/own/file"
FILES = """
until [ -e /tmp/ready ]; do usleep 5000; done
mkdir -p /dev/shm/own /dev/deep/er /tmp/bound
echo secret > /dev/shm/own/file; chmod 1770 /dev/shm/own; chmod 640 /dev/shm/own/file
chown 7:8 /dev/shm/own/file; touch -d '2001-02-03 04:05:06' /dev/shm/own/file
ln -s file /dev/shm/own/link; ln /dev/shm/own/file /dev/shm/own/again
mkfifo /dev/deep/fifo; mknod /dev/deep/er/null c 1 3
truncate -s 3g /tmp/sparse; echo end >> /tmp/sparse
mkdir -p /inner; mount -t tmpfs -o size=2m,mode=711 inner /inner; echo inner > /inner/file
mount --bind /dev/shm/own /tmp/bound
"""
LOOK = """
grep tmpfs /proc/mounts | sort
df -k /dev /dev/shm /tmp /inner | busybox awk '{print $2, $6}'
ls -lan /dev /dev/shm/own /dev/deep /dev/deep/er /tmp/bound | grep -v '^total'
stat -c '%n %y %u %g %a %h' /dev/shm/own/file /dev/shm/two
stat -c '%n %u %g %a %h' /dev/shm
cat /dev/shm/own/link /dev/shm/two /inner/file /proc/1/fd/4
tail -c 4 /tmp/sparse; stat -c %s /tmp/sparse
for each in /sys/firmware /proc/acpi; do ls -A $each; touch $each/new 2>&1; done; cat /proc/keys
for each in 1 $(cat /tmp/logger); do busybox awk '{print $2, $19}' /proc/$each/stat; done
"""


@pytest.fixture
def settled(lab: Lab) -> Iterator[Lab]:
    yield lab
    clear(lab)


def inside(host: Host, script: str) -> str:
    return host.pymigrate("exec", "memory", "sh", "-c", script).stdout


def carried(target: Host) -> set[str]:
    """Return where the file systems were mounted that came without CRIU's help."""
    (manifest,) = target.outside("/srv/pymigrate/migrations").glob("*/manifest.json")
    places = {each["place"] for each in json.loads(manifest.read_text())["tmpfs"]}
    target.sh("rm -r /srv/pymigrate/migrations/*")
    return places


def stamps_left_out(seen: str) -> list[str]:
    """Leave out when directories changed last, and what is made anew: sockets, other mounts."""
    # The last three are file systems of their own: two made with the container, one in use.
    other = (" .", "..", " mqueue", " pts", " shm")
    lines = [line for line in seen.splitlines() if not line.endswith(other)]
    return [
        " ".join([*line.split()[:5], line.split()[-1]]) if line.startswith("srw") else line
        for line in lines
    ]


@pytest.mark.parametrize("mode", ["stop", "hybrid"])
def test_all_that_is_in_them_arrives_and_they_are_as_they_were(settled: Lab, mode: str) -> None:
    alpha, beta = settled["alpha"], settled["beta"]
    alpha.pymigrate(
        "run", "-d", "--name", "memory", "--net", "none", "--cap-add", "SYS_ADMIN",
        "--cap-add", "MKNOD", "--security-opt", "seccomp=unconfined",
        "--tmpfs", "/tmp:size=1m,mode=1777", "small", "sh", "-c", PROGRAM,
    )  # fmt: skip
    inside(alpha, FILES)
    pid = alpha.pymigrate_json("inspect", "memory")["state"]["pid"]
    file = f"/proc/{pid}/root/{SECRET}"
    alpha.sh(f'python3 -c \'import os; os.setxattr("{file}", "trusted.word", b"kept")\'')
    before = inside(alpha, LOOK)

    written = "first\n"
    for source, target in ((alpha, beta), (beta, alpha)):
        source.pymigrate("migrate", "memory", f"root@{target.name}", "--mode", mode)
        assert {"/dev", "/dev/shm", "/tmp", "/inner"} < carried(target)

        assert stamps_left_out(before) == stamps_left_out(inside(target, LOOK))
        pid = target.pymigrate_json("inspect", "memory")["state"]["pid"]
        file = f"/proc/{pid}/root/{SECRET}"
        kept = f'python3 -c \'import os; print(os.getxattr("{file}", "trusted.word"))\''
        assert "b'kept'\n" == target.sh(kept)
        written += "second\n"
        assert written == inside(
            target,
            "touch /dev/shm/go; while [ -e /dev/shm/go ]; do usleep 5000; done; cat /dev/shm/open",
        )
        inside(target, "logger heard; until grep heard /dev/shm/syslog; do usleep 5000; done")
        inside(target, "> /dev/shm/syslog")
        assert "by the other\n" == inside(
            target, "echo by the other > /dev/shm/own/x; cat /tmp/bound/x; rm /tmp/bound/x"
        )
        full = inside(target, "dd if=/dev/zero of=/tmp/full bs=64k 2>&1; rm /tmp/full")
        assert "No space left" in full


def test_what_they_hold_is_announced(settled: Lab) -> None:
    alpha = settled["alpha"]
    alpha.pymigrate("run", "-d", "--name", "memory", "--net", "none", "small", "sleep", "1000")
    planned = ("migrate", "memory", "root@beta", "--dry-run")
    before = alpha.pymigrate_json(*planned)["memory"]
    inside(alpha, "head -c 3m /dev/zero > /dev/shm/three")

    assert before + (3 << 20) == alpha.pymigrate_json(*planned)["memory"]


def test_what_was_mounted_amid_the_rounds_arrives_too(settled: Lab) -> None:
    alpha, beta = settled["alpha"], settled["beta"]
    turn = "mount -t tmpfs t /t; echo $i > /t/n; usleep 3000; umount /t; i=$((i+1))"
    alpha.pymigrate(
        "run", "-d", "--name", "memory", "--net", "none", "--cap-add", "SYS_ADMIN",
        "--security-opt", "seccomp=unconfined", "small",
        "sh", "-c", f"mkdir -p /t; i=0; while true; do {turn}; echo $i > /dev/shm/n; done",
    )  # fmt: skip
    alpha.pymigrate("migrate", "memory", "root@beta")

    n = int(inside(beta, "cat /dev/shm/n"))
    inside(beta, f"until [ $(cat /dev/shm/n) -gt {n + 5} ]; do usleep 5000; done")
