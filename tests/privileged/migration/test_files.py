"""Files that change while they are sent in rounds: what arrives is what stood still."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Host, Lab
from tests.privileged.migration.conftest import IMPATIENT, await_end_of_cut_lines

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

BLOCKS = 512  # of 16 KiB: a file of 8 MiB
# Step I writes I into block I mod 512 of a file that stays open for writing in between, appends a
# line, renames the newest of two files over the other, and moves a hard link and a whiteout about.
WRITE = """
head -c 8m /dev/zero > /data/big; cp /data/big /big; mkdir -p /d /data/d; : > /data/log; : > /log
exec 5<> /big
i=0
while true; do
  i=$((i+1))
  for at in "" /data; do
    printf '%08d' $i | dd of=$at/big bs=16384 seek=$((i % 512)) conv=notrunc 2> /dev/null
    echo $i > $at/d/new; mv $at/d/new $at/d/last
    if [ $((i % 2)) = 0 ]; then ln $at/big $at/d/link; rm -f /tmp/victim; else
      rm -f $at/d/link; echo $i > /tmp/victim; fi
    echo $i >> $at/log
  done
done
"""


def ext4(host: Host, path: str) -> Iterator[Path]:
    """Put a directory of the machine's disk at a place of a host, whose own ones are tmpfs."""
    with tempfile.TemporaryDirectory(dir="/var/lib", prefix="pymigrate-test-") as directory:
        host.run(["mkdir", "-p", path])
        host.run(["mount", "--bind", directory, path])
        yield Path(directory)
        host.run(["umount", "-l", path])


