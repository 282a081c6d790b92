"""The last steps before exec: limits, identity, privileges, working directory, the command."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable, Collection
from typing import NoReturn, Protocol

from pymigrate.runtime import capabilities, labels, syscalls
from pymigrate.runtime.birth import Line
from pymigrate.runtime.errors import CannotRun, CommandNotFound, MissingFeature, UsageError
from pymigrate.runtime.seccomp import Program
from pymigrate.runtime.settings import DEFAULT_PATH, Process, Rlimit, User
from pymigrate.runtime.stdio import Stdio
from pymigrate.runtime.values import dataclass


class Kernel(capabilities.Kernel, Protocol):
    """The calls that becoming takes; see runtime/syscalls.py."""

    def close_range(self, first: int, last: int, flags: int = 0) -> None:
        """See close_range(2)."""

    def seccomp(self, operation: int, flags: int, program: bytes) -> None:
        """See seccomp(2)."""


# include/linux/binfmts.h, and how often a script's interpreter may be a script (fs/exec.c): 5.
_SCRIPT_LINE = 256
_SCRIPTS_DEEP = 7


@dataclass(frozen=True)
class Confinement:
    """What is worked out before the fork, when errors are cheap and libraries can be loaded.

    ``interpreter`` is the (device, inode) of the program that runs us, None where the container's
    root is the host's: a command that turns out to be it (/proc/self/exe) would hand the container
    a way to overwrite the host's file (CVE-2019-5736).
    """

    process: Process
    filter: Program | None
    interpreter: tuple[int, int] | None
    labels: tuple[labels.Label, ...] = ()


def confinement(
    process: Process, program: Program | None, *, own_root: bool, held: frozenset[str] | None = None
) -> Confinement:
    """Check what can be checked; MissingFeature for a capability or label that is not to be had."""
    capabilities.require(
        process.capabilities, capabilities.host_bounding() if held is None else held
    )
    for limit in process.rlimits:
        _number_of(limit)
    own = os.stat("/proc/self/exe")  # noqa: PTH116 - a magic link
    interpreter = (own.st_dev, own.st_ino) if own_root else None
    return Confinement(process, program, interpreter, labels.chosen(process))


def hold_proc(given: Confinement, line: Line) -> None:
    """Keep the host's /proc at hand for labels; by the middle process, before it sees another."""
    if given.labels:
        line.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def become(
    given: Confinement,
    line: Line,
    kernel: Kernel = syscalls,
    *,
    keep: Collection[int] = (),
    before_exec: Callable[[], None] | None = None,
) -> NoReturn:
    """Turn the caller, with stdio in place, into the container's process; never returns.

    ``before_exec`` is called when nothing is left to be done but the system call filter and exec;
    it may use the descriptors ``keep``. Of these the command gets those that are inheritable.
    CommandNotFound, CannotRun or OSError say why it could not.
    """
    process = given.process
    line.stage = "set resource limits"
    for limit in process.rlimits:
        _set_limit(limit)
    if given.filter is not None and not process.no_new_privileges:
        # Without no_new_privs loading takes CAP_SYS_ADMIN, which is about to go.
        line.stage = "load the seccomp filter"
        kernel.seccomp(syscalls.SECCOMP_SET_MODE_FILTER, given.filter.flags, given.filter.code)
    line.stage = "drop privileges"
    capabilities.drop_bounding(process.capabilities.bounding, kernel)
    _change_user(process.user, kernel)
    capabilities.apply(process.capabilities, kernel)
    if process.no_new_privileges:
        kernel.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    os.umask(process.user.umask)
    for label in given.labels:
        line.stage = f"take {label.describe()}"
        if line.proc is None:
            raise AssertionError("hold_proc was not called")
        labels.take_at_exec(label, line.proc)
    # Before any path of the container is looked up: /proc/self/fd must not lead back to the host.
    line.stage = "close descriptors"
    close_all_but((line.connection.fileno(), *keep), kernel)
    line.stage = f"change to directory {process.cwd}"
    _change_directory(process.cwd)
    line.stage = f"run {process.args[0]}"
    variables = dict(item.split("=", 1) for item in process.env)
    command = find_command(process.args[0], variables.get("PATH", DEFAULT_PATH))
    _refuse_interpreter(command, given.interpreter)
    if before_exec is not None:
        before_exec()
    line.stage = f"run {process.args[0]}"
    if given.filter is not None and process.no_new_privileges:
        line.stage = "load the seccomp filter"
        kernel.seccomp(syscalls.SECCOMP_SET_MODE_FILTER, given.filter.flags, given.filter.code)
    try:
        os.execve(command, process.args, variables)  # noqa: S606 - that is what it is for
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ENOENT:
            reason = "its interpreter is not there"
        elif error.errno == errno.ENOEXEC:
            reason = "it is not a program of this machine"
        raise CannotRun(f"cannot run {command}: {reason}") from error


