"""Containers by the command line, seen from outside and from inside."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from pymigrate.runtime.state import Identity
from tests.privileged.tool import Tool, names, read_link

pytestmark = pytest.mark.privileged


# Running


def test_streams_stay_apart_and_the_exit_code_comes_back(tool: Tool) -> None:
    found = tool.run("--rm", "sh", "-c", "echo out; echo err >&2; exit 7", code=7)

    assert ("out\n", "err\n") == (found.stdout, found.stderr)
    assert tool("ps", "-aq").stdout == ""


def test_all_of_a_long_output_and_input_arrives(tool: Tool) -> None:
    lines = "".join(f"{number}\n" for number in range(1, 60_001))

    assert lines == tool.run("--rm", "seq", "60000").stdout
    assert lines == tool.run("--rm", "-i", "cat", data=lines).stdout


def test_output_that_ends_without_a_newline_is_not_changed(tool: Tool) -> None:
    assert tool.run("--rm", "sh", "-c", "echo a; echo -n b").stdout == "a\nb"


def test_without_i_stdin_is_empty(tool: Tool) -> None:
    assert tool.run("--rm", "wc", "-c", data="hello").stdout == "0\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["false"], 1),
        (["sh", "-c", "exit 255"], 255),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
)
def test_exit_codes(tool: Tool, command: list[str], code: int) -> None:
    tool.run("--rm", *command, code=code)

    assert tool("ps", "-aq").stdout == ""


def test_a_command_that_is_not_there_leaves_a_container_that_can_be_removed(tool: Tool) -> None:
    tool.run("--name", "web", "no-such-command", code=127)

    assert tool.state("web")["status"] == "created"
    tool("rm", "web")


def test_it_is_alone_inside(tool: Tool) -> None:
    script = "echo $$; hostname; ls /proc | grep -c '^[0-9]'; ip -o link | wc -l"
    found = tool.run("--rm", "--hostname", "inside", "sh", "-c", script).stdout.split()

    assert found[:2] == ["1", "inside"]
    assert int(found[2]) <= 5
    assert found[3:] == ["1"]


def test_each_namespace_is_new_unless_shared(tool: Tool) -> None:
    script = "for n in /proc/self/ns/*; do echo ${n##*/} $(readlink $n); done"

    def namespaces(*options: str) -> dict[str, str]:
        text = tool.run("--rm", *options, "sh", "-c", script).stdout
        return dict(line.split() for line in text.splitlines())

    ours = {name: read_link(f"/proc/self/ns/{name}") for name in names("/proc/self/ns")}
    new = {name for name, inode in namespaces().items() if inode != ours[name]}
    assert new == set(ours) - {"user"}

    some = namespaces("--share", "ipc,time", "--net", "host")
    shared = {name for name, inode in some.items() if inode == ours[name]}
    assert shared == {"user", "ipc", "net", "time", "time_for_children"}


def test_its_clocks_can_differ_from_the_hosts(tool: Tool) -> None:
    read = ("busybox", "awk", "{print int($1)}", "/proc/uptime")
    before = int(time.clock_gettime(time.CLOCK_BOOTTIME))
    inside = int(tool.run("--rm", "--boottime", "1000000", *read).stdout)
    after = int(time.clock_gettime(time.CLOCK_BOOTTIME))

    assert before <= inside - 1000000 <= after
    assert "time" in tool.run("--rm", "--boottime", "-99999999999", "true", code=125).stderr
    said = tool.run("--monotonic", "5", "--share", "time", "true", code=2).stderr
    assert "--monotonic needs a time namespace" in said


def test_the_lightest_container_shares_everything(tool: Tool) -> None:
    kinds = "mount,pid,ipc,uts,cgroup,time,net"
    found = tool.run("--rm", "--share", kinds, "sh", "-c", "readlink /proc/self/ns/mnt")

    assert found.stdout == f"{read_link('/proc/self/ns/mnt')}\n"


def test_a_namespace_of_another_can_be_joined(tool: Tool) -> None:
    tool.run("-d", "--name", "one", "sleep", "1000")
    pid = tool.state("one")["pid"]
    script = "readlink /proc/self/ns/ipc; readlink /proc/self/ns/net"
    joined = ("--join", f"ipc:/proc/{pid}/ns/ipc", "--join", f"net:/proc/{pid}/ns/net")
    found = tool.run("--rm", *joined, "sh", "-c", script).stdout.split()

    assert found == [read_link(f"/proc/{pid}/ns/ipc"), read_link(f"/proc/{pid}/ns/net")]


def test_nothing_is_written_into_the_directory_it_came_from(tool: Tool) -> None:
    before = names(tool.rootfs)
    tool.run("--name", "web", "sh", "-c", "echo x > /new; mkdir /dir")

    assert before == names(tool.rootfs)
    assert (tool.root / "containers/web/upper/new").read_text() == "x\n"


def test_environment_directory_user_and_entry_point(tool: Tool) -> None:
    options = ("-e", "A=1", "-w", "/bin", "-u", "web", "--entrypoint", "sh")
    found = tool.run("--rm", *options, "--", "-c", "echo $A $HOME $container; pwd; id").stdout

    assert found == "1 / pymigrate\n/bin\nuid=33(web) gid=33(web) groups=6(disk)\n"


def test_volumes_tmpfs_and_a_root_that_cannot_be_written(tool: Tool, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    script = "echo x > /data/new; touch /ro/x; touch /x; touch /t/x && echo done"
    options = ("-v", f"{shared}:/data", "-v", f"{shared}:/ro:ro", "--tmpfs", "/t", "--read-only")
    found = tool.run("--rm", *options, "sh", "-c", script)

    assert found.stdout == "done\n"
    assert found.stderr.count("Read-only file system") == 2
    assert (shared / "new").read_text() == "x\n"


def test_limits_are_enforced(tool: Tool) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done"
    found = tool.run("--rm", "--pids-limit", "5", "sh", "-c", script, code=None)
    assert "can't fork" in found.stderr

    hog = "dd if=/dev/zero of=/dev/null bs=64M count=1"
    tool.run("--name", "fat", "--memory", "16m", *hog.split(), code=137)
    assert tool.state("fat")["oom_killed"] is True

    found = tool.run("--rm", "--ulimit", "nofile=10:20", "sh", "-c", "ulimit -n; ulimit -Hn")
    assert found.stdout.split() == ["10", "20"]


def test_fake_root_is_defanged_unless_told_otherwise(tool: Tool) -> None:
    script = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; mount -t tmpfs x /etc"
    tame = tool.run("--rm", "sh", "-c", script, code=None).stdout
    wild = tool.run("--rm", "--privileged", "sh", "-c", script).stdout
    none = tool.run("--rm", "--cap-drop", "all", "sh", "-c", script, code=None).stdout

    assert "NoNewPrivs:\t1" in tame
    assert "Seccomp:\t2" in tame
    assert "Seccomp:\t0" in wild
    assert "CapBnd:\t0000000000000000" in none


# Bad input


@pytest.mark.parametrize(
    "options",
    [
        ["--name", "../x"],
        ["--name", "a" * 64],
        ["--memory", "lots"],
        ["--cpus", "-1"],
        ["-e", "=x"],
        ["-v", "/no/such:/x"],
        ["-u", "nobody-here"],
        ["--net", "bridged"],
        ["--net", "bridge", "--ip", "300.1.1.1"],
        ["--net", "bridge", "--mac", "zz"],
        ["--ulimit", "nofile"],
        ["--security-opt", "x=y"],
        ["--cap-add", "fly"],
        ["--share", "disk"],
        ["--join", "ipc:x"],
        ["--hostname", "a b"],
        ["-w", "relative"],
        ["--env-file", "/no/such"],
        ["--pids-limit", "x"],
        ["--no-such-option"],
    ],
)
def test_a_bad_option_makes_nothing(tool: Tool, options: list[str]) -> None:
    found = tool.run(*options, "true", code=2)

    assert re.match(r"pymigrate: .+\n(hint: .+\n)?\Z", found.stderr)
    assert not list(tool.root.glob("containers/*"))


def test_what_is_not_there_or_in_the_way(tool: Tool) -> None:
    verbs = "start stop kill pause resume restart rm wait inspect logs attach top path"
    for verb in verbs.split():
        tool(verb, "nobody", code=11)
    tool("exec", "nobody", "true", code=11)
    tool("rm", "-f", "nobody")
    tool.run("--name", "web", "true")
    tool.run("--name", "web", "true", code=12)
    for verb in ("pause", "resume", "kill", "attach", "top", "path"):
        tool(verb, "web", code=13)
    tool("run", "--net", "none", "--rootfs", "/no/such", "true", code=2)
    tool("run", code=2)
    tool("run", "--net", "none", "no-such-image", code=11)
    tool("stop", "-t", "-1", "web", code=2)
    tool("kill", "-s", "NOPE", "web", code=2)


def test_a_damaged_container_harms_no_other_and_can_be_removed(tool: Tool) -> None:
    tool.run("-d", "--name", "good", "sleep", "1000")
    tool.run("-d", "--name", "bad", "sleep", "1000")
    pid = int(str(tool.state("bad")["pid"]))
    (tool.root / "containers/bad/config.json").write_text("{")

    listed = tool("ps")
    assert "good" in listed.stdout
    assert "container bad cannot be read" in listed.stderr
    assert "rm -f bad" in tool("start", "bad", code=10).stderr
    tool("rm", "bad", code=10)
    tool.run("--rm", "true")

    tool("rm", "-f", "bad")
    assert Identity.of(pid) is None
    assert tool("ps", "-a").stderr == ""


def test_two_at_once_get_one_name(tool: Tool) -> None:
    both = [tool.popen("--name", "web", "true") for _ in range(2)]
    codes = sorted(each.wait(timeout=60) for each in both)
    for each in both:
        each.communicate()

    assert codes == [0, 12]
    assert names(tool.root / "containers") == ["web"]


# Life


def test_a_life_in_the_background(tool: Tool) -> None:
    identifier = tool.run("-d", "--name", "web", "sleep", "1000").stdout.strip()
    pid = tool.state("web")["pid"]

    assert tool.state(identifier[:12])["status"] == "running"
    assert identifier[:12] == tool("ps", "-q").stdout.strip()
    tool("start", "web", code=13)
    tool("rm", "web", code=13)
    assert "busybox" in names(tool("path", "web").stdout.strip() + "/bin")
    assert re.search(rf"^{pid} +1 +sleep 1000$", tool("top", "web").stdout, re.MULTILINE)
    tool("pause", "web")
    assert json.loads(tool("ps", "--json").stdout)[0]["status"] == "paused"
    tool("pause", "web", code=13)
    tool("stop", "web", code=13)
    tool("exec", "web", "true", code=13)
    tool("resume", "web")
    tool("stop", "-t", "0", "web")
    assert tool("wait", "web").stdout == "137\n"
    assert tool("ps", "-q").stdout == ""
    tool("stop", "web")
    tool("start", "web")
    tool("restart", "-t", "0", "web")
    tool("kill", "web")
    assert tool("wait", "web").stdout == "137\n"
    tool("rm", "web")
    assert names(tool.root / "containers") == []


def test_a_paused_container_dies_when_killed(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    tool("pause", "web")
    tool("kill", "web")

    assert tool("wait", "web").stdout == "137\n"
    tool("start", "web")
    tool("pause", "web")
    tool("rm", "-f", "web")


def test_nobody_attaches_to_a_paused_container_which_would_hear_no_signal(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    tool("pause", "web")

    assert "resume web" in tool("attach", "web", code=13).stderr


def test_exec(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "-e", "A=1", "sleep", "1000")
    script = "echo $A; echo err >&2; readlink /proc/self/ns/pid; exit 4"
    found = tool("exec", "web", "sh", "-c", script, code=4)

    pid = tool.state("web")["pid"]
    assert found.stdout == f"1\n{read_link(f'/proc/{pid}/ns/pid')}\n"
    assert found.stderr == "err\n"
    assert tool("exec", "-i", "web", "cat", data="hello").stdout == "hello"
    assert tool("exec", "-u", "web", "web", "id", "-u").stdout == "33\n"
    tool("exec", "web", "no-such-command", code=127)
    tool("exec", "-d", "web", "sleep", "2000")
    assert "sleep 2000" in tool("top", "web").stdout
    text = "x" * 300_000
    assert text == tool("exec", "-i", "web", "cat", data=text).stdout


def test_a_root_with_a_very_long_path(tool: Tool, tmp_path: Path) -> None:
    tool.root = tmp_path / ("d" * 120) / "root"

    assert tool.run("--rm", "echo", "hello").stdout == "hello\n"
    tool.run("-d", "--name", "web", "sleep", "1000")
    tool("stop", "-t", "0", "web")


def test_two_containers_at_once(tool: Tool) -> None:
    for name in ("one", "two"):
        tool.run("-d", "--name", name, "sh", "-c", f"echo {name}; exec sleep 1000")
    tool("rm", "-f", "one")

    assert tool.state("two")["status"] == "running"
    assert [row["name"] for row in json.loads(tool("ps", "--json").stdout)] == ["two"]


def test_a_bridge_and_addresses(tool: Tool) -> None:
    bridge = ("--net", "bridge", "--bridge", "pmtest0")
    show = ("ip", "-o", "-4", "addr", "show", "eth0")
    tool.run(*bridge, "-d", "--name", "one", "--ip", "10.88.7.9", "sleep", "1000")

    assert "10.88.7.9/16" in tool("exec", "one", *show).stdout
    assert "10.88.0.2/16" in tool.run(*bridge, "--rm", *show).stdout
    tool.run(*bridge, "--ip", "10.88.7.9", "true", code=2)


def test_a_migration_keeps_everybody_else_off(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    fence = tool.root / "containers/web/migration"
    fence.write_text('{"migration": "m-1"}')
    for verb in ("start", "stop", "restart", "kill", "pause", "resume", "rm"):
        assert "moved by migration m-1" in tool(verb, "web", code=13).stderr
    tool("exec", "web", "true", code=13)
    tool("rm", "-f", "web", code=13)
    assert "moving" in tool("ps").stdout
    fence.unlink()


def test_a_long_list_can_be_cut_off(tool: Tool) -> None:
    tool.run("--name", "web", "seq", "100000")
    argv = tool.argv("logs", "web")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.read(10)
        child.stdout.close()

        assert child.wait(timeout=30) == 141
        assert child.stderr.read() == b""
