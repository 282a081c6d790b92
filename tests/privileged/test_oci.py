"""runc's command line: containers of any bundle, in two steps, seen from inside and outside."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pymigrate.runtime.state import Identity
from tests.privileged.oci_tool import Oci
from tests.privileged.tool import read_until

pytestmark = pytest.mark.privileged

AS_3_AND_4 = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Oci]:
    made = Oci(tmp_path)
    yield made
    assert "" == made("list", "-q").stdout


# Two steps


def test_a_created_container_waits_runs_when_started_and_leaves_its_exit_code_to_its_parent(
    oci: Oci,
) -> None:
    with oci.created("sh", "-c", "echo up; exit 7") as output:
        pid = int((oci.directory / "pid").read_text())
        before = oci.state()
        assert os.getpid() == int(
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        )
        assert (pid, "created") == (before["pid"], before["status"])

        oci("start", "one")

        assert b"up\n" == read_until(output, b"up\n")
        assert 7 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        after = oci.state()
        assert (0, "stopped") == (after["pid"], after["status"])
        assert "is stopped" in oci("start", "one", code=13).stderr
        assert "not running" in oci("kill", "one", code=13).stderr


def test_the_state_says_what_the_specification_asks_for(oci: Oci) -> None:
    def change(config: Any) -> None:
        config["annotations"] = {"key": "value"}

    with oci.created("true", change=change):
        state = oci.state()

    assert {"ociVersion", "id", "status", "pid", "bundle", "annotations"} <= set(state)
    assert ("one", {"key": "value"}) == (state["id"], state["annotations"])
    assert str(oci.directory / "bundle") == state["bundle"]


def test_nothing_of_ours_runs_beside_the_container(oci: Oci) -> None:
    with oci.created("sleep", "60"):
        oci("start", "one")
        pid = oci.state()["pid"]

        assert "running" == oci.state()["status"]
        assert json.dumps([pid]) == oci("ps", "-f", "json", "one").stdout.strip()
        assert "sleep 60" in oci("ps", "one").stdout


def test_signals_pause_and_deletion_follow_the_life_of_the_container(oci: Oci) -> None:
    script = "trap 'echo got; exit 3' TERM; echo up; while :; do sleep 0.1; done"
    with oci.created("sh", "-c", script) as output:
        oci("start", "one")
        read_until(output, b"up\n")
        assert "it is running" in oci("delete", "one", code=13).stderr

        oci("pause", "one")
        assert "paused" == oci.state()["status"]
        assert "paused, not running" in oci("pause", "one", code=13).stderr
        oci("kill", "one", "TERM")
        oci("resume", "one")

        read_until(output, b"got\n")
        assert 3 == os.waitstatus_to_exitcode(
            os.waitpid(int((oci.directory / "pid").read_text()), 0)[1]
        )
        oci("delete", "one")
        assert "does not exist" in oci("state", "one", code=11).stderr
        oci("delete", "--force", "one")


def test_a_paused_container_is_killed_and_deleted(oci: Oci) -> None:
    with oci.created("sleep", "60"):
        oci("start", "one")
        oci("pause", "one")
        init = Identity.of(oci.state()["pid"])

        oci("delete", "--force", "one")

        assert init is not None
        assert not init.is_alive


def test_a_name_is_used_once(oci: Oci) -> None:
    with oci.created("true"):
        assert "exists already" in oci("create", "-b", oci.bundle("true"), "one", code=12).stderr
    for name in ("../one", ".", "", "a/b"):
        oci("create", "-b", oci.bundle("true"), name, code=2)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [("nothing", 127, "executable file not found"), ("/etc/passwd", 126, "permission denied")],
)
def test_a_command_that_cannot_be_run_is_told_at_once_in_words_that_podman_knows(
    oci: Oci, command: str, code: int, words: str
) -> None:
    log = oci.directory / "log"

    words_of_log = ("--log", str(log), "--log-format", "json")
    said = oci(*words_of_log, "create", "-b", oci.bundle(command), "one", code=code).stderr

    assert words in said.casefold()
    entry = json.loads(log.read_text())
    assert "error" == entry["level"]
    assert words in entry["msg"].casefold()
    assert not (oci.root / "one").exists()


def test_settings_that_are_impossible_leave_nothing(oci: Oci) -> None:
    def change(config: Any) -> None:
        config["mounts"].append({"destination": "/x", "type": "bind", "source": "/nothing/here",
                                 "options": ["bind"]})  # fmt: skip

    assert (
        "/nothing/here"
        in oci("create", "-b", oci.bundle("true", change=change), "one", code=None).stderr
    )
    assert [] == list(oci.root.iterdir())


# Streams


def test_run_passes_streams_and_exit_codes(oci: Oci) -> None:
    with (oci.directory / "in").open("w+") as given:
        given.write("typed")
        given.seek(0)
        said = oci("run", "-b", oci.bundle("sh", "-c", "cat; echo err >&2; exit 5"), "one",
                   code=5, stdin=given)  # fmt: skip

    assert ("typed", "err\n") == (said.stdout, said.stderr)
    running = subprocess.Popen(
        oci.argv(
            "run",
            "-b",
            oci.bundle("sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"),
            "one",
        ),
        stdout=subprocess.PIPE,
    )
    assert running.stdout is not None
    read_until(running.stdout.fileno(), b"up\n")
    running.terminate()
    assert 9 == running.wait(20)
    running.stdout.close()


def test_a_terminal_is_sent_to_the_console_socket(oci: Oci) -> None:
    def change(config: Any) -> None:
        config["process"]["terminal"] = True
        config["process"]["consoleSize"] = {"height": 11, "width": 22}

    path = f"/proc/self/fd/{os.open(oci.directory, os.O_PATH)}/console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        made = oci("create", "-b", oci.bundle("sh", "-c", "tty; stty size", change=change),
                   "--console-socket", str(oci.directory / "console"), "one")  # fmt: skip
        connection, _ = listener.accept()
        with connection:
            _, (master,), _, _ = socket.recv_fds(connection, 100, 1)
    os.close(int(path.split("/")[4]))

    oci("start", "one")

    assert "" == made.stdout
    assert b"/dev/pts/0\r\n11 22\r\n" == read_until(master, b"22\r\n")
    os.close(master)
    oci("delete", "--force", "one")


def test_descriptors_that_are_to_be_kept_are_there_and_no_others(oci: Oci) -> None:
    (oci.directory / "given").write_text("through a descriptor")
    with (oci.directory / "given").open() as first, (oci.directory / "given").open() as other:
        script = "cat <&3; ls /proc/self/fd"
        argv = oci.argv("run", "--preserve-fds", "1", "-b", oci.bundle("sh", "-c", script), "one")
        files = (first.fileno(), other.fileno())
        found = subprocess.run(
            [sys.executable, "-c", AS_3_AND_4, *map(str, files), *argv],
            pass_fds=files,
            capture_output=True,
            text=True,
            check=True,
        )

    assert found.stdout.startswith("through a descriptor")
    # The last is the directory that ls reads.
    assert ["0", "1", "2", "3", "4"] == found.stdout.removeprefix("through a descriptor").split()


# exec


def test_exec_runs_beside_the_command_with_flags_or_a_process_file(oci: Oci) -> None:
    with oci.created("sleep", "60"):
        assert "it is created" in oci("exec", "one", "true", code=13).stderr
        oci("start", "one")

        said = oci("exec", "-e", "A=b", "--cwd", "/etc", "--user", "33:6", "one",
                   "sh", "-c", "echo $A $(pwd) $(id -u) $(id -g); exit 4", code=4)  # fmt: skip
        assert "b /etc 33 6\n" == said.stdout
        process = {
            "args": ["sh", "-c", "echo $X; exit 6"],
            "cwd": "/",
            "env": ["X=file", "PATH=/bin"],
        }
        (oci.directory / "process.json").write_text(json.dumps(process))
        said = oci("exec", "--process", str(oci.directory / "process.json"), "one", code=6)
        assert "file\n" == said.stdout
        assert "executable file not found" in oci("exec", "one", "nothing", code=127).stderr
        with (oci.directory / "given").open("w+") as given:
            oci("exec", "-d", "--pid-file", str(oci.directory / "second"), "one",
                "sh", "-c", "echo detached", stdout=given)  # fmt: skip
            second = int((oci.directory / "second").read_text())
            assert 0 == os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
            given.seek(0)
            assert "detached\n" == given.read()


# Hooks


def hook(oci: Oci, name: str, script: str) -> dict[str, Any]:
    """Return a hook that writes its state, with its name, to a file, and does more."""
    path = oci.directory / "hooks"
    text = f"(echo {name}; cat; echo; {script}) >>{path}"
    return {"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"]}


def test_hooks_run_in_order_in_their_place_and_are_told_the_state(oci: Oci) -> None:
    (oci.rootfs / "hooked").touch()
    points = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]

    def change(config: Any) -> None:
        config["hooks"] = {
            name: [hook(oci, name, "hostname; readlink /proc/self/ns/pid")] for name in points
        }
        config["root"]["readonly"] = False
        config["hooks"]["startContainer"] = [
            {"path": "/bin/sh", "args": ["sh", "-c", "(hostname; cat) >/hooked"]}
        ]

    with oci.created("sleep", "60", change=change):
        assert "" == (oci.rootfs / "hooked").read_text()
        oci("start", "one")
        pid = oci.state()["pid"]
        inside = (oci.rootfs / "hooked").read_text().splitlines()
        oci("delete", "--force", "one")

    lines = (oci.directory / "hooks").read_text().splitlines()
    assert points == lines[0::4]
    states = [json.loads(line) for line in lines[1::4]]
    assert ["creating", "creating", "creating", "running", "stopped"] == [
        each["status"] for each in states
    ]
    assert [pid] * 4 + [0] == [each["pid"] for each in states]
    ours = os.uname().nodename
    assert [ours, ours, "bundled", ours, ours] == lines[2::4]
    assert ("bundled", "created") == (inside[0], json.loads(inside[1])["status"])


@pytest.mark.parametrize("point", ["createRuntime", "createContainer"])
def test_a_hook_that_fails_leaves_no_container(oci: Oci, point: str) -> None:
    def change(config: Any) -> None:
        config["hooks"] = {point: [{"path": "/bin/false"}]}

    said = oci("create", "-b", oci.bundle("true", change=change), "one", code=20).stderr

    assert f"the {point} hook /bin/false failed: exit code 1" in said
    assert [] == list(oci.root.iterdir())


def test_a_hook_of_the_start_that_fails_ends_the_container(oci: Oci) -> None:
    def change(config: Any) -> None:
        config["hooks"] = {"startContainer": [{"path": "/bin/false"}]}

    with oci.created("sleep", "60", change=change):
        assert "startContainer hook" in oci("start", "one", code=20).stderr
        assert "stopped" == oci.state()["status"]


def test_a_hook_that_hangs_is_ended_by_its_timeout(oci: Oci) -> None:
    def change(config: Any) -> None:
        config["hooks"] = {
            "createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}]
        }

    said = oci("create", "-b", oci.bundle("true", change=change), "one", code=20).stderr

    assert "still running after 1 s" in said


# Checkpoints


@pytest.mark.criu
@pytest.mark.parametrize("leave_running", [False, True])
def test_a_container_is_written_down_and_goes_on_where_it_was(
    oci: Oci, leave_running: bool
) -> None:
    script = "for i in $(seq 1000000); do echo $i; sleep 0.05; done"
    images = str(oci.directory / "images")
    words = ["--leave-running"] if leave_running else []
    with oci.created("sh", "-c", script) as output:
        oci("start", "one")
        read_until(output, b"3\n")
        oci("checkpoint", "--image-path", images, *words, "one")
        assert ("running" if leave_running else "stopped") == oci.state()["status"]
        oci("kill", "one", "KILL", code=0 if leave_running else 13)
        last = int(read_rest(output).split()[-1])

    read, write = os.pipe()
    oci("restore", "-d", "-b", str(oci.directory / "bundle"), "--image-path", images, "one",
        stdout=write, stderr=write)  # fmt: skip
    os.close(write)
    found = read_until(read, b"\n")
    assert "running" == oci.state()["status"]
    oci("delete", "--force", "one")
    os.close(read)

    first = int(found.split(b"\n")[0])
    assert first <= last + 1 if leave_running else first == last + 1


# Two processes that are connected with each other, which runc's callers have to choose to keep.
CONNECTED = """
sleep 1000 | nc -l -p 70 >/dev/null & until grep -q ' 0A ' /proc/net/tcp*; do sleep 0.05; done
sleep 1000 | nc 127.0.0.1 70 & until grep -q ' 01 ' /proc/net/tcp*; do sleep 0.05; done
echo connected; sleep 1000
"""


@pytest.mark.criu
def test_what_could_not_be_written_down_is_refused_before_the_freeze(oci: Oci) -> None:
    """As is `pymigrate checkpoint`; skipped by an option, or where that cannot be said, by name."""
    images = oci.directory / "images"
    words = ("checkpoint", "--leave-running", "--image-path", str(images))

    with oci.created("sh", "-c", CONNECTED) as output:
        oci("start", "one")
        read_until(output, b"connected\n")
        refused = oci(*words, "one", code=31).stderr
        assert "[tcp]; nothing was touched" in refused
        assert "--tcp-established keeps them" in refused
        assert not images.exists()
        tried = oci(*words, "--skip", "tcp", "one", code=31).stderr
        assert "criu could not write it down" in tried
        unknown = oci(*words, "--skip", "moon", "one", code=2).stderr
        assert "no such check to skip: moon" in unknown
        assert "running" == oci.state()["status"]
        oci(*words, "--tcp-established", "one")

    def annotated(config: Any) -> None:
        config["annotations"] = {"pymigrate.skip": "zombie,tcp"}

    with oci.created("sh", "-c", CONNECTED, change=annotated) as output:
        oci("start", "one")
        read_until(output, b"connected\n")
        assert "criu could not write it down" in oci(*words, "one", code=31).stderr


def read_rest(output: int) -> bytes:
    """Read what a process that has ended had written; another may still hold the other end."""
    os.set_blocking(output, False)
    with contextlib.suppress(BlockingIOError):
        return os.read(output, 1 << 20)
    return b""


def test_what_does_not_run_is_not_written_down(oci: Oci) -> None:
    with oci.created("sleep", "60"):
        images = str(oci.directory / "images")

        assert "it is created" in oci("checkpoint", "--image-path", images, "one", code=13).stderr
        assert "created" == oci.state()["status"]
    (oci.directory / "empty").mkdir()
    said = oci("restore", "-d", "-b", str(oci.directory / "bundle"), "--image-path",
               str(oci.directory / "empty"), "one", code=2).stderr  # fmt: skip
    assert "not a checkpoint" in said
    assert [] == list(oci.root.iterdir())


# Limits, features, refusals


def test_limits_are_changed_while_it_runs(oci: Oci) -> None:
    def change(config: Any) -> None:
        config["linux"]["cgroupsPath"] = "/pymigrate-test/oci-one"
        config["linux"]["resources"]["pids"] = {"limit": 30}
        config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup",
                                 "source": "cgroup", "options": ["ro", "nosuid"]})  # fmt: skip

    with oci.created("sleep", "60", change=change):
        oci("start", "one")
        read = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true"
        assert "30\n" == oci("exec", "one", "sh", "-c", read).stdout

        oci("update", "--pids-limit", "20", "one")
        assert "20\n" == oci("exec", "one", "sh", "-c", read).stdout
        (oci.directory / "limits").write_text('{"pids": {"limit": 25}}')
        oci("update", "-r", str(oci.directory / "limits"), "one")
        assert "25\n" == oci("exec", "one", "sh", "-c", read).stdout
        oci("update", "--pids-limit", "-1", "one")
        assert "max\n" == oci("exec", "one", "sh", "-c", read).stdout

        times = ("--cpu-quota", "40000", "--cpu-period", "100000", "--cpu-burst", "10000")
        oci("update", *times, "--cpu-idle", "1", "--memory", "64m", "one")
        oci("update", "--cpu-period", "50000", "one")
        read = "; ".join(
            f"cat /sys/fs/cgroup/{v1} /sys/fs/cgroup/{v2} 2>/dev/null"
            for v1, v2 in (
                ("cpu/cpu.cfs_quota_us", "cpu.max"),
                ("cpu/cpu.cfs_period_us", "x"),
                ("cpu/cpu.cfs_burst_us", "cpu.max.burst"),
                ("cpu/cpu.idle", "cpu.idle"),
                ("memory/memory.limit_in_bytes", "memory.max"),
            )
        )
        found = oci("exec", "one", "sh", "-c", f"{read}; true").stdout.split()
        assert ["40000", "50000", "10000", "1", "67108864"] == found
        # What was refused before still is.
        assert (
            "denied\n"
            == oci("exec", "one", "sh", "-c", "echo x >/dev/full 2>/dev/null || echo denied").stdout
        )


def test_features_name_what_can_be_done(oci: Oci) -> None:
    found = json.loads(oci("features").stdout)

    assert "createContainer" in found["hooks"]
    assert {"user", "time", "mount"} <= set(found["linux"]["namespaces"])
    assert "rbind" in found["mountOptions"]


@pytest.mark.parametrize(
    "words",
    [
        ("--systemd-cgroup", "create", "one"),
        ("create", "--no-pivot", "one"),
        ("jump", "one"),
        ("kill", "one", "NOSUCH"),
        (),
    ],
)
def test_what_is_not_supported_is_refused(oci: Oci, words: tuple[str, ...]) -> None:
    oci(*words, code=2)


def test_versions_are_told(oci: Oci) -> None:
    assert "spec: 1.2.0" in oci("--version").stdout