def let_user_reopen(stdio: Stdio, host_uid: int) -> None:
    """Give pipes to the container's user, who may open /dev/stdout anew (nginx does).

    By the caller before the fork: root of a user namespace may not chown what is the host's.
    """
    for fd in stdio.items().values():
        status = os.fstat(fd)
        if stat.S_ISFIFO(status.st_mode) and status.st_uid != host_uid:
            os.fchown(fd, host_uid, -1)


def connect_stdio(stdio: Stdio, *, slave: int | None = None) -> None:
    """Make these descriptors 0, 1 and 2, with a terminal its slave; None opens /dev/null.

    Must be called inside the container's mounts: CRIU cannot dump a descriptor of a host's file.
    """
    given = [slave] * 3 if slave is not None else [stdio.stdin, stdio.stdout, stdio.stderr]
    # Copies above 2 first: a descriptor to come may lie where another has to go.
    held = []
    for number, fd in enumerate(given):
        if fd is None or _is_null(fd):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY
            held.append(_above_stdio(os.open("/dev/null", flags | os.O_CLOEXEC)))
        else:
            held.append(_above_stdio(os.dup(fd)))
    for number, fd in enumerate(held):
        os.dup2(fd, number, inheritable=True)
        os.close(fd)


def _is_null(fd: int) -> bool:
    """Tell whether it is a host's /dev/null, for which the container's own does as well."""
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def _above_stdio(fd: int) -> int:
    if fd > 2:
        return fd
    higher = _above_stdio(os.dup(fd))
    os.close(fd)
    return higher


def close_all_but(keep: Collection[int], kernel: Kernel = syscalls) -> None:
    """Close all descriptors above 2 but these."""
    first = 3
    for fd in sorted({each for each in keep if each >= first}):
        if fd > first:
            kernel.close_range(first, fd - 1)
        first = fd + 1
    kernel.close_range(first, 0x7FFFFFFF)


def _number_of(limit: Rlimit) -> int:
    number = getattr(resource, limit.type, None)
    if not isinstance(number, int):
        raise UsageError(f"{limit.type}: no such resource limit")
    return number


def _set_limit(limit: Rlimit) -> None:
    endless = (1 << 64) - 1
    soft, hard = (-1 if each == endless else each for each in (limit.soft, limit.hard))
    try:
        resource.setrlimit(_number_of(limit), (soft, hard))
    except (ValueError, OSError) as error:  # Python's ValueError is the kernel's EPERM or EINVAL
        raise MissingFeature(
            f"this host cannot set {limit.type} to {limit.soft}:{limit.hard}",
            hint="raising a hard limit takes CAP_SYS_RESOURCE",
        ) from error


def _change_user(user: User, kernel: Kernel) -> None:
    # The permitted set would go with uid 0; capset comes after and needs it.
    kernel.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setgroups(user.additional_gids)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    kernel.prctl(syscalls.PR_SET_KEEPCAPS, 0)


def _change_directory(path: str) -> None:
    try:
        os.chdir(path)
        # A path through a descriptor of the host would end outside the root, where getcwd(3)
        # finds no way up (CVE-2024-21626).
        os.getcwd()  # noqa: PTH109 - its error is what counts
    except OSError as error:
        raise CannotRun(
            f"working directory {path}: {error.strerror or error}",
            hint="choose one that exists in the container",
        ) from error


def find_command(name: str, path: str) -> str:
    """Return the program's path as execvp(3) does; CommandNotFound or CannotRun otherwise."""
    candidates = [name] if "/" in name else [f"{each or '.'}/{name}" for each in path.split(":")]
    unusable = None
    for candidate in candidates:
        try:
            mode = os.stat(candidate).st_mode  # noqa: PTH116 - no pathlib between fork and exec
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            unusable = unusable or f"{candidate}: {error.strerror}"
            continue
        if stat.S_ISREG(mode) and os.access(candidate, os.X_OK):
            return candidate
        what = "is a directory" if stat.S_ISDIR(mode) else "permission denied"
        unusable = unusable or f"{candidate}: {what}"
    if unusable is not None:
        raise CannotRun(f"cannot run {unusable}")
    where = "in the container" if "/" in name else f"on the container's PATH ({path})"
    raise CommandNotFound(f"{name}: no such command {where}")


def _refuse_interpreter(command: str, interpreter: tuple[int, int] | None) -> None:
    """Refuse what would run the program that runs us, also by the first line of a script."""
    for _ in range(_SCRIPTS_DEEP):
        try:
            status = os.stat(command)  # noqa: PTH116 - no pathlib between fork and exec
            if (status.st_dev, status.st_ino) == interpreter:
                raise CannotRun(f"cannot run {command}: it is the host's own interpreter")
            if not stat.S_ISREG(status.st_mode):
                return
            with open(command, "rb") as file:  # noqa: PTH123 - likewise
                line = file.readline(_SCRIPT_LINE)
        except OSError:  # exec says it better, or it is nobody who could harm the host's file
            return
        words = line.removeprefix(b"#!").split(maxsplit=1)
        if not line.startswith(b"#!") or not words:
            return
        command = os.fsdecode(words[0])
