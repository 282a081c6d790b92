"""Two forks to a process in other namespaces, and the line over which they say how it goes.

::

    caller                      middle                       newborn
      │ clone3 into the cgroup ▶│
      │                         │ outer(): v1 cgroups, namespaces
      │                         │ clone3(CLONE_PARENT) ─────▶│ waits
      │◀── {"born": PID} ───────│ ends
      │─── {"go": true} ───────────────────────────────────▶│ inner(): mounts, privileges
      │◀── {"give": NAME} + descriptor ─────────────────────│ (a terminal)
      │◀── {"ask": NAME} ───────────────────────────────────│ waits
      │─── {"go": true, …} ────────────────────────────────▶│ (a caller that takes part: OCI hooks)
      │◀── {"error": …} ────────────── or ──────────────────│ ends
      │◀── end of file, for the line closes on exec ────────│ runs the command

Two, because a PID or time namespace holds for children only. CLONE_PARENT makes the newborn the
caller's own child, so that ``waitpid`` works and no process is a subreaper of what it did not
start. The newborn does nothing before the caller knows its pid: whoever dies, nobody is left.
The middle is born in the cgroup of v2, for moving there by a write waits for a grace period of the
kernel, 12 to 31 ms, half of a start.
The caller must be single-threaded, as every process that forks without exec.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import NoReturn, Protocol

from pymigrate.runtime import control, syscalls
from pymigrate.runtime.errors import HostError, NoSpace, PymigrateError
from pymigrate.runtime.values import dataclass, field

BIRTH_SECONDS = 30.0
_DEATH_SECONDS = 5.0
# What a child ends with that could not say why, as podman's "the container could not be made".
FAILED = 125


Answer = Callable[[str, int], Mapping[str, object]]


class Kernel(Protocol):
    """The call that the second fork takes; see runtime/syscalls.py."""

    def clone3(self, flags: int, exit_signal: int, cgroup: int | None = None) -> int:
        """See clone(2)."""


class Joinable(Protocol):
    """What is needed of a cgroup; see cgroups.Cgroup."""

    def open_unified(self) -> int | None:
        """Return a descriptor of its directory in cgroup v2, the caller's to close, if any."""

    def join(self, *, unified: bool = True) -> None:
        """Move the calling process into it; not ``unified``: it is there in v2 already."""


@dataclass()
class Line:
    """The children's end: what they are doing, gifts and errors."""

    connection: socket.socket
    born_in_cgroup: bool = False
    stage: str = "starting"
    proc: int | None = None  # the host's /proc, held where a label is to be taken; see become.py

    def join(self, cgroup: Joinable | None) -> None:
        """Move the calling process into a cgroup as far as it was not born there."""
        self.stage = "join the cgroup"
        if cgroup is not None:
            cgroup.join(unified=not self.born_in_cgroup)

    def wait(self) -> None:
        """Wait for the caller's word; without a caller there is no reason to go on."""
        if control.receive(self.connection) is None:
            os._exit(FAILED)

    def ask(self, name: str) -> dict[str, object]:
        """Let the caller do its part, and return what it says."""
        control.send(self.connection, {"ask": name})
        received = control.receive(self.connection)
        if received is None:
            os._exit(FAILED)
        return received[0]

    def give(self, name: str, fd: int) -> None:
        """Pass a descriptor to the caller."""
        control.send(self.connection, {"give": name}, [fd])


@dataclass()
class Born:
    """A child of the caller that runs its command; descriptors are the caller's to close."""

    pid: int
    given: dict[str, int] = field(default_factory=dict)


def give_birth(
    outer: Callable[[Line], None],
    inner: Callable[[Line], NoReturn],
    *,
    cgroup: Joinable | None = None,
    kernel: Kernel = syscalls,
    timeout: float = BIRTH_SECONDS,
    answer: Answer | None = None,
) -> Born:
    """Run ``outer`` in a child and ``inner`` in its child; returns when ``inner`` has called exec.

    ``cgroup`` is where ``outer`` is to bring them by ``line.join``; ``answer`` does the caller's
    part of ``line.ask``, given the name and the newborn's pid, and takes as long as it takes. On
    any failure both processes are gone, all descriptors closed, and the first error is raised as
    it was met.
    """
    try:
        return _give_birth(outer, inner, cgroup, kernel, timeout, answer)
    except _KilledAtBirthError:
        return _give_birth(outer, inner, None, kernel, timeout, answer)


class _KilledAtBirthError(HostError):
    """The middle was born into its cgroup and got SIGKILL before its first instruction.

    Kernels (6.18 is one) do that in a cgroup whose cgroup.kill was ever written: they compare its
    count of kills with that of the parent's own cgroup (kernel/cgroup/cgroup.c, kill_seq).
    """


