"""The verbs ``run`` and ``create``."""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from pymigrate.migrate import naming, output
from pymigrate.runtime import errors
from pymigrate.runtime.host import Host, check_name
from pymigrate.runtime.launch import Launch

if TYPE_CHECKING:
    import socket

    from pymigrate.runtime.container import Container
    from pymigrate.runtime.supervision import LogPlace, Supervision

_FAILED = 125  # as podman: the container could not be made or started


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run`` and ``create``."""
    running = verbs.add_parser(
        "run",
        usage="pymigrate run [OPTIONS] IMAGE [CMD...]   (or --rootfs DIR, --bundle DIR)",
        help="make a container and run its command",
        epilog="example: pymigrate run -d --name web --memory 512m nginx:latest",
    )
    running.add_argument(
        "-d", "--detach", action="store_true", help="run in the background; print the id"
    )
    running.add_argument(
        "--detach-keys", metavar="KEYS",
        help='what leaves it running when typed (default: ctrl-p,ctrl-q; "": nothing does)',
    )  # fmt: skip
    running.set_defaults(run=run)
    _add_options(running)
    creating = verbs.add_parser(
        "create",
        usage="pymigrate create [OPTIONS] IMAGE [CMD...]   (or --rootfs DIR, --bundle DIR)",
        help="make a container and do not start it",
        epilog="example: pymigrate create --name web nginx:latest",
    )
    creating.set_defaults(run=create)
    _add_options(creating)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("words", nargs=argparse.REMAINDER, metavar="IMAGE [CMD...]", help="what to run")
    add("--name", help="its name (default: one is made up)")
    add("--rootfs", metavar="DIR", help="use a directory, which stays as it is, for an image")
    add("--bundle", metavar="DIR", help="run an OCI bundle; its config.json says how")
    add("--log-opt", action="append", default=[], metavar="max-size=SIZE",
        help="begin a new log at this size, and keep one before it (default: 16m)")  # fmt: skip
    add("-i", "--interactive", action="store_true", help="keep its stdin open, and read ours")
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add("--rm", action="store_true", help="remove it when it has ended")
    add("--init", action="store_true",
        help="have a small init reap orphans and pass signals on to the command")  # fmt: skip
    add("--restart", default="no", metavar="POLICY",
        help="run it again when it ends: no (default), on-failure[:N], always; until stop or a "
        "reboot, also after a move")  # fmt: skip
    add("--health-cmd", metavar="CMD", help="a shell command in it that tells whether it works")
    add("--health-interval", metavar="T", help="between two of them (default: 30s)")
    add("--health-retries", type=int, metavar="N",
        help="it is unhealthy after so many failures in a row (default: 3)")  # fmt: skip
    add("--health-timeout", metavar="T", help="what takes longer has failed (default: 30s)")
    add("-e", "--env", action="append", default=[], metavar="K=V", help="set a variable")
    add("--env-file", action="append", default=[], metavar="FILE", help="set variables of a file")
    add("-w", "--workdir", metavar="DIR", help="the command's working directory")
    add("-u", "--user", metavar="USER[:GROUP]", help="whom to run as: names or numbers")
    add("--hostname", metavar="H", help="its host name (default: its id's first 12 digits)")
    add("--entrypoint", metavar="E", help="run this instead of the image's entry point")
    add("--ulimit", action="append", default=[], metavar="T=S:H", help="such as nofile=1024:4096")
    add("--sysctl", action="append", default=[], metavar="NAME=VALUE",
        help="a kernel parameter of its namespaces, such as net.core.somaxconn=99")  # fmt: skip
    add("--read-only", action="store_true", help="let nothing be written to its root")
    add("-v", "--volume", action="append", default=[], metavar="SRC:DST[:ro,local]",
        help="show it a directory of the host, or the volume of a name, which is made if it is "
        "not there; local: does not travel")  # fmt: skip
    add("--tmpfs", action="append", default=[], metavar="DST[:OPTS]", help="mount a tmpfs")
    add("--device", action="append", default=[], metavar="PATH[:PATH][:rwm]",
        help="let it use a device of the host, there under another path; rwm: may read, write, "
        "make nodes of it")  # fmt: skip
    add("--net", "--network", default="bridge", metavar="MODE",
        help="bridge (default), none, host, or ns:PATH")  # fmt: skip
    add("--bridge", metavar="NAME", help="the bridge for --net bridge (default: pymigrate0)")
    add("--dns", action="append", default=[], metavar="A",
        help="a name server, in place of the host's")  # fmt: skip
    add("--dns-search", action="append", default=[], metavar="DOMAIN",
        help="where short names are looked for, in place of the host's")  # fmt: skip
    add("--dns-option", action="append", default=[], metavar="WORD",
        help="an option of resolv.conf, in place of the host's")  # fmt: skip
    add("--add-host", action="append", default=[], metavar="NAME:A",
        help="a line of /etc/hosts; the address host-gateway is the host's")  # fmt: skip
    add("--ip", metavar="A", help="its address (default: the lowest that is free)")
    add("--ip6", metavar="A", help="an IPv6 address beside that, such as fd00:88::5/64")
    add("--mac", metavar="M", help="its MAC address (default: follows from the address)")
    add("-p", "--publish", action="append", default=[], metavar="[IP:]HOST:CTR[/udp]",
        help="let a port of this host lead to one of its; after a move, of that host")  # fmt: skip
    add("--bandwidth", metavar="RATE", help="at most so much each way, such as 10mbit")
    add_limits(parser)
    add("--cpu-baseline", metavar="LEVEL",
        help="hold its glibc programs to x86-64-v2 or x86-64-v3, so that it can move to "
        "lesser CPUs")  # fmt: skip
    add("--cap-add", action="append", default=[], metavar="CAP", help="grant a capability, or all")
    add("--cap-drop", action="append", default=[], metavar="CAP", help="take one away, or all")
    add("--security-opt", action="append", default=[], metavar="OPT",
        help="seccomp=unconfined, seccomp=FILE, no-new-privileges=false, apparmor=PROFILE, "
        "label=disable or label=type:TYPE (SELinux; also user, role, level)")  # fmt: skip
    add("--privileged", action="store_true", help="all capabilities, no seccomp, nothing masked")
    add("--userns", metavar="UID:GID:SIZE",
        help="its users are these ranges of the host's, except in volumes, whose files keep "
        "their owners; auto: 100000:100000:65536")  # fmt: skip
    for clock in ("monotonic", "boottime"):
        add(f"--{clock}", type=int, metavar="SECONDS",
            help=f"how far ahead of the host its CLOCK_{clock.upper()} is")  # fmt: skip
    add("--share", action="append", default=[], metavar="NS[,NS]",
        help="share these namespaces with the host")  # fmt: skip
    add("--join", action="append", default=[], metavar="NS:PATH", help="join another's namespace")


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the limits, which ``update`` has too."""
    add = parser.add_argument
    add("--memory", metavar="SIZE", help="at most so much memory, such as 512m; -1: no limit")
    add("--memory-swap", metavar="SIZE", help="at most so much memory and swap together")
    add("--memory-reservation", metavar="SIZE", help="what it keeps when memory is short")
    add("--cpus", metavar="N", help="at most so many CPUs, such as 1.5")
    add("--cpu-weight", type=int, metavar="N", help="1 to 10000; 100 is usual")
    add("--cpuset-cpus", metavar="LIST", help="only these CPUs, such as 0-2,5")
    add("--cpuset-mems", metavar="LIST", help="only the memory of these nodes, such as 0")
    add("--pids-limit", type=int, metavar="N", help="at most so many processes; -1: no limit")
    add("--hugetlb", action="append", default=[], metavar="SIZE:LIMIT",
        help="at most so much in huge pages of a size, such as 2MB:64m; -1: no limit")  # fmt: skip
    add("--io-weight", type=int, metavar="N", help="its share of disks: 10 to 1000, 100 is usual")
    for what, unit in (("bps", "bytes"), ("iops", "operations")):
        for way in ("read", "write"):
            add(f"--device-{way}-{what}", action="append", default=[], metavar="DEVICE:RATE",
                help=f"at most so many {unit} a second, such as /dev/sda:99; -1: any")  # fmt: skip


