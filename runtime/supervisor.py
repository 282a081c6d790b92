"""The process that looks after one container: ``python -I -m pymigrate.runtime.supervisor [DIR]``.

It prepares the surroundings, starts the container's init as its own child (or adopts the one that
CRIU restored as its child), keeps its output, answers the control socket, sees its end, cleans up
and writes down how it ended. It has no threads: it forks. ::

    (nothing) ── prepare ──▶ PREPARED ── start / spawn + adopt ──▶ RUNNING ── init ends ──▶ STOPPED
                                 └── release, keeper gone, start failed ──▶ as before

With a policy to run it again (restarting.py), its end leads to RESTARTING instead, where nothing is
prepared, and after a while to RUNNING once more.

It is started with descriptor 3 connected to its *keeper* (see launch.py and Supervision), which
sends the order to prepare and gets the first message: prepared, or why not.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from pymigrate.runtime import (
    children,
    control,
    daemon,
    errors,
    events,
    guard,
    launch,
    lock,
    log,
    own_state,
    relay,
    restarting,
    state,
    stdio,
    syscalls,
)
from pymigrate.runtime.children import Helpers, Signals
from pymigrate.runtime.clients import Clients, Fields, Operation, Reply
from pymigrate.runtime.descriptors import DescriptorStore
from pymigrate.runtime.health import Prober
from pymigrate.runtime.reliance import Reliance
from pymigrate.runtime.services import Services
from pymigrate.runtime.state import Status
from pymigrate.runtime.surroundings import Surroundings
from pymigrate.runtime.values import replace

_NOT_RUN = 125  # the exit code of what could not be run, as podman says it


class Supervisor:
    """One container's supervisor; ``run`` returns when there is nothing left to look after."""

    def __init__(self, directory: Path, keeper: socket.socket) -> None:
        """Read what the container is; nothing is made yet."""
        self._directory = directory
        self._keeper: socket.socket | None = keeper
        self._around = Surroundings.of(directory)
        self._again = restarting.Again(restarting.Policy.parse(self._around.record.restart))
        self._before = own_state.last(directory)
        self._state = self._before
        self._selector = selectors.DefaultSelector()
        self._waiting: list[socket.socket] = []
        self._init: int | None = None
        self._init_status: int | None = None
        self._over = False
        self._why = ""  # it is not yet run again
        self._prober: Prober | None = None
        if self._around.record.health is not None:
            self._prober = Prober(self._around.record.health, self._probe, self._tell_health)
        self._kept = DescriptorStore()
        self._operations: dict[str, Operation] = {
            "adopt": self._adopt,
            "expect_end": self._expect_end,
            "hush": self._hush,
            "kill": self._kill,
            "ping": self._ping,
            "release": self._release,
            "start": self._start,
            "wait": self._wait,
            **self._kept.operations(),
        }
        self._clients = Clients(self._selector, self._operations, self._on_client_gone)
        self._helpers = Helpers(self._clients.answer)
        self._guard = guard.Guard(self._around, self._helpers)
        self._operations |= self._helpers.operations() | self._guard.operations()
        self._reliance = Reliance(self._end_processes, self._clients.answer)
        self._operations |= self._reliance.operations()

    def prepare(self, *, plugged: bool) -> None:
        """Make the surroundings and open the control socket; on failure nothing is left."""
        self._signals = Signals(self._selector, self._on_signals)
        self._around.prepare(plugged=plugged)
        try:
            size = self._around.record.log_size or log.SIZE
            self._relay = relay.Relay(self._selector, self._directory / "log", size)
            self._operations |= self._relay.operations()
            self._operations |= self._services().operations()
            self._clients.listen(self._directory)
            if self._keeper is not None:
                self._clients.add(self._keeper)
            self._state = self._ours(Status.PREPARED)
            self._write_state()
        except OSError:
            self._around.leave()
            raise

    def run(self) -> None:
        """Answer clients until the container has ended or was given up."""
        while not self._over:
            for key, mask in self._selector.select(self._seconds()):
                if self._selector.get_map().get(key.fd) is key:  # not closed by one before it
                    key.data(mask)
            if self._init_status is not None:
                self._finish(self._init_status)
            if self._again.seconds == 0 and not self._over:
                self._run_again()
            if self._prober is not None and self._prober.seconds == 0 and not self._over:
                self._prober.act()

    def _services(self) -> Services:
        return Services(self._around, self._helpers, self._relay, self._must_be_empty)

    def _seconds(self) -> float | None:
        """Return how long there is nothing to do but what others ask for."""
        both = (self._again.seconds, self._prober.seconds if self._prober is not None else None)
        return min((each for each in both if each is not None), default=None)

    # Children.

    def _on_signals(self, numbers: bytes) -> None:
        if signal.SIGCHLD in numbers:
            self._reap()
            self._settle_guard()
        if signal.SIGTERM in numbers and self._init is None:
            self._give_up()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._init:
                self._init_status = status
            elif self._prober is not None and self._prober.runs(pid):
                self._prober.ended(children.exit_code(status))
            elif self._helpers.runs(pid):
                self._try("keep what CRIU knows", self._around.keep_criu_cache)
                self._helpers.end(pid, children.exit_code(status))
            else:
                self._helpers.keep_unclaimed(pid, status)

    def _on_client_gone(self, client: socket.socket) -> None:
        self._waiting = [one for one in self._waiting if one is not client]
        self._helpers.forget(client)
        self._reliance.on_gone(client)
        self._guard.on_gone(client)
        self._reap()
        self._settle_guard()
        if client is self._keeper and self._init is None and not self._over:
            self._give_up()

    # Health.

    def _probe(self) -> int | None:
        if self._init is None:
            return None
        from pymigrate.runtime import probing  # few containers have a health command

        return probing.start(self._around, self._init)

    def _tell_health(self, verdict: str) -> None:
        self._state = replace(self._state, health=verdict)
        self._try("write down its health", self._write_state)
        self._note("health", status=verdict)

    def _hush(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        if self._prober is not None:
            self._prober.hush()
        return Reply()

    def _settle_guard(self) -> None:
        if self._guard.settle() and self._init_status is None:
            self._again.unwanted = False  # what a checkpoint was to end goes on

    # Operations; a None as the answer means that it comes later.

    def _ping(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        return Reply({"pid": os.getpid()})

    def _start(self, client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        self._must_be_empty()
        try:
            pid = self._run_init()
        except (OSError, errors.PymigrateError) as error:
            self._relay.drop_streams()
            self._give_up()
            if isinstance(error, errors.PymigrateError):
                raise
            raise errors.HostError(
                f"{self._around.record.name} could not be started: {error}"
            ) from error
        self._settle(pid)
        self._note("start")
        if fields.get("then_wait") is True:
            self._waiting.append(client)
        return Reply({"pid": pid})

    def _run_init(self) -> int:
        around = self._around
        around.mount()
        around.identify()
        if around.spec.process.terminal:
            started = around.give_birth(stdio.TERMINAL)
            if started.terminal_master_fd is None:
                raise errors.HostError("the container's init gave no terminal")
            self._relay.set_terminal(started.terminal_master_fd)
            return started.pid
        theirs, ours = stdio.make_pipes(with_stdin=around.record.stdin_open)
        self._relay.add_streams(ours)
        try:
            return around.give_birth(theirs).pid
        finally:
            theirs.close()

    def _adopt(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        self._must_be_empty()
        pid = fields.get("pid")
        if not isinstance(pid, int) or self._helpers.runs(pid):
            raise errors.WrongState(f"{pid!r} cannot be the container's init")
        self._reap()
        ended = self._helpers.claim(pid)
        if ended is not None:
            self._init, self._init_status = pid, ended
            return Reply()
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError as error:
            raise errors.WrongState(
                f"PID {pid} is not a child of the supervisor; it was not adopted"
            ) from error
        self._around.show_cgroup(pid)
        self._around.take_back()
        self._settle(pid)
        self._note("restore")
        return Reply()

    def _kill(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        number = fields.get("signal")
        if not isinstance(number, int) or not 0 < number <= signal.SIGRTMAX:
            raise errors.UsageError(f"{number!r} is not a signal")
        if self._init is None:
            raise errors.WrongState(f"{self._around.record.name} is not running")
        os.kill(self._init, number)  # our child, not reaped: the PID is nobody else's
        return Reply()

    def _expect_end(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        self._again.unwanted = fields.get("wanted") is True
        if self._again.unwanted and self._state.status is Status.RESTARTING:
            self._give_up()
        return Reply()

    def _wait(self, client: socket.socket, _fields: Fields, _fds: list[int]) -> None:
        self._waiting.append(client)

    def _release(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        self._must_be_empty()
        self._give_up()
        return Reply()

    def _must_be_empty(self) -> None:
        if self._init is not None:
            raise errors.WrongState(f"{self._around.record.name} is running already")

    # The states.

    def _settle(self, pid: int) -> None:
        """Take a child for the container's init and write down that it runs."""
        self._init = pid
        self._keeper = None  # from now on it goes its own way
        self._again.began()
        if self._prober is not None:
            self._prober.begin()
        identity = state.Identity.of(pid)
        self._state = replace(
            self._state,
            status=Status.RUNNING,
            pid=pid,
            pid_started=identity.started if identity else 0,  # it has ended already
            exit_code=None,
            oom_killed=False,
            health=self._prober.verdict if self._prober is not None else None,
            restarts=self._again.count,
            started=state.now(),
            finished=None,
            failure=None,
        )
        self._write_state()

    def _finish(self, status: int) -> None:
        """See to everything that the end of init asks for, and write down how it ended."""
        around = self._around
        if self._prober is not None:
            self._prober.end()
        self._end_processes()  # a shared PID namespace has others
        self._reliance.release()
        self._relay.drain()
        exit_code = children.exit_code(status)
        oom_killed = around.cgroup.oom_kills() > 0
        self._try("keep what CRIU knows", around.keep_criu_cache)
        self._try("remove cgroup and network", self._around.leave)
        self._state = self._before = state.State(
            status=Status.STOPPED,
            exit_code=exit_code,
            oom_killed=oom_killed,
            restarts=self._again.count,
            started=self._state.started,
            finished=state.now(),
            failure=self._reliance.reason,
        )
        self._note("died", exit_code=exit_code, oom_killed=oom_killed)
        if not around.is_fenced and self._again.ended(exit_code):
            self._rest()
        else:
            self._end()
            if around.record.remove_on_exit and not around.is_fenced:
                launch.discard(self._directory, around.record.id)
                self._note("remove")
        waiting, self._waiting = self._waiting, []
        for client in waiting:
            self._clients.answer(client, Reply({"exit_code": exit_code}))

    def _end_processes(self) -> None:
        self._try("end all processes", self._around.cgroup.kill)

    def _rest(self) -> None:
        """Wait until it is to run again; nothing of it is left meanwhile but us."""
        self._init = self._init_status = None
        self._why = ""
        self._helpers.claim_none()
        self._kept.clear()
        self._reliance.forget()
        self._relay.part()
        self._state = self._ours(Status.RESTARTING)
        self._try("write down that it will run again", self._write_state)

    def _run_again(self) -> None:
        """Do as a person's `start`, unless another is at work on it: then a little later."""
        with contextlib.ExitStack() as stack:
            try:
                mine = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                self._give_up()
                return
            stack.callback(os.close, mine)
            free = lock.try_lock(mine)
            if not free or self._around.is_fenced:
                self._put_off("a migration holds it" if free else "somebody is at work on it")
                return
            try:
                self._around = Surroundings.of(self._directory)  # its limits may be others now
                self._guard = guard.Guard(self._around, self._helpers)
                self._operations |= self._guard.operations() | self._services().operations()
                self._around.prepare(plugged=True)
                pid = self._run_init()
            except (OSError, errors.PymigrateError) as error:
                self._not_run(error)
                return
            self._state = self._ours(Status.RUNNING)
            self._settle(pid)
            self._note("start", restarts=self._again.count)

    def _put_off(self, why: str) -> None:
        if why != self._why:
            guard.say(f"{why}: it is run again when that is over")
        self._why = why
        self._again.put_off()

    def _not_run(self, error: OSError | errors.PymigrateError) -> None:
        guard.say(f"could not run it again: {error}")
        self._relay.part()
        self._try("remove cgroup and network", self._around.leave)
        exit_code = error.exit_code if isinstance(error, errors.CannotRun) else _NOT_RUN
        self._before = replace(self._before, exit_code=exit_code, restarts=self._again.count)
        if not self._again.ended(exit_code):
            self._give_up()

    def _ours(self, status: Status) -> state.State:
        return own_state.cared_for(self._before, status, self._around.cgroup)

    def _give_up(self) -> None:
        """Undo what was prepared; helpers such as a CRIU that restores are killed."""
        self._helpers.kill()
        self._reliance.release()
        self._try("remove cgroup and network", self._around.leave)
        self._state = self._before
        self._end()
        for client in list(self._waiting):
            gave_up = errors.WrongState(f"{self._around.record.name} was not started")
            self._clients.answer_error(client, gave_up)

    def _note(self, action: str, **attributes: object) -> None:
        events.note(self._around.host, self._around.record, action, **attributes)

    def _try(self, what: str, act: Callable[[], None]) -> None:
        """Do it; what fails is told to the log and left to ``rm``, so that the rest is done."""
        try:
            act()
        except (OSError, errors.PymigrateError) as error:
            guard.say(f"could not {what}: {error}")

    def _end(self) -> None:
        self._over = True
        self._try("write down how it ended", self._write_state)
        self._relay.close()
        self._clients.close()
        (self._directory / control.SOCKET_NAME).unlink(missing_ok=True)

    def _write_state(self) -> None:
        own_state.write(self._directory, self._state)


def main(arguments: Sequence[str]) -> int:
    """Be the supervisor of the container in the directory that the argument or the order names."""
    daemon.detach()
    syscalls.set_name(launch.PROCESS_NAME)
    keeper = socket.socket(fileno=daemon.CONNECTION_FD)
    keeper.set_inheritable(False)
    _load_while_idle(keeper)
    order = control.receive(keeper)
    if order is None:
        return 0  # it was not needed
    directory = Path(arguments[0] if arguments else str(order[0]["directory"]))
    if not arguments:
        syscalls.set_command_line(launch.title(directory))
    launch.open_log(directory)
    try:
        supervisor = Supervisor(directory, keeper)
        supervisor.prepare(plugged=order[0].get("plugged") is not False)
    except errors.PymigrateError as error:
        return _report(keeper, error)
    except OSError as error:
        return _report(keeper, errors.HostError(f"cannot prepare {directory.name}: {error}"))
    _tell(keeper, {"ok": True})
    supervisor.run()
    return 0


def _load_while_idle(keeper: socket.socket) -> None:
    """Import what a start needs, one by one, as long as the order has not come."""
    for name in ("network", "mounts", "rootfs", "init"):
        if select.select([keeper], [], [], 0)[0]:
            return
        import_module(f"pymigrate.runtime.{name}")


def _report(keeper: socket.socket, error: errors.PymigrateError) -> int:
    _tell(keeper, control.error_to_document(error))
    return error.exit_code


def _tell(keeper: socket.socket, message: Mapping[str, object]) -> None:
    # A keeper that has died is no reason to leave things behind: run() sees its end.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(keeper, message)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