def _give_birth(
    outer: Callable[[Line], None],
    inner: Callable[[Line], NoReturn],
    cgroup: Joinable | None,
    kernel: Kernel,
    timeout: float,
    answer: Answer | None,
) -> Born:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, ExitStack() as undo:
        with theirs:
            middle, in_cgroup = fork_into(cgroup, kernel)
            if middle == 0:
                ours.close()
                _run_middle(Line(theirs, in_cgroup), outer, inner, kernel)
        undo.callback(_end, middle)
        born = _listen(ours, undo, timeout, answer)
        if born is None:
            error = _KilledAtBirthError if in_cgroup and _was_killed(middle) else HostError
            raise error("the container's first process ended before it said why")
        undo.pop_all()
    os.waitpid(middle, 0)
    return born


def fork_into(cgroup: Joinable | None, kernel: Kernel = syscalls) -> tuple[int, bool]:
    """Fork, into the cgroup of v2 if that can be; returns the pid, and whether it was born there.

    As ``syscalls.clone3``, 0 in the child. What it was not born into it must join.
    """
    directory = None if cgroup is None else cgroup.open_unified()
    if directory is not None:
        try:
            pid = kernel.clone3(syscalls.CLONE_INTO_CGROUP, signal.SIGCHLD, directory)
        except OSError:
            pass  # before Linux 5.7, or it may not be joined: then joining says why
        else:
            return pid, True
        finally:
            os.close(directory)
    return os.fork(), False


def _was_killed(pid: int) -> bool:
    """Tell whether a child that ends died by SIGKILL; it is left to be reaped."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return ended is not None and ended.si_status == signal.SIGKILL


def _listen(
    ours: socket.socket, undo: ExitStack, timeout: float, answer: Answer | None
) -> Born | None:
    """Hear the children out; None if they ended without a word."""
    deadline = time.monotonic() + timeout
    born: Born | None = None
    given: dict[str, int] = {}
    while True:
        ours.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            received = control.receive(ours)
        except TimeoutError as error:
            raise HostError("the container's first process did not get ready in time") from error
        except ConnectionResetError:
            received = None
        if received is None:
            break
        message, fds = received
        if "error" in message:
            raise control.error_from_document(message["error"])
        if "born" in message:
            born = Born(int(str(message["born"])))
            undo.callback(_end, born.pid)
            # The newborn may have died of a signal: then the line ends and says so.
            with suppress(BrokenPipeError):
                control.send(ours, {"go": True})
        elif "ask" in message and born is not None and answer is not None:
            said = answer(str(message["ask"]), born.pid)
            control.send(ours, {"go": True, **said})
            deadline = time.monotonic() + timeout  # what the caller took is not the child's fault
        elif "give" in message:
            given[str(message["give"])] = fds[0]
            undo.callback(os.close, fds[0])
    if born is not None:
        born.given = given
    return born


def _end(pid: int) -> None:
    """Kill and reap a child of ours; it has died already in most cases."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        ready, _, _ = select.select([pidfd], [], [], _DEATH_SECONDS)
        if not ready:  # a frozen cgroup v1 keeps even killed processes
            raise HostError(f"process {pid} does not die", hint="is its cgroup frozen?")
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


def _run_middle(
    line: Line,
    outer: Callable[[Line], None],
    inner: Callable[[Line], NoReturn],
    kernel: Kernel,
) -> NoReturn:
    def run() -> None:
        reset_signals()
        # From here on an import would be looked up among the container's files and run with the
        # host's rights: it must fail instead.
        sys.meta_path.clear()
        outer(line)
        line.stage = "fork"
        pid = kernel.clone3(syscalls.CLONE_PARENT, 0)
        if pid == 0:
            _run_to_the_end(line, lambda: _run_newborn(line, inner))
        control.send(line.connection, {"born": pid})
        os._exit(0)

    _run_to_the_end(line, run)


def _run_newborn(line: Line, inner: Callable[[Line], NoReturn]) -> None:
    line.wait()
    inner(line)


def _run_to_the_end(line: Line, run: Callable[[], None]) -> NoReturn:
    """Run in a forked child: whatever happens, it never returns into the caller's stack."""
    try:
        run()
    except (OSError, PymigrateError) as error:
        _tell(line, translate(error, line.stage))
    except BaseException as error:  # a defect, of which the caller must hear
        _tell(line, HostError(f"cannot {line.stage}: {_defect(error)}"))
    finally:
        os._exit(FAILED)


def _defect(error: BaseException) -> str:
    """Say where, without the traceback module, which would read source files of the container."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})"
    return f"{type(error).__name__}: {error}{where}"


def _tell(line: Line, error: PymigrateError) -> None:
    with suppress(OSError):  # nobody listens any more
        control.send(line.connection, control.error_to_document(error))


def translate(error: OSError | PymigrateError, stage: str) -> PymigrateError:
    """Turn a system call's error into a sentence that says what was being done."""
    if isinstance(error, PymigrateError):
        return error
    words = [f"cannot {stage}: {error.strerror}"]
    words += [str(name) for name in (error.filename, error.filename2) if name]
    words += getattr(error, "__notes__", [])
    kind = NoSpace if error.errno in (28, 122) else HostError  # ENOSPC, EDQUOT
    return kind(": ".join(words))


def reset_signals() -> None:
    """Undo what the caller did with signals: a container's process starts with the defaults."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
