"""The verbs of ``oci`` that make processes: create, start, run, exec, checkpoint, restore."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pymigrate.migrate import output
from pymigrate.migrate.oci_verbs import FLAG, NAME, Option, Verb, opened, refuse
from pymigrate.runtime import errors, spec
from pymigrate.runtime.oci_container import Creation, OciContainer, create
from pymigrate.runtime.settings import Process, User
from pymigrate.runtime.stdio import Stdio

_OURS = Stdio(0, 1, 2)


def _create(given: argparse.Namespace) -> int:
    refuse(given, "no_pivot", "pidfd_socket")
    made, master = _made(given, Creation(_OURS, given.preserve_fds))
    try:
        if master is not None:
            _hand_over(given.console_socket, master)
        _write_pid(given.pid_file, made)
    except BaseException:
        made.delete(force=True)
        raise
    return 0


def _made(given: argparse.Namespace, creation: Creation) -> tuple[OciContainer, int | None]:
    from pymigrate.runtime import oci_birth, terminal

    oci_birth.check_preserved(creation.preserved)
    made, master = create(given.root, given.id, given.bundle, creation)
    size = made.spec.process.console_size
    if master is not None and size is not None:
        terminal.set_window_size(master, *size)
    return made, master


def _run(given: argparse.Namespace) -> int:
    """Create, start and, unless detached, wait and delete."""
    refuse(given, "no_pivot", "pidfd_socket")
    return _live(given, Creation(_OURS, given.preserve_fds))


def _live(given: argparse.Namespace, creation: Creation) -> int:
    from pymigrate.migrate import exec_session, session

    made, master = _made(given, creation)
    exit_code = 0
    try:
        if master is not None and given.console_socket:
            _hand_over(given.console_socket, master)
            master = None
        elif master is not None and given.detach:
            raise errors.UsageError("a terminal without anybody at it: give --console-socket")
        _write_pid(given.pid_file, made)
        if not given.detach:
            # What comes before the session listens is for the container too, not for us.
            signal.pthread_sigmask(signal.SIG_BLOCK, session.PROXIED)
        if creation.restore is None:
            made.start()
        if not given.detach:
            assert made.init is not None  # noqa: S101 - create has set it
            attached = (
                exec_session.for_terminal(made.init.pid, master, with_stdin=True)
                if master is not None
                else exec_session.ExecSession(made.init.pid, None, {})
            )
            exit_code = attached.run()
    except BaseException:
        made.delete(force=True)
        raise
    if not given.detach and not given.keep:
        with contextlib.suppress(errors.NotFound):  # somebody else has seen to it
            made.delete(force=True)  # in a shared PID namespace others may go on
    return exit_code


def _start(given: argparse.Namespace) -> int:
    opened(given).start()
    return 0


def _exec(given: argparse.Namespace) -> int:
    """Run one more process; detached it belongs to whoever reaps our children."""
    from pymigrate.migrate import exec_session
    from pymigrate.runtime import enter, oci_birth

    container = opened(given)
    status = container.status()
    if status != "running" or container.init is None:
        raise errors.WrongState(f"cannot exec in container {container.id}: it is {status}")
    settings = container.spec
    process = _process(given, settings.process)
    oci_birth.check_preserved(given.preserve_fds)
    entered = enter.enter(
        container.init.pid,
        settings,
        process,
        cgroup=container.cgroup,
        stdio=_OURS,
        preserved=given.preserve_fds,
    )
    master = entered.terminal_master_fd
    if given.pid_file:
        _write_text(given.pid_file, str(entered.pid))
    if master is not None and given.console_socket:
        _hand_over(given.console_socket, master)
        master = None
    if given.detach:
        return 0
    if master is not None:
        return exec_session.for_terminal(entered.pid, master, with_stdin=True).run()
    return exec_session.ExecSession(entered.pid, None, {}).run()


def _process(given: argparse.Namespace, own: Process) -> Process:
    if given.process:
        try:
            document = json.loads(Path(given.process).read_bytes())
        except (OSError, ValueError) as error:
            raise errors.UsageError(f"--process {given.process}: {error}") from error
        read = spec.process_from_document(document)
        return replace(read, terminal=read.terminal or given.tty)
    if not given.command:
        raise errors.UsageError("no command was given")
    user = own.user
    if given.user:
        uid, _, gid = given.user.partition(":")
        if not uid.isdigit() or not (gid or "0").isdigit():
            raise errors.UsageError(f"--user {given.user}: not UID[:GID]")
        user = User(int(uid), int(gid or "0"))
    if given.additional_gids:
        user = replace(user, additional_gids=tuple(given.additional_gids))
    sets = own.capabilities
    if given.cap:
        more = frozenset(given.cap)
        sets = replace(
            sets,
            bounding=sets.bounding | more,
            permitted=sets.permitted | more,
            effective=sets.effective | more,
        )
    return replace(
        own,
        args=tuple(given.command),
        env=(*own.env, *given.env),
        cwd=given.cwd or own.cwd,
        user=user,
        capabilities=sets,
        terminal=given.tty,
        no_new_privileges=own.no_new_privileges or given.no_new_privs,
    )


def _checkpoint(given: argparse.Namespace) -> int:
    from pymigrate.checkpoint import oci

    refuse(given, "parent_path", "pre_dump", "lazy_pages", "page_server")
    oci.dump(opened(given), given.image_path, given.work_path, _choices(given))
    return 0


def _restore(given: argparse.Namespace) -> int:
    """Bring a container back from CRIU's images; then as `run`."""
    from pymigrate.checkpoint import oci

    refuse(given, "lazy_pages")
    streams = {"stdin": 0, "stdout": 1, "stderr": 2}
    restorer = oci.restorer(given.image_path, given.work_path, _choices(given), streams)
    return _live(given, Creation(_OURS, restore=restorer))


