"""A further process in a container that runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pymigrate.runtime import enter
from pymigrate.runtime.errors import (
    CannotRun,
    CommandNotFound,
    WrongState,
)
from pymigrate.runtime.settings import (
    KINDS,
    Namespace,
    Spec,
)
from pymigrate.runtime.spec import default_process, default_spec
from pymigrate.runtime.stdio import TERMINAL, Stdio
from tests.fakes.kernel import open_descriptors
from tests.privileged.isolation.box import (
    LIST_NAMESPACES,
    MAPPINGS,
    Box,
    link,
    listed,
    read_until_end,
)

pytestmark = [pytest.mark.privileged, pytest.mark.requires("root")]


def test_enter_is_in_the_same_namespaces_with_the_same_limits(
    box: Box, sleeper: tuple[int, Spec]
) -> None:
    pid, spec = sleeper
    script = LIST_NAMESPACES
    inside = listed(box.exec(pid, spec, default_process(["sh", "-c", script])))
    theirs = {name: link(f"/proc/{pid}/ns/{name}") for name in inside}
    assert theirs == inside

    script = (
        "hostname; cat /proc/1/comm; ls /proc/self/fd | wc -l;"
        " grep -E 'CapEff|Seccomp:|NoNew' /proc/self/status"
    )
    text = box.exec(pid, spec, default_process(["sh", "-c", script]))
    assert [
        "web", "sleep", "4", "CapEff:\t00000000800405fb", "NoNewPrivs:\t1", "Seccomp:\t2",
    ] == [line.strip() for line in text.splitlines()]  # fmt: skip


def test_enter_follows_into_a_user_namespace(box: Box) -> None:
    spec = default_spec(
        ["sleep", "1000"],
        namespaces=tuple(Namespace(kind) for kind in KINDS),
        uid_mappings=MAPPINGS,
        gid_mappings=MAPPINGS,
    )
    started = box.start(spec, Stdio(None, None, None))
    try:
        text = box.exec(started.pid, spec, default_process(["sh", "-c", "id -u; echo x >/made"]))
        assert "0" == text
        assert Path(f"/proc/{started.pid}/root/made").stat().st_uid == 100000
    finally:
        os.kill(started.pid, signal.SIGKILL)
        os.waitpid(started.pid, 0)


def test_enter_says_what_cannot_run(box: Box, sleeper: tuple[int, Spec]) -> None:
    pid, spec = sleeper
    before = open_descriptors()
    for args, kind in ((["nope"], CommandNotFound), (["/proc/self/exe"], CannotRun)):
        with pytest.raises(kind):
            enter.enter(
                pid, spec, default_process(args), cgroup=None, stdio=Stdio(None, None, None)
            )
    assert before == open_descriptors()


def test_enter_refuses_a_container_that_has_ended(box: Box) -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    with pytest.raises(WrongState, match="has ended"):
        enter.enter(
            child,
            default_spec(["x"]),
            default_process(["true"]),
            cgroup=None,
            stdio=Stdio(None, None, None),
        )


def test_enter_gets_a_terminal_of_the_container(box: Box, sleeper: tuple[int, Spec]) -> None:
    pid, spec = sleeper
    process = default_process(["sh", "-c", "tty; hostname; exit 9"], terminal=True)
    entered = enter.enter(pid, spec, process, cgroup=None, stdio=TERMINAL, cache=box.cache)
    assert entered.terminal_master_fd is not None
    try:
        assert ["/dev/pts/0", "web"] == read_until_end(entered.terminal_master_fd).split()
    finally:
        os.close(entered.terminal_master_fd)
        _, status = os.waitpid(entered.pid, 0)
    assert 9 == os.waitstatus_to_exitcode(status)
