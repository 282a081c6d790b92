"""The verbs that change whether a container runs: start, stop, kill, pause, resume, restart, rm."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable

from pymigrate.migrate import output
from pymigrate.runtime import errors, lifecycle
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host

_GRACE_SECONDS = 10.0


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add start, stop, kill, pause, resume, restart, rm and wait."""
    _verb(verbs, "start", start, "run the command of a container that does not run")
    stopping = _verb(verbs, "stop", stop, "ask it to end, and after a while end it", "-t 3 web")
    restarting = _verb(verbs, "restart", restart, "stop it and start it again", "-t 3 web")
    for parser in (stopping, restarting):
        parser.add_argument(
            "-t", "--time", type=float, default=_GRACE_SECONDS, metavar="S",
            help="seconds between SIGTERM and SIGKILL (default: 10)",
        )  # fmt: skip
    killing = _verb(verbs, "kill", kill, "send it a signal", "-s HUP web")
    killing.add_argument(
        "-s", "--signal", default="KILL", metavar="SIG", help="name or number (default: KILL)"
    )
    _verb(verbs, "pause", pause, "freeze all its processes where they are")
    _verb(verbs, "resume", resume, "let a paused container go on")
    removing = _verb(verbs, "rm", remove, "remove it with all that it has written", "-f web")
    removing.add_argument("-f", "--force", action="store_true", help="kill it first if it runs")
    _verb(verbs, "wait", wait, "wait until it has ended; print its exit code")


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    example: str = "web",
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, epilog=f"example: pymigrate {name} {example}")
    parser.add_argument("names", nargs="+", metavar="NAME", help="a container, or several")
    parser.set_defaults(run=run)
    return parser


def start(arguments: argparse.Namespace) -> int:
    """Start each."""
    return _each(arguments, lambda container: {"pid": lifecycle.start(container)})


def stop(arguments: argparse.Namespace) -> int:
    """Stop each; one that does not run stays as it is."""
    seconds = _seconds(arguments)
    return _each(arguments, lambda container: {"exit_code": lifecycle.stop(container, seconds)})


def restart(arguments: argparse.Namespace) -> int:
    """Stop each and start it again."""
    seconds = _seconds(arguments)

    def act(container: Container) -> dict[str, object]:
        lifecycle.stop(container, seconds)
        return {"pid": lifecycle.start(container)}

    return _each(arguments, act)


def kill(arguments: argparse.Namespace) -> int:
    """Send each a signal."""
    number = signal_number(arguments.signal)
    return _each(arguments, lambda container: lifecycle.kill(container, number))


def pause(arguments: argparse.Namespace) -> int:
    """Freeze each."""
    return _each(arguments, lifecycle.pause)


def resume(arguments: argparse.Namespace) -> int:
    """Let each go on."""
    return _each(arguments, lifecycle.resume)


def remove(arguments: argparse.Namespace) -> int:
    """Remove each; with force, one that is not there is no error."""

    def act(container: Container) -> None:
        container.remove(force=arguments.force)

    return _each(arguments, act, missing_ok=arguments.force)


def wait(arguments: argparse.Namespace) -> int:
    """Wait for each and print its exit code."""
    host = Host.open(arguments.root)
    for name in arguments.names:
        container = Container.open(host, name)
        exit_code = lifecycle.wait(container)
        if arguments.json:
            output.emit({"name": container.name, "exit_code": exit_code})
        else:
            output.say(str(exit_code))
    return 0


def _each(
    arguments: argparse.Namespace,
    act: Callable[[Container], dict[str, object] | None],
    *,
    missing_ok: bool = False,
) -> int:
    """Do it to every container that was named; the first failure is reported at the end."""
    host = Host.open(arguments.root)
    first: errors.PymigrateError | None = None
    for name in arguments.names:
        try:
            container = _open(host, name, damaged_ok=missing_ok)
            result = act(container)
        except errors.PymigrateError as error:
            if missing_ok and isinstance(error, errors.NotFound):
                continue
            if first is not None:
                output.complain(error)
            first = first or error
            continue
        if arguments.json:
            output.emit({"name": container.name, **(result or {})})
        elif not arguments.quiet:
            output.say(name)
    if first is not None:
        raise first
    return 0


def _open(host: Host, name: str, *, damaged_ok: bool) -> Container:
    try:
        return Container.open(host, name)
    except errors.NotFound:
        raise
    except errors.ContainerError:
        if not damaged_ok:
            raise
        return Container.remnant(host, name)


def _seconds(arguments: argparse.Namespace) -> float:
    seconds = float(arguments.time)
    if not 0 <= seconds <= 1e6:  # also not a number
        raise errors.UsageError(f"-t {seconds}: not a number of seconds; nothing was stopped")
    return seconds


def signal_number(text: str) -> int:
    """Read a signal: a number, or a name with or without SIG."""
    if text.isdigit() and 0 < int(text) <= signal.SIGRTMAX:
        return int(text)
    name = text.upper()
    found = getattr(signal.Signals, name if name.startswith("SIG") else f"SIG{name}", None)
    if found is None:
        raise errors.UsageError(
            f"{text!r} is not a signal; nothing was sent", hint="such as TERM, HUP or 9"
        )
    return int(found)
