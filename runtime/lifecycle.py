"""What people do with a container; each refuses while a migration holds it.

Checkpoints and migrations use the steps in container.py, and decide about the fence themselves.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

from pymigrate.runtime import aside, errors, events, image_notes, lock, spec
from pymigrate.runtime.container import KILL_SECONDS, Container
from pymigrate.runtime.launch import Launch
from pymigrate.runtime.settings import Resources
from pymigrate.runtime.state import Identity, Status
from pymigrate.runtime.supervision import SupervisorEnded
from pymigrate.runtime.values import replace


def start(container: Container) -> int:
    """Run its command; return the PID on the host.

    Raises:
        WrongState: it is running or paused already, or being moved.
        CannotRun, CommandNotFound: the command could not be executed.

    """
    launch = Launch(container.directory, fork=True)
    try:
        with container.locked():
            container.check_free()
            with aside.alone(container.directory) as mine:
                if not mine:
                    raise container.wrong_state(container.state(), "it is being restored")
                if container.state().status.may_start:
                    aside.put_back(container.directory)
                with container.prepare_locked(plugged=True, launch=launch) as supervision:
                    return supervision.start()
    except BaseException:
        launch.abandon()
        raise


def pause(container: Container) -> None:
    """Freeze it.

    Raises:
        WrongState: it is not running.

    """
    with container.locked():
        container.check_free()
        now = container.state()
        if now.status is not Status.RUNNING:
            raise container.wrong_state(now, "only a running container can be paused")
        container.freeze()
        events.note(container.host, container.record, "pause")


def resume(container: Container) -> None:
    """Let a paused container go on; also one that a checkpoint left when it was killed.

    Raises:
        WrongState: it is not paused.

    """
    with container.locked():
        container.check_free()
        now = container.state()
        if now.status is not Status.PAUSED:
            raise container.wrong_state(now, "only a paused container can be resumed")
        aside.forget(container.directory)
        container.plug()
        container.thaw()
        events.note(container.host, container.record, "resume")


def update(
    container: Container, change: Callable[[Resources], tuple[Resources, Resources]]
) -> None:
    """Change its limits, at once if it runs, and write them down: they stay, and move with it.

    ``change`` gets the limits that it has, and returns what to set (-1 takes a limit away) and
    what it then has. All of it is done, or nothing.

    Raises:
        WrongState: it is about to start, or being moved.
        MissingFeature, HostError: a limit cannot be enforced here.

    """
    with container.locked():
        container.check_free()
        now = container.state()
        if now.status is Status.PREPARED:
            raise container.wrong_state(now, "its limits stay as they are")
        path = container.directory / "config.json"
        current = spec.load(path)
        to_set, whole = change(current.resources)
        with contextlib.ExitStack() as undo:
            if now.status.is_alive:
                undo.enter_context(container.cgroup.changed(to_set))
            spec.save(replace(current, resources=whole), path)
        events.note(container.host, container.record, "update")


def kill(container: Container, signal_number: int = signal.SIGKILL) -> None:
    """Send a signal to its init; a paused container gets it when resumed, but for SIGKILL.

    SIGKILL also ends what would be run again after it.

    Raises:
        WrongState: it has no processes.

    """
    container.check_free()
    now = container.state()
    if now.status is Status.RESTARTING and signal_number == signal.SIGKILL:
        now = container.release(now)
        if now.status.may_start:
            return
    if not now.status.is_alive or now.init is None:
        raise container.wrong_state(now, "there is nothing to send a signal to")
    if signal_number == signal.SIGKILL:
        container.expect_end()
    if signal_number == signal.SIGKILL and now.status is Status.PAUSED:
        container.kill_all()  # on cgroup v1 what is frozen does not die by a signal alone
    else:
        lock.send_signal(now.init, signal_number)
    events.note(container.host, container.record, "kill", signal=signal_number)


def stop(container: Container, seconds: float = 10.0) -> int | None:
    """Ask it to end, and after ``seconds`` end it by SIGKILL; return its exit code.

    It is asked by SIGTERM, unless its image names another signal.

    Raises:
        WrongState: it is paused or being moved.

    """
    container.check_free()
    now = container.state()
    if now.status is Status.PAUSED:
        raise container.wrong_state(
            now, "it cannot end", hint=f"pymigrate resume {container.name} first, or kill it"
        )
    if now.status.has_supervisor_only:
        now = container.release(now)
    if now.status is not Status.RUNNING or now.init is None:
        return now.exit_code
    container.expect_end()
    try:
        with container.supervision() as waiting:
            waiting.begin_wait()
            lock.send_signal(now.init, image_notes.stop_signal(container.spec.annotations))
            exit_code = waiting.wait(seconds)
            if exit_code is None:
                lock.send_signal(now.init, signal.SIGKILL)
                exit_code = waiting.wait(KILL_SECONDS)
    except (errors.WrongState, SupervisorEnded):
        _stop_unsupervised(container, now.init, seconds)
        return container.state().exit_code
    if exit_code is None:
        raise container.undying()
    events.note(container.host, container.record, "stop")
    return exit_code


def _stop_unsupervised(container: Container, init: Identity, seconds: float) -> None:
    lock.send_signal(init, image_notes.stop_signal(container.spec.annotations))
    if lock.await_end(init, seconds):
        return
    lock.send_signal(init, signal.SIGKILL)
    if not lock.await_end(init, KILL_SECONDS):
        raise container.undying()


def wait(container: Container) -> int:
    """Wait until it has ended, if only to be run again; return its exit code, 128+N for signal N.

    Raises:
        WrongState: it was never started.
        ContainerError: it ended, but nobody saw its exit code.

    """
    while True:
        now = container.state()
        if now.status in (Status.STOPPED, Status.RESTARTING):
            break
        if now.init is None:
            raise container.wrong_state(now, "there is nothing to wait for")
        if now.supervisor is None:
            lock.await_end(now.init, None)
            continue
        try:
            with container.supervision() as supervision:
                exit_code = supervision.wait()
        except (errors.WrongState, SupervisorEnded):
            lock.await_end(now.supervisor, KILL_SECONDS)  # it is on its way out
            continue
        if exit_code is not None:
            return exit_code
    if now.exit_code is None:
        raise errors.ContainerError(
            f"{container.name} has ended, but its supervisor died before: the exit code is unknown"
        )
    return now.exit_code
