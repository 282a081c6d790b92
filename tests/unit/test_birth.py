"""Two forks: whatever happens in the children is an error here, and no child is left."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from pymigrate.runtime import become, birth, syscalls, terminal
from pymigrate.runtime.birth import Line
from pymigrate.runtime.errors import (
    CannotRun,
    CommandNotFound,
    HostError,
    NoSpace,
    PymigrateError,
)
from tests.fakes.kernel import RecordingKernel, open_descriptors
from tests.fakes.offspring import offspring


def nothing(line: Line) -> None: ...


def run_true(line: Line) -> NoReturn:
    os.execv("/bin/sh", ["sh", "-c", "exit 7"])


def assert_no_child() -> None:
    assert offspring() == []


def test_the_newborn_is_the_callers_own_child() -> None:
    before = open_descriptors()
    born = birth.give_birth(nothing, run_true)

    assert 7 == os.waitstatus_to_exitcode(os.waitpid(born.pid, 0)[1])
    assert_no_child()
    assert before == open_descriptors()


def test_a_gift_arrives_as_a_descriptor() -> None:
    def inner(line: Line) -> NoReturn:
        fd = os.memfd_create("gift")
        os.write(fd, b"hello")
        line.give("gift", fd)
        run_true(line)

    born = birth.give_birth(nothing, inner)
    os.waitpid(born.pid, 0)
    try:
        assert b"hello" == os.pread(born.given["gift"], 10, 0)
    finally:
        os.close(born.given["gift"])


def raises(error: Exception) -> Callable[[Line], NoReturn]:
    def run(line: Line) -> NoReturn:
        line.stage = "do it"
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (CommandNotFound("sh: no such command"), CommandNotFound, "sh: no such command"),
        (OSError(errno.EPERM, "mount: denied", "/x"), HostError, "cannot do it: mount: denied: /x"),
        (OSError(errno.ENOSPC, "write: full"), NoSpace, "cannot do it: write: full"),
        (RuntimeError("a defect"), HostError, "cannot do it: RuntimeError: a defect ("),
    ],
)
def test_an_error_of_either_child_is_raised_here_and_leaves_nothing(
    error: Exception, kind: type[PymigrateError], message: str
) -> None:
    before = open_descriptors()
    for outer, inner in ((raises(error), run_true), (nothing, raises(error))):
        with pytest.raises(kind) as raised:
            birth.give_birth(outer, inner)
        assert raised.value.message.startswith(message)
        assert_no_child()
    assert before == open_descriptors()


def test_children_import_nothing_for_it_would_be_the_containers() -> None:
    def inner(line: Line) -> NoReturn:
        import this  # noqa: F401

        run_true(line)

    with pytest.raises(HostError, match=r"ModuleNotFoundError|ImportWarning"):
        birth.give_birth(nothing, inner)


def test_a_child_that_is_killed_says_nothing_and_leaves_nothing() -> None:
    def die(line: Line) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(HostError, match="ended before it said why"):
        birth.give_birth(die, run_true)
    assert_no_child()


def test_a_child_that_hangs_is_killed_in_time() -> None:
    def hang(line: Line) -> None:
        signal.pause()

    with pytest.raises(HostError, match="did not get ready in time"):
        birth.give_birth(hang, run_true, timeout=0.05)
    assert_no_child()


def test_a_failing_fork_leaves_nothing() -> None:
    kernel = RecordingKernel(real=syscalls, fails_at=0)
    with pytest.raises(HostError, match="cannot fork: clone3: injected"):
        birth.give_birth(nothing, run_true, kernel=kernel)
    assert_no_child()


def test_the_newborn_starts_with_default_signals() -> None:
    def inner(line: Line) -> NoReturn:
        ignored = signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        os.execv("/bin/sh", ["sh", "-c", f"exit {int(ignored) + len(blocked)}"])

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        born = birth.give_birth(nothing, inner)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(born.pid, 0)[1])


def test_a_command_is_looked_up_as_execvp_does(tmp_path: os.PathLike[str]) -> None:
    assert "/bin/sh" == become.find_command("sh", "/nowhere:/bin")
    assert "/bin/sh" == become.find_command("/bin/sh", "")
    with pytest.raises(CommandNotFound, match="nope: no such command on the container's PATH"):
        become.find_command("nope", "/bin")
    with pytest.raises(CommandNotFound, match="/nope: no such command in the container"):
        become.find_command("/nope", "/bin")
    with pytest.raises(CannotRun, match="cannot run /etc/passwd: permission denied"):
        become.find_command("/etc/passwd", "/bin")
    with pytest.raises(CannotRun, match="cannot run /etc: is a directory") as raised:
        become.find_command("/etc", "/bin")
    assert 126 == raised.value.exit_code


def test_raw_mode_ends_with_the_settings_of_before() -> None:
    import termios

    master, slave = os.openpty()
    try:
        before = termios.tcgetattr(slave)
        with terminal.raw(slave):
            assert not termios.tcgetattr(slave)[3] & termios.ICANON
        assert before == termios.tcgetattr(slave)
        terminal.set_window_size(master, 40, 132)
        assert (40, 132) == terminal.window_size(slave)
    finally:
        os.close(master)
        os.close(slave)


class Cgroup:
    """A cgroup that says how it was joined."""

    def __init__(self, directory: int | None) -> None:
        self.directory = directory
        self.joined: list[bool] = []

    def open_unified(self) -> int | None:
        return None if self.directory is None else os.dup(self.directory)

    def join(self, *, unified: bool = True) -> None:
        self.joined.append(unified)


class KillingKernel(RecordingKernel):
    """Kills what is born into a cgroup, as Linux 6.18 does after a write to cgroup.kill."""

    def clone3(self, flags: int, exit_signal: int, cgroup: int | None = None) -> int:
        if cgroup is None:
            return syscalls.clone3(flags, exit_signal)
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return pid


def how_joined(cgroup: Cgroup, kernel: birth.Kernel) -> int:
    """Return the exit code: 1 if the child had to join the unified hierarchy too."""

    def inner(line: Line) -> NoReturn:
        line.join(cgroup)
        os.execv("/bin/sh", ["sh", "-c", f"exit {int(cgroup.joined[-1])}"])

    before = open_descriptors()
    born = birth.give_birth(nothing, inner, cgroup=cgroup, kernel=kernel)
    code = os.waitstatus_to_exitcode(os.waitpid(born.pid, 0)[1])
    assert_no_child()
    assert before == open_descriptors()
    return code


def test_without_a_cgroup_to_be_born_into_it_is_joined(tmp_path: Path) -> None:
    assert 1 == how_joined(Cgroup(None), syscalls)
    no_cgroup = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert 1 == how_joined(Cgroup(no_cgroup), syscalls)
        assert 1 == how_joined(Cgroup(no_cgroup), KillingKernel())
    finally:
        os.close(no_cgroup)


def test_a_command_that_is_killed_where_it_was_born_is_an_error_as_ever() -> None:
    def die(line: Line) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(HostError, match="ended before it said why"):
        birth.give_birth(die, run_true, cgroup=Cgroup(None))
    assert_no_child()
