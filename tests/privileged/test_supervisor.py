"""Supervisors: who may come, go and die, and what stays."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pymigrate.runtime import errors, launch, lock, state
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from pymigrate.runtime.spec import default_spec
from pymigrate.runtime.state import Identity, NetworkSettings, Record, Status
from tests.privileged.tool import DEADLINE, Terminal, Tool, names, read_link, read_until, until

pytestmark = pytest.mark.privileged


@pytest.fixture
def container(tool: Tool) -> Container:
    """Return a container that was made and not started."""
    record = Record(
        id=os.urandom(32).hex(),
        name="web",
        image=None,
        image_digest=None,
        layers=(),
        created=state.now(),
        network=NetworkSettings(mode="none"),
        rootfs=os.fspath(tool.rootfs),
    )
    return Container.create(Host.open(tool.root), record, default_spec(["sleep", "1000"]))


def supervisor_of(container: Container) -> Identity:
    found = container.state().supervisor
    assert found is not None
    return found


# The states of a supervisor


def test_prepared_is_undone_when_its_keeper_goes(container: Container) -> None:
    keeper = container.prepare()
    supervisor = supervisor_of(container)
    assert container.state().status is Status.PREPARED
    assert container.cgroup.exists()
    cgroup = container.cgroup
    keeper.close()

    assert lock.await_end(supervisor, DEADLINE)
    assert container.state().status is Status.CREATED
    assert not cgroup.exists()


def test_prepared_is_undone_by_release(container: Container) -> None:
    with container.prepare() as keeper:
        supervisor = supervisor_of(container)
        with pytest.raises(errors.WrongState):
            container.prepare()
        keeper.release()

        assert lock.await_end(supervisor, DEADLINE)
    assert container.state() == state.CREATED


def test_a_limit_that_cannot_be_set_leaves_nothing(tool: Tool, container: Container) -> None:
    container.remove()
    resources = replace(container.spec.resources, cpuset_cpus="4000")
    made = Container.create(
        container.host, container.record, replace(container.spec, resources=resources)
    )

    with pytest.raises(errors.HostError):
        made.prepare()
    assert made.state() == state.CREATED
    assert not made.cgroup.exists()


def test_the_overlay_is_seen_by_the_supervisor_alone(container: Container) -> None:
    with container.prepare() as keeper:
        keeper.mount()
        keeper.mount()
        supervisor = supervisor_of(container)

        assert names(container.rootfs) == []
        assert "bin" in names(f"/proc/{supervisor.pid}/root{container.rootfs}")


def test_a_helper_runs_in_the_mounts_with_its_descriptors(container: Container) -> None:
    read, write = os.pipe()
    script = f"ls {container.rootfs} >&3; echo $(readlink /proc/self/ns/cgroup) >&3; exit 7"
    with container.prepare() as keeper:
        keeper.mount()
        pid = keeper.spawn(["/bin/sh", "-c", script], [write], in_cgroup=True)
        os.close(write)
        with os.fdopen(read, "rb") as stream:
            found = stream.read().decode().split()

        assert keeper.wait_spawned(pid) == 7
        with pytest.raises(errors.HostError, match="no-such-program"):
            keeper.spawn(["/no-such-program"], in_cgroup=False)
        with pytest.raises(errors.NotFound):
            keeper.wait_spawned(1)
    assert found[:2] == ["bin", "etc"]
    assert found[-1] != read_link("/proc/self/ns/cgroup")


def test_a_child_can_be_adopted_and_nobody_else(container: Container) -> None:
    script = f"echo $$ > {container.directory}/pid; exec sleep 1000"
    keeper = container.prepare()
    with pytest.raises(errors.WrongState, match="not a child"):
        keeper.adopt(os.getpid())
    pid = keeper.spawn(["/bin/sh", "-c", script], in_cgroup=True)
    with pytest.raises(errors.WrongState):
        keeper.adopt(pid)  # it is our helper, not what a helper has restored
    supervisor = supervisor_of(container)
    keeper.close()

    assert lock.await_end(supervisor, DEADLINE)  # and took the helper along
    assert container.state().status is Status.CREATED


def test_pipes_of_a_restore_reach_the_log(container: Container) -> None:
    with container.prepare() as keeper:
        ends = keeper.stdio()
        assert sorted(ends) == ["stderr", "stdout"]
        os.write(ends["stdout"], b"hello\n")
        for fd in ends.values():
            os.close(fd)
        until(lambda: b"stdout F hello" in container.log.read_bytes())


def test_the_exit_code_arrives_however_short_the_command(tool: Tool) -> None:
    for _ in range(5):
        tool.run("--rm", "sh", "-c", "exit 3", code=3)


def test_the_criu_cache_is_kept_between_supervisors(container: Container) -> None:
    def run(script: str) -> None:
        with container.prepare() as keeper:
            pid = keeper.spawn(["/bin/sh", "-c", script], in_cgroup=False)
            assert keeper.wait_spawned(pid) == 0
            supervisor = supervisor_of(container)
        assert lock.await_end(supervisor, DEADLINE)

    if not Path("/run/criu.kdat").exists() and not os.path.ismount("/run"):
        run("echo probed > /run/criu.kdat")
        assert not Path("/run/criu.kdat").exists()
        run("grep probed /run/criu.kdat")


# Deaths


def test_a_container_outlives_its_supervisor(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    supervisor = tool.supervisor("web")
    assert lock.send_signal(supervisor, signal.SIGKILL)
    assert lock.await_end(supervisor, DEADLINE)

    now = tool.state("web")
    assert (now["status"], now["supervisor_pid"]) == ("running", None)
    assert "unsupervised" in tool("ps").stdout
    assert tool("exec", "web", "echo", "ok").stdout == "ok\n"
    tool("attach", "web", code=13)
    tool("pause", "web")
    tool("resume", "web")
    tool("stop", "-t", "0", "web")
    assert tool.state("web")["status"] == "stopped"
    tool("wait", "web", code=10)
    tool("start", "web")
    supervisor = tool.supervisor("web")
    assert lock.send_signal(supervisor, signal.SIGKILL)
    assert lock.await_end(supervisor, DEADLINE)
    tool("pause", "web")
    tool("rm", "-f", "web")


def test_a_supervisor_shows_and_holds_nothing_of_the_command_that_forked_it(tool: Tool) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe:
        subprocess.run(
            tool.argv("run", "-d", "--name", "c", "--net", "none", "-e", "WORD=secret-1",
                      "--rootfs", str(tool.rootfs), "sleep", "1000"),
            env={**os.environ, "WORD": "secret-2"},
            pass_fds=[write],
            stdout=subprocess.DEVNULL,
            check=True,
        )  # fmt: skip
        os.close(write)

        assert pipe.read() == b""  # the end of the file: nobody has it open for writing
    process = Path(f"/proc/{tool.supervisor('c').pid}")
    assert process.joinpath("comm").read_text() == f"{launch.PROCESS_NAME}\n"
    assert process.joinpath("cmdline").read_bytes().startswith(b"pymigrate: supervisor of /")
    assert b"secret" not in process.joinpath("cmdline").read_bytes()
    assert b"secret" not in process.joinpath("environ").read_bytes()
    assert read_link(f"{process}/cwd") == "/"


def test_a_supervisor_that_dies_prepared_leaves_what_rm_removes(container: Container) -> None:
    container.prepare()
    supervisor = supervisor_of(container)
    lock.send_signal(supervisor, signal.SIGKILL)
    assert lock.await_end(supervisor, DEADLINE)

    assert container.state().status is Status.CREATED
    cgroup = container.cgroup
    container.remove()
    assert not cgroup.exists()


def test_the_container_survives_the_command_that_started_it(tool: Tool) -> None:
    script = "echo ready; read x; echo got $x; sleep 1000"
    with tool.popen("-i", "--name", "web", "sh", "-c", script) as child:
        assert child.stdout is not None
        read_until(child.stdout.fileno(), b"ready")
        child.kill()
    assert tool.state("web")["status"] == "running"
    pipe = subprocess.PIPE
    with subprocess.Popen(tool.argv("attach", "web"), stdin=pipe, stdout=pipe) as again:
        assert again.stdin is not None
        assert again.stdout is not None
        again.stdin.write(b"word\n")
        again.stdin.flush()
        read_until(again.stdout.fileno(), b"got word")
        again.kill()


# Streams and signals


def test_a_signal_reaches_the_command(tool: Tool) -> None:
    script = "trap 'echo hup; exit 3' HUP; echo ready; while :; do sleep 0.05; done"
    tool.run("-d", "--name", "web", "sh", "-c", script)
    until(lambda: "ready" in tool("logs", "web").stdout)
    tool("kill", "-s", "HUP", "web")

    assert tool("wait", "web").stdout == "3\n"
    assert tool("logs", "web").stdout == "ready\nhup\n"
    assert tool("logs", "--tail", "1", "web").stdout == "hup\n"


def test_logs_can_be_followed_to_the_end(tool: Tool) -> None:
    tool.run("-d", "-i", "--name", "web", "sh", "-c", "echo one; read x; echo two")
    with subprocess.Popen(tool.argv("logs", "-f", "web"), stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        read_until(follower.stdout.fileno(), b"one\n")
        attach = tool.argv("attach", "web")
        subprocess.run(attach, input=b"\n", capture_output=True, timeout=30, check=True)

        assert follower.stdout.read() == b"two\n"


def test_exec_ends_by_the_signal_that_we_got(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    argv = tool.argv("exec", "web", "sh", "-c", "echo ready; exec sleep 1000")
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        read_until(child.stdout.fileno(), b"ready")
        child.send_signal(signal.SIGTERM)

        assert child.wait(timeout=30) == 128 + signal.SIGTERM


def test_run_passes_signals_on(tool: Tool) -> None:
    script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with tool.popen("--rm", "sh", "-c", script) as child:
        assert child.stdout is not None
        read_until(child.stdout.fileno(), b"ready")
        child.send_signal(signal.SIGTERM)

        assert child.wait(timeout=30) == 9


def test_a_client_that_does_not_read_holds_up_nothing(tool: Tool) -> None:
    script = "seq 200000; echo the end >&2"
    with tool.popen("--name", "web", "sh", "-c", script) as child:
        assert child.stderr is not None
        until((tool.root / "containers/web/log").exists)
        until(lambda: b"stderr F the end" in (tool.root / "containers/web/log").read_bytes())
        assert child.stdout is not None
        assert child.stdout.read().endswith(b"199999\n200000\n")


# Terminals


def test_a_shell_in_a_terminal(tool: Tool) -> None:
    run = ("run", "--rm", "-it", "--net", "none", "--rootfs", str(tool.rootfs), "sh")
    terminal = Terminal(tool.argv(*run))
    terminal.size(33, 111)
    terminal.expect(b"# ")
    terminal.type(b"tty; echo $TERM\n")
    terminal.expect(b"/dev/pts/0\r\nxterm\r\n")
    terminal.size(20, 50)
    # The signal may arrive while the shell forks: ask until the new size is there.
    terminal.type(b"until [ \"$(stty size)\" = '20 50' ]; do :; done; echo si''zed\n")
    terminal.expect(b"sized")
    # Said by the process that is to hear it, or the signal could come before there is one.
    terminal.type(b"sh -c \"echo go''ing; exec sleep 1000\"\n")
    terminal.expect(b"going\r\n")
    terminal.type(b"\x03")
    terminal.expect(b"# ")
    terminal.type(b"exit 5\n")

    assert terminal.end() == 5


def test_detach_and_attach_again(tool: Tool) -> None:
    run = ("run", "-it", "--name", "web", "--net", "none", "--rootfs", str(tool.rootfs), "sh")
    terminal = Terminal(tool.argv(*run))
    terminal.expect(b"# ")
    terminal.type(b"A=before\n\x10\x11")
    assert terminal.end() == 0
    assert tool.state("web")["status"] == "running"
    other = Terminal(tool.argv("attach", "--detach-keys", "ctrl-x,d", "web"))
    other.type(b"\x10\x11\necho he''re\n")  # the first two are the shell's now
    other.expect(b"here")
    other.type(b"\x18d")
    assert other.end() == 0
    again = Terminal(tool.argv("attach", "web"))
    again.type(b"echo $A af''ter; exit 6\n")
    again.expect(b"before after")

    assert again.end() == 6


def test_exec_with_a_terminal(tool: Tool) -> None:
    tool.run("-d", "--name", "web", "sleep", "1000")
    terminal = Terminal(tool.argv("exec", "-it", "web", "sh"))
    terminal.expect(b"# ")
    terminal.type(b"tty\n")
    terminal.expect(b"/dev/pts/")
    terminal.type(b"exit\n")

    assert terminal.end() == 0


def test_the_last_words_in_a_terminal_are_not_lost(tool: Tool) -> None:
    for _ in range(5):
        assert tool.run("--rm", "-t", "echo", "bye").stdout == "bye\n"


def test_paused_container_is_removed_at_once(tool: Tool) -> None:
    """Its cgroup goes with the kernel's word that it is empty, for which `rm` had waited 10 s."""
    for _ in range(3):
        tool.run("-d", "--name", "web", "sleep", "1000")
        tool("pause", "web")
        began = time.monotonic()
        tool("rm", "-f", "web")
        assert time.monotonic() - began < 5