@pytest.fixture(params=["tmpfs", "disk"])
def disks(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """Two hosts that keep containers and volumes on a tmpfs, or on the machine's disk."""
    hosts = [lab["alpha"], lab["beta"]]
    places = ("/srv/pymigrate/containers", "/srv/data") if request.param == "disk" else ()
    mounts = [ext4(host, place) for host in hosts for place in places]
    for mount in mounts:
        next(mount)
    yield str(request.param)
    for host in hosts:
        for name in host.pymigrate("ps", "-a", "-q").stdout.split():
            host.pymigrate("rm", "-f", name)
    for mount in mounts:
        assert next(mount, None) is None
    for host in hosts:
        host.sh("rm -rf /srv/data /srv/pymigrate/migrations/*")


def steps(tree: Path) -> int:
    """Check what a stopped writer left in a tree; return how many steps it shows."""
    lines = (tree / "log").read_text().split()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    done = len(lines)
    content = (tree / "big").read_bytes()
    assert len(content) == BLOCKS << 14
    for block in range(BLOCKS):
        found = int(content[block << 14 :][:8].strip(b"\0") or b"0")
        newest = done - (done - block) % BLOCKS  # the step that wrote it last
        newest = newest if newest > 0 else 0
        # One more step may have got further than its line in the log.
        assert found in {newest, newest + BLOCKS if newest + BLOCKS == done + 1 else newest}, block
    assert int((tree / "d" / "last").read_text()) in {done, done + 1}
    link = tree / "d" / "link"
    if link.exists():
        assert link.stat().st_ino == (tree / "big").stat().st_ino
    return done


def test_files_that_change_all_the_while_arrive_as_they_were_at_the_freeze(
    lab: Lab, disks: str
) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.sh("mkdir -p /srv/data")
    alpha.pymigrate(
        "run", "-d", "--name", "writer", "--net", "none", "-v", "/srv/data:/data", "small",
        "sh", "-c", WRITE,
    )  # fmt: skip
    upper = "/srv/pymigrate/containers/writer/upper"
    alpha.sh(f"until [ $(wc -l < {upper}/log) -gt 600 ]; do :; done 2> /dev/null", timeout=60)

    report = alpha.pymigrate_json("migrate", "writer", "root@beta")

    beta.pymigrate("pause", "writer")
    for tree in (upper, "/srv/data"):
        assert steps(beta.outside(tree)) > 600
    rounds = report["file_rounds"]
    assert [each["frozen"] for each in rounds] == [False] * (len(rounds) - 1) + [True]
    assert len(rounds) > 1
    assert rounds[0]["bytes"] > 10 * rounds[-1]["bytes"]
    beta.pymigrate("resume", "writer")
    grown = len(beta.outside("/srv/data/log").read_text().split())
    beta.sh(f"until [ $(wc -l < /srv/data/log) -gt {grown} ]; do :; done", timeout=60)


def test_of_what_stands_still_nothing_is_sent_again(lab: Lab, disks: str) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.sh("mkdir -p /srv/data")
    alpha.pymigrate(
        "run", "-d", "--name", "sleeper", "--net", "none", "-v", "/srv/data:/data", "small",
        "sh", "-c", "head -c 16m /dev/urandom > /big; cp /big /data/big; : > /data/ready; "
        "while true; do sleep 1; done",
    )  # fmt: skip
    alpha.sh("until [ -e /srv/data/ready ]; do :; done", timeout=60)
    digest = alpha.pymigrate("exec", "sleeper", "sha256sum", "/big", "/data/big").stdout

    report = alpha.pymigrate_json("migrate", "sleeper", "root@beta")

    assert digest == beta.pymigrate("exec", "sleeper", "sha256sum", "/big", "/data/big").stdout
    first, *_, last = report["file_rounds"]
    assert first["bytes"] > 32 << 20
    assert last["frozen"]
    assert last["bytes"] < 1024  # times of a directory, if anything


def test_a_cut_in_a_round_leaves_the_container_and_no_files_behind(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate(
        "run", "-d", "--name", "sleeper", "--net", "none", "small",
        "sh", "-c", "head -c 16m /dev/urandom > /big; : > /ready; while true; do sleep 1; done",
    )  # fmt: skip
    containers = "/srv/pymigrate/containers"
    alpha.sh(f"until [ -e {containers}/sleeper/upper/ready ]; do :; done", timeout=60)
    lab.shape(rate="8mbit")
    command = [sys.executable, IMPATIENT, "migrate", "sleeper", "root@beta"]
    with alpha.popen(command) as migrate:
        beta.sh(f"until [ -s {containers}/sleeper/upper/big ]; do :; done", timeout=60)
        lab.cut("beta")
        _, text = migrate.communicate(timeout=60)
    lab.heal("beta")
    lab.shape()

    assert migrate.returncode == 52, text
    assert "frozen" not in text
    alpha.pymigrate("recover")
    beta.sh(f"while [ -e {containers}/sleeper ]; do sleep 0.1; done", timeout=60)
    await_end_of_cut_lines(beta)
    alpha.pymigrate("migrate", "sleeper", "root@beta")
    assert beta.pymigrate_json("ps")[0]["status"] == "running"
    beta.pymigrate("rm", "-f", "sleeper")
    for host in (alpha, beta):
        host.sh("rm -rf /srv/pymigrate/migrations/*")


# An agent from before there were rounds.
OLDER = """#!{python}
import sys
from pymigrate.migrate import agent, cli
served = agent.Agent.handlers
agent.Agent.handlers = lambda self: {{
    kind: handler for kind, handler in served(self).items() if kind is not agent.m.PutChanges
}}
sys.exit(cli.main())
"""


def test_an_older_target_gets_the_files_at_once(lab: Lab) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    older = beta.outside("/tmp/older")
    older.write_text(OLDER.format(python=sys.executable))
    older.chmod(0o755)
    alpha.pymigrate(
        "run", "-d", "--name", "sleeper", "--net", "none", "small",
        "sh", "-c", "head -c 4m /dev/urandom > /big; : > /ready; while true; do sleep 1; done",
    )  # fmt: skip
    upper = "/srv/pymigrate/containers/sleeper/upper"
    alpha.sh(f"until [ -e {upper}/ready ]; do :; done", timeout=60)
    digest = alpha.pymigrate("exec", "sleeper", "sha256sum", "/big").stdout

    report = alpha.pymigrate_json(
        "migrate", "sleeper", "root@beta", "--remote-command", "/tmp/older"
    )

    assert digest == beta.pymigrate("exec", "sleeper", "sha256sum", "/big").stdout
    assert [True] == [each["frozen"] for each in report["file_rounds"]]
    assert report["file_rounds"][0]["bytes"] > 4 << 20
    beta.pymigrate("rm", "-f", "sleeper")
    for host in (alpha, beta):
        host.sh("rm -rf /srv/pymigrate/migrations/*")
