"""The verb ``oci``: runc's command line, for podman, containerd and whoever runs OCI runtimes.

Global options and verbs are those of runc 1.1 (github.com/opencontainers/runc, man/), as far as its
callers use them. What we do not have is refused by name.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from pymigrate.migrate import output
from pymigrate.runtime import errors, spec, state
from pymigrate.runtime.oci_container import DEFAULT_ROOT, Creation, OciContainer, create
from pymigrate.runtime.settings import OCI_VERSION, Process, User
from pymigrate.runtime.stdio import Stdio

_OURS = Stdio(0, 1, 2)
# What podman looks for in the words of an OCI runtime, to choose the exit codes 127 and 126.
_SAID: dict[type[errors.PymigrateError], str] = {
    errors.CommandNotFound: "executable file not found in $PATH",
    errors.CannotRun: "permission denied",
}


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``oci``; what follows it goes to ``run`` as it is, for it is runc's command line."""
    parser = verbs.add_parser(
        "oci",
        add_help=False,
        help="speak runc's command line, for podman --runtime and containerd",
        epilog="example: pymigrate oci run --bundle DIR NAME",
    )
    parser.set_defaults(run=run)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(message, hint=f"{self.prog} --help")


def run(arguments: argparse.Namespace) -> int:
    """Do as runc would; errors go to stderr and, in the form asked for, to the log."""
    parser = _build_parser()
    given = argparse.Namespace(log=None, log_format="text")
    try:
        parser.parse_args(arguments.words, namespace=given)
        if given.systemd_cgroup:
            raise errors.UsageError(
                "--systemd-cgroup: cgroups are made by us, not by systemd",
                hint="podman --cgroup-manager=cgroupfs; containerd: SystemdCgroup = false",
            )
        return int(given.act(given))
    except (errors.PymigrateError, OSError) as error:
        if arguments.debug:
            raise
        translated = error
        if isinstance(error, OSError):
            where = f" ({error.filename})" if error.filename else ""
            translated = errors.HostError(f"{error.strerror or error}{where}")
        assert isinstance(translated, errors.PymigrateError)  # noqa: S101 - of the two one
        wanted = _SAID.get(type(translated), "")
        if wanted.casefold() not in translated.message.casefold():
            translated.message += f": {wanted}"
        output.complain(translated)
        _log(given, translated.message)
        return translated.exit_code


def _log(given: argparse.Namespace, text: str) -> None:
    if not given.log:
        return
    line = f'time="{state.now()}" level=error msg={json.dumps(text)}'
    if given.log_format == "json":
        line = json.dumps({"level": "error", "msg": text, "time": state.now()})
    with Path(given.log).open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def _build_parser() -> _Parser:
    parser = _Parser(prog="pymigrate oci", description="Run OCI bundles as runc does.")
    add = parser.add_argument
    add("--root", type=Path, default=DEFAULT_ROOT, metavar="DIR", help="where states are kept")
    add("--log", metavar="FILE", help="append errors to this file")
    add("--log-format", choices=("text", "json"), default="text", help="how they are written")
    add("--debug", action="store_true", help="for runc's callers; changes nothing")
    add("--systemd-cgroup", action="store_true", help="refused: cgroups are made by us")
    add("--rootless", choices=("true", "false", "auto"), help="for runc's callers; only root can")
    add("--criu", metavar="PATH", help="for runc's callers; ours is found by `pymigrate check`")
    add("-v", "--version", action=_Version, nargs=0, help="print versions")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    for name, help_, act, options in _VERBS:
        verb = verbs.add_parser(name, help=help_)
        for flags, settings in options:
            verb.add_argument(*flags, **settings)
        verb.set_defaults(act=act)
    return parser


class _Version(argparse.Action):
    def __call__(self, *_: object) -> None:
        from importlib.metadata import version  # costs 10 ms that no other verb should pay

        output.say(f"pymigrate version {version('pymigrate')}\nspec: {OCI_VERSION}")
        raise SystemExit(0)


# Making and running


def _create(given: argparse.Namespace) -> int:
    _refuse(given, "no_pivot", "pidfd_socket")
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
    _refuse(given, "no_pivot", "pidfd_socket")
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
    _opened(given).start()
    return 0


def _exec(given: argparse.Namespace) -> int:
    """Run one more process; detached it belongs to whoever reaps our children."""
    from pymigrate.migrate import exec_session
    from pymigrate.runtime import enter, oci_birth

    container = _opened(given)
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

    _refuse(given, "parent_path", "pre_dump", "lazy_pages", "page_server")
    oci.dump(_opened(given), given.image_path, given.work_path, _choices(given))
    return 0


