"""The verbs that reach into a container: exec, attach, logs."""

from __future__ import annotations

import argparse
import os
import sys

from pymigrate.migrate import output
from pymigrate.runtime import errors, spec
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from pymigrate.runtime.log import Reader
from pymigrate.runtime.state import Status
from pymigrate.runtime.values import replace


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add exec, attach and logs."""
    executing = verbs.add_parser(
        "exec",
        usage="pymigrate exec [OPTIONS] NAME CMD...",
        help="run one more command in a container",
        epilog="example: pymigrate exec -it web sh",
    )
    add = executing.add_argument
    add("-d", "--detach", action="store_true", help="do not wait for it; its output is lost")
    add("-i", "--interactive", action="store_true", help="connect our stdin to it")
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add("-e", "--env", action="append", default=[], metavar="K=V", help="set a variable")
    add("-w", "--workdir", metavar="DIR", help="its working directory")
    add("-u", "--user", metavar="USER[:GROUP]", help="whom to run as (default: as the container)")
    add("name", metavar="NAME", help="a container that runs")
    add("command", nargs=argparse.REMAINDER, metavar="CMD...", help="the command")
    executing.set_defaults(run=execute)
    attaching = verbs.add_parser(
        "attach",
        help="connect our streams to a container that runs",
        description="Leave it by ctrl-p ctrl-q; it goes on.",
        epilog="example: pymigrate attach web",
    )
    attaching.add_argument("name", metavar="NAME", help="a container that runs")
    attaching.add_argument(
        "--detach-keys", metavar="KEYS",
        help='what leaves it running when typed (default: ctrl-p,ctrl-q; "": nothing does)',
    )  # fmt: skip
    attaching.set_defaults(run=attach)
    logging = verbs.add_parser(
        "logs", help="print what a container has written", epilog="example: pymigrate logs -f web"
    )
    logging.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    logging.add_argument("--tail", type=int, metavar="N", help="only the last N lines")
    logging.add_argument(
        "--since", metavar="T",
        help="only from then on: a time such as 2026-01-02T03:04:05Z, or 90s, 10m, 3h, 2d ago",
    )  # fmt: skip
    logging.add_argument("name", metavar="NAME", help="a container")
    logging.set_defaults(run=logs)


def execute(arguments: argparse.Namespace) -> int:
    """Run one more command in a container; return its exit code."""
    from pymigrate.migrate import exec_session
    from pymigrate.runtime import enter, stdio

    container = Container.open(Host.open(arguments.root), arguments.name)
    process = _process(container, arguments)
    container.check_free()
    now = container.state()
    if now.status is not Status.RUNNING or now.pid is None:
        raise errors.WrongState(f"{container.name} is {now.status.value}: nothing can run in it")
    if arguments.detach or arguments.tty:
        streams, ours = stdio.Stdio(None, None, None), None
    else:
        streams, ours = stdio.make_pipes(with_stdin=arguments.interactive)
    entered = enter.enter(
        now.pid,
        container.spec,
        process,
        cgroup=container.cgroup,
        stdio=streams,
        cache=container.host.cache,
    )
    streams.close()
    if arguments.detach:
        return 0
    if entered.terminal_master_fd is not None:
        master = entered.terminal_master_fd
        session = exec_session.for_terminal(entered.pid, master, with_stdin=arguments.interactive)
    elif ours is not None:
        session = exec_session.for_pipes(entered.pid, ours.stdin, ours.stdout, ours.stderr)
    return session.run()


def _process(container: Container, arguments: argparse.Namespace) -> spec.Process:
    """Return what is to be run: as the container's own command unless told otherwise."""
    from pymigrate.migrate import run_options
    from pymigrate.runtime import accounts
    from pymigrate.runtime.defaults import capability_sets

    command = arguments.command
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise errors.UsageError(
            "there is no command to run; nothing was run", hint="pymigrate exec NAME CMD..."
        )
    own = container.spec.process
    variables = dict(pair.partition("=")[::2] for pair in own.env)
    user = own.user
    if arguments.user is not None:
        account = accounts.resolve_in_layers(arguments.user, (*container.lower, container.upper))
        user = account.user
        variables["HOME"] = account.home
    if arguments.tty:
        variables.setdefault("TERM", "xterm")
    variables.update(run_options.environment(arguments.env, (), os.environ))
    return replace(
        own,
        args=tuple(command),
        env=tuple(f"{name}={value}" for name, value in variables.items()),
        cwd=run_options.absolute(arguments.workdir or own.cwd),
        user=user,
        terminal=arguments.tty and not arguments.detach,
        capabilities=capability_sets(own.capabilities.bounding, user),
    )


def attach(arguments: argparse.Namespace) -> int:
    """Connect to a container; return its exit code if it ends meanwhile."""
    from pymigrate.migrate.cli_run import attend

    keys = None
    if arguments.detach_keys is not None:
        from pymigrate.migrate.session import parse_detach_keys

        keys = parse_detach_keys(arguments.detach_keys)
    container = Container.open(Host.open(arguments.root), arguments.name)
    now = container.state()
    if not now.status.is_alive:
        raise errors.WrongState(
            f"{container.name} is {now.status.value}: there is nothing to attach to",
            hint=f"pymigrate start {container.name}, or pymigrate logs {container.name}",
        )
    if now.status is Status.PAUSED:  # it takes neither input nor the signals that we pass on
        raise errors.WrongState(
            f"{container.name} is paused: it would not answer",
            hint=f"pymigrate resume {container.name}",
        )
    with container.supervision() as supervision:
        attached, place = supervision.attach()
        supervision.begin_wait()
        return attend(container, supervision, attached, place, start=False, detach_keys=keys)


def logs(arguments: argparse.Namespace) -> int:
    """Print the log, stdout and stderr apart."""
    from pymigrate.migrate import moments
    from pymigrate.migrate.session import Session

    container = Container.open(Host.open(arguments.root), arguments.name)
    if arguments.tail is not None and arguments.tail < 0:
        raise errors.UsageError(f"--tail {arguments.tail}: not a number of lines")
    attached = None
    if arguments.follow and container.state().supervisor is not None:
        with container.supervision() as supervision:
            attached, _ = supervision.attach()
    try:
        reader = Reader(container.log, since=moments.since(arguments.since))
    except FileNotFoundError:
        return 0  # it has never run
    if arguments.tail is not None:
        reader.seek_tail(arguments.tail)
    if arguments.json:
        for entry in reader.entries():
            text = entry.output.decode(errors="replace")
            output.emit({"time": entry.time, "stream": entry.stream, "output": text})
        return 0
    if attached is None:
        for entry in reader.entries():
            stream = sys.stdout if entry.stream == "stdout" else sys.stderr
            stream.buffer.write(entry.output)
        sys.stdout.flush()
        return 0
    Session(attached, reader, stdin=False, terminal=False, on_signal=None).run()
    return 0