def _choices(given: argparse.Namespace) -> Any:
    from pymigrate.checkpoint import oci

    tcp = "established" if given.tcp_established else None
    if given.tcp_skip_in_flight:
        tcp = "skip"
    skip = output.skipped(given) if "skip" in given else ()
    return oci.Choices(tcp, getattr(given, "leave_running", False), given.shell_job, skip)


def _write_pid(path: str | None, made: OciContainer) -> None:
    if path and made.init is not None:
        _write_text(path, str(made.init.pid))


def _write_text(path: str, text: str) -> None:
    """Write a file that appears complete: whoever waits for it reads it at once."""
    beside = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def _hand_over(path: str | None, master: int) -> None:
    """Send a terminal to who will sit at it, and let go of it."""
    try:
        if not path:
            raise errors.UsageError("the container has a terminal: give --console-socket")
        with _connected(path) as console:
            socket.send_fds(console, [b"/dev/ptmx"], [master])
    finally:
        os.close(master)


@contextlib.contextmanager
def _connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as console:
        try:
            console.connect(path)
        except OSError as error:
            raise errors.UsageError(f"--console-socket {path}: {error.strerror}") from error
        yield console


_MAKING: Sequence[Option] = (
    (("-b", "--bundle"), {"type": Path, "default": Path(), "metavar": "DIR"}),
    (("--console-socket",), {"metavar": "PATH", "help": "where the terminal is sent to"}),
    (("--pid-file",), {"metavar": "FILE"}),
    (("--preserve-fds",), {"type": int, "default": 0, "metavar": "N"}),
    (("--no-pivot",), {**FLAG, "help": "refused"}),
    (("--no-new-keyring",), {**FLAG, "help": "we never make one"}),
    (("--pidfd-socket",), {"help": "refused"}),
)
_CHECKPOINTS: Sequence[Option] = (
    (("--image-path",), {"type": Path, "default": Path("checkpoint"), "metavar": "DIR"}),
    (("--work-path",), {"type": Path, "metavar": "DIR", "help": "where CRIU's log goes"}),
    (("--tcp-established",), FLAG),
    (("--tcp-skip-in-flight",), FLAG),
    (("--shell-job",), FLAG),
    (("--file-locks",), {**FLAG, "help": "always"}),
    (("--ext-unix-sk",), {**FLAG, "help": "never: such a socket would be cut"}),
    (("--lazy-pages",), {**FLAG, "help": "refused"}),
    (("--manage-cgroups-mode",), {"help": "we always make them anew"}),
)
VERBS: Sequence[Verb] = (
    ("create", "make a container that waits for start", _create, (*_MAKING, NAME)),
    ("start", "let a created container run its command", _start, (NAME,)),
    ("run", "create, start, wait and delete", _run, (
        *_MAKING,
        (("-d", "--detach"), FLAG),
        (("--keep",), {**FLAG, "help": "do not delete it at its end"}),
        (("--no-subreaper",), {**FLAG, "help": "we never are one"}),
        NAME,
    )),
    ("exec", "run one more process in a container", _exec, (
        (("--console-socket",), {"metavar": "PATH"}),
        (("--cwd",), {"metavar": "DIR"}),
        (("-e", "--env"), {"action": "append", "default": [], "metavar": "K=V"}),
        (("-t", "--tty"), FLAG),
        (("-u", "--user"), {"metavar": "UID[:GID]"}),
        (("-g", "--additional-gids"), {"type": int, "action": "append", "default": []}),
        (("-p", "--process"), {"metavar": "FILE", "help": "process.json"}),
        (("-d", "--detach"), FLAG),
        (("--pid-file",), {"metavar": "FILE"}),
        (("--no-new-privs",), FLAG),
        (("-c", "--cap"), {"action": "append", "default": [], "metavar": "CAP"}),
        (("--preserve-fds",), {"type": int, "default": 0, "metavar": "N"}),
        NAME,
        (("command",), {"nargs": argparse.REMAINDER, "metavar": "CMD"}),
    )),
    ("checkpoint", "write a container down by CRIU, and end it", _checkpoint, (
        *_CHECKPOINTS,
        (("--leave-running",), FLAG),
        (("--skip",), {"default": "", "metavar": "CHECK[,CHECK]",
            "help": "go on in spite of these findings; also by the annotation pymigrate.skip"}),
        (("--parent-path",), {"help": "refused"}),
        (("--pre-dump",), {**FLAG, "help": "refused"}),
        (("--page-server",), {"help": "refused"}),
        NAME,
    )),
    ("restore", "bring a container back from CRIU's images", _restore, (
        *_MAKING[:3],
        *_CHECKPOINTS,
        (("-d", "--detach"), FLAG),
        (("--keep",), {**FLAG, "help": "do not delete it at its end"}),
        (("--no-subreaper",), {**FLAG, "help": "we never are one"}),
        (("--no-pivot",), {**FLAG, "help": "means nothing here"}),
        NAME,
    )),
)  # fmt: skip