def _restore(given: argparse.Namespace) -> int:
    """Bring a container back from CRIU's images; then as `run`."""
    from pymigrate.checkpoint import oci

    _refuse(given, "lazy_pages")
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


# Looking


def _state(given: argparse.Namespace) -> int:
    container = _opened(given)
    rootfs = Path(container.bundle) / container.spec.root_path
    output.say(
        json.dumps(
            {**container.document(), "rootfs": os.fspath(rootfs), "created": container.created},
            indent=2,
        )
    )
    return 0


def _list(given: argparse.Namespace) -> int:
    found = OciContainer.all(given.root)
    if given.quiet:
        for each in found:
            output.say(each.id)
        return 0
    documents = [{**each.document(), "created": each.created} for each in found]
    if given.format == "json":
        output.say(json.dumps(documents or None))
        return 0
    output.table(
        ("ID", "PID", "STATUS", "BUNDLE", "CREATED"),
        [
            tuple(str(each[key]) for key in ("id", "pid", "status", "bundle", "created"))
            for each in documents
        ],
    )
    return 0


def _ps(given: argparse.Namespace) -> int:
    pids = _opened(given).cgroup.pids()
    if given.format == "json":
        output.say(json.dumps(pids))
        return 0
    output.table(("PID", "CMD"), [(str(pid), _command_line(pid)) for pid in pids])
    return 0


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):  # it ended while we looked
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip()
    return ""


def _features(given: argparse.Namespace) -> int:
    from pymigrate.runtime import oci_features

    del given
    output.say(json.dumps(oci_features.document(), indent=2))
    return 0


# Changing


def _kill(given: argparse.Namespace) -> int:
    from pymigrate.migrate.cli_lifecycle import signal_number

    number = signal_number(given.signal)
    _opened(given).kill(number, everything=given.all)
    return 0


def _delete(given: argparse.Namespace) -> int:
    try:
        _opened(given).delete(force=given.force)
    except errors.NotFound:
        if not given.force:
            raise
    return 0


def _pause(given: argparse.Namespace) -> int:
    _opened(given).pause()
    return 0


def _resume(given: argparse.Namespace) -> int:
    _opened(given).resume()
    return 0


def _update(given: argparse.Namespace) -> int:
    container = _opened(given)
    if given.resources:
        try:
            text = sys.stdin.read() if given.resources == "-" else Path(given.resources).read_text()
            document = json.loads(text)
        except (OSError, ValueError) as error:
            raise errors.UsageError(f"--resources {given.resources}: {error}") from error
    else:
        document = _resources(given)
    container.update(spec.resources_from_document(document))
    return 0


def _resources(given: argparse.Namespace) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for group, key, value in (
        ("memory", "limit", given.memory),
        ("memory", "swap", given.memory_swap),
        ("memory", "reservation", given.memory_reservation),
        ("cpu", "quota", given.cpu_quota),
        ("cpu", "period", given.cpu_period),
        ("cpu", "shares", given.cpu_share),
        ("cpu", "cpus", given.cpuset_cpus),
        ("pids", "limit", given.pids_limit),
    ):
        if value is not None:
            document.setdefault(group, {})[key] = value
    return document


# Helpers


def _opened(given: argparse.Namespace) -> OciContainer:
    return OciContainer.open(given.root, given.id)