def create(arguments: argparse.Namespace) -> int:
    """Make a container; print its id."""
    from pymigrate.migrate.new_container import make

    host, name = _place(arguments)
    _print_made(make(host, name, arguments), arguments)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Make a container and run it, here or in the background."""
    host, name = _place(arguments)
    if arguments.detach_keys is not None:
        from pymigrate.migrate.session import parse_detach_keys

        arguments.detach_keys = parse_detach_keys(arguments.detach_keys)
    import pymigrate.runtime.container  # noqa: F401 - what both need, before we are two

    # It loads what it needs while we load what checks the options.
    launch = Launch(host.containers / name, fork=True)
    try:
        from pymigrate.migrate.new_container import make

        container = make(host, name, arguments)
    except BaseException:
        launch.abandon()
        raise
    try:
        if not arguments.detach:
            return run_here(container, launch, detach_keys=arguments.detach_keys)
        with container.prepare(launch=launch) as supervision:
            supervision.start()
    except BaseException as error:  # also Ctrl-C: what does not run yet must not stay
        if arguments.rm and not container.state().status.is_alive:
            with contextlib.suppress(errors.NotFound):  # it has run, and is removed
                container.remove(force=True)
        if type(error) is errors.HostError or type(error) is errors.ContainerError:
            error.exit_code = _FAILED
        raise
    _print_made(container, arguments)
    return 0


def _place(arguments: argparse.Namespace) -> tuple[Host, str]:
    host = Host.open(arguments.root)
    return host, check_name(arguments.name) if arguments.name else naming.suggest(host)


def run_here(container: Container, launch: Launch, *, detach_keys: bytes | None = None) -> int:
    """Start a container with our streams connected to it; return its exit code."""
    with container.prepare(launch=launch) as supervision:
        attached, place = supervision.attach()
        return attend(container, supervision, attached, place, start=True, detach_keys=detach_keys)


def attend(
    container: Container,
    supervision: Supervision,
    attached: socket.socket,
    place: LogPlace,
    *,
    start: bool,
    detach_keys: bytes | None = None,
) -> int:
    """Carry the container's streams until it ends or is detached from; return its exit code."""
    from pymigrate.migrate.session import DETACH_KEYS, Session  # termios and more: not for -d
    from pymigrate.runtime.log import Reader

    session = Session(
        attached,
        Reader(container.log, place.offset, place.inode),
        stdin=container.record.stdin_open,
        terminal=container.spec.process.terminal,
        on_signal=lambda number: _proxy(container, number),
        detach_keys=DETACH_KEYS if detach_keys is None else detach_keys,
    )
    session.send_size()
    if start:
        supervision.start(then_wait=True)
    if not session.run():
        output.say("")  # the cursor is somewhere in the container's line
        return 0
    exit_code = supervision.wait()
    return _FAILED if exit_code is None else exit_code


def _proxy(container: Container, number: int) -> None:
    from pymigrate.runtime import lifecycle

    # It may have just ended: its exit code is then on the way.
    with contextlib.suppress(errors.WrongState, errors.NotFound):
        lifecycle.kill(container, number)


def _print_made(container: Container, arguments: argparse.Namespace) -> None:
    if arguments.json:
        output.emit({"id": container.record.id, "name": container.name})
    else:
        output.say(container.record.id)