def _refuse(given: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(given, name):
            raise errors.UsageError(f"--{name.replace('_', '-')}: is not supported")


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


_Option = tuple[tuple[str, ...], dict[str, Any]]
_FLAG = {"action": "store_true"}
_NAME: _Option = (("id",), {"metavar": "ID"})
_MAKING: Sequence[_Option] = (
    (("-b", "--bundle"), {"type": Path, "default": Path(), "metavar": "DIR"}),
    (("--console-socket",), {"metavar": "PATH", "help": "where the terminal is sent to"}),
    (("--pid-file",), {"metavar": "FILE"}),
    (("--preserve-fds",), {"type": int, "default": 0, "metavar": "N"}),
    (("--no-pivot",), {**_FLAG, "help": "refused"}),
    (("--no-new-keyring",), {**_FLAG, "help": "we never make one"}),
    (("--pidfd-socket",), {"help": "refused"}),
)
_CHECKPOINTS: Sequence[_Option] = (
    (("--image-path",), {"type": Path, "default": Path("checkpoint"), "metavar": "DIR"}),
    (("--work-path",), {"type": Path, "metavar": "DIR", "help": "where CRIU's log goes"}),
    (("--tcp-established",), _FLAG),
    (("--tcp-skip-in-flight",), _FLAG),
    (("--shell-job",), _FLAG),
    (("--file-locks",), {**_FLAG, "help": "always"}),
    (("--ext-unix-sk",), {**_FLAG, "help": "never: such a socket would be cut"}),
    (("--lazy-pages",), {**_FLAG, "help": "refused"}),
    (("--manage-cgroups-mode",), {"help": "we always make them anew"}),
)
_VERBS: Sequence[tuple[str, str, Any, Sequence[_Option]]] = (
    ("create", "make a container that waits for start", _create, (*_MAKING, _NAME)),
    ("start", "let a created container run its command", _start, (_NAME,)),
    ("run", "create, start, wait and delete", _run, (
        *_MAKING,
        (("-d", "--detach"), _FLAG),
        (("--keep",), {**_FLAG, "help": "do not delete it at its end"}),
        (("--no-subreaper",), {**_FLAG, "help": "we never are one"}),
        _NAME,
    )),
    ("state", "print a container's state as JSON", _state, (_NAME,)),
    ("kill", "send a signal", _kill, (
        (("-a", "--all"), {**_FLAG, "help": "to every process"}),
        _NAME,
        (("signal",), {"nargs": "?", "default": "TERM", "metavar": "SIGNAL"}),
    )),
    ("delete", "remove what is left of a container", _delete, (
        (("-f", "--force"), {**_FLAG, "help": "end it first"}), _NAME,
    )),
    ("exec", "run one more process in a container", _exec, (
        (("--console-socket",), {"metavar": "PATH"}),
        (("--cwd",), {"metavar": "DIR"}),
        (("-e", "--env"), {"action": "append", "default": [], "metavar": "K=V"}),
        (("-t", "--tty"), _FLAG),
        (("-u", "--user"), {"metavar": "UID[:GID]"}),
        (("-g", "--additional-gids"), {"type": int, "action": "append", "default": []}),
        (("-p", "--process"), {"metavar": "FILE", "help": "process.json"}),
        (("-d", "--detach"), _FLAG),
        (("--pid-file",), {"metavar": "FILE"}),
        (("--no-new-privs",), _FLAG),
        (("-c", "--cap"), {"action": "append", "default": [], "metavar": "CAP"}),
        (("--preserve-fds",), {"type": int, "default": 0, "metavar": "N"}),
        _NAME,
        (("command",), {"nargs": argparse.REMAINDER, "metavar": "CMD"}),
    )),
    ("ps", "list a container's processes", _ps, (
        (("-f", "--format"), {"choices": ("table", "json"), "default": "table"}),
        _NAME,
        (("options",), {"nargs": argparse.REMAINDER, "help": "for runc's callers; not used"}),
    )),
    ("list", "list the containers", _list, (
        (("-f", "--format"), {"choices": ("table", "json"), "default": "table"}),
        (("-q", "--quiet"), {**_FLAG, "help": "names only"}),
    )),
    ("pause", "freeze a container", _pause, (_NAME,)),
    ("resume", "let a frozen container go on", _resume, (_NAME,)),
    ("update", "change limits", _update, (
        (("-r", "--resources"), {"metavar": "FILE", "help": "JSON; - is stdin"}),
        (("--memory",), {"type": int, "metavar": "BYTES"}),
        (("--memory-swap",), {"type": int, "metavar": "BYTES"}),
        (("--memory-reservation",), {"type": int, "metavar": "BYTES"}),
        (("--cpu-quota",), {"type": int, "metavar": "MICROSECONDS"}),
        (("--cpu-period",), {"type": int, "metavar": "MICROSECONDS"}),
        (("--cpu-share",), {"type": int, "metavar": "N"}),
        (("--cpuset-cpus",), {"metavar": "LIST"}),
        (("--pids-limit",), {"type": int, "metavar": "N"}),
        _NAME,
    )),
    ("checkpoint", "write a container down by CRIU, and end it", _checkpoint, (
        *_CHECKPOINTS,
        (("--leave-running",), _FLAG),
        (("--skip",), {"default": "", "metavar": "CHECK[,CHECK]",
            "help": "go on in spite of these findings; also by the annotation pymigrate.skip"}),
        (("--parent-path",), {"help": "refused"}),
        (("--pre-dump",), {**_FLAG, "help": "refused"}),
        (("--page-server",), {"help": "refused"}),
        _NAME,
    )),
    ("restore", "bring a container back from CRIU's images", _restore, (
        *_MAKING[:3],
        *_CHECKPOINTS,
        (("-d", "--detach"), _FLAG),
        (("--keep",), {**_FLAG, "help": "do not delete it at its end"}),
        (("--no-subreaper",), {**_FLAG, "help": "we never are one"}),
        (("--no-pivot",), {**_FLAG, "help": "means nothing here"}),
        _NAME,
    )),
    ("features", "print what this runtime can do", _features, ()),
)  # fmt: skip
