"""What a supervisor does with a container's surroundings for those who restore it or copy files.

Programs run as its children and in its mounts; descriptors of its namespaces and pipes are given
away.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from pymigrate.runtime import errors, stdio, syscalls
from pymigrate.runtime.children import Helpers
from pymigrate.runtime.clients import Fields, Operation, Reply
from pymigrate.runtime.relay import Relay
from pymigrate.runtime.surroundings import Surroundings


class Services:
    """The operations of one supervisor that concern its surroundings and not its state."""

    def __init__(
        self,
        around: Surroundings,
        helpers: Helpers,
        relay: Relay,
        must_be_empty: Callable[[], None],
    ) -> None:
        """Take what is served from; ``must_be_empty`` raises WrongState if the container runs."""
        self._around = around
        self._helpers = helpers
        self._relay = relay
        self._must_be_empty = must_be_empty

    def operations(self) -> dict[str, Operation]:
        """Return what clients can ask of us."""
        return {
            "expect_restore": self._expect_restore,
            "lend": self._lend,
            "mntns": self._mntns,
            "mount": self._mount,
            "move_network": self._move_network,
            "netns": self._netns,
            "spawn": self._spawn,
            "stdio": self._stdio,
        }

    def _expect_restore(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        self._around.expect_restore()
        return Reply()

    def _mount(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        self._around.mount()
        return Reply()

    def _lend(self, _client: socket.socket, _fields: Fields, fds: list[int]) -> Reply:
        self._must_be_empty()
        self._around.lend(fds)
        return Reply()

    def _spawn(self, _client: socket.socket, fields: Fields, fds: list[int]) -> Reply:
        argv = fields.get("argv")
        if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
            raise errors.ProtocolError("spawn needs argv, a list of texts")
        in_cgroup = fields.get("in_cgroup") is True
        in_network = fields.get("in_network") is True
        self._around.offer_criu_cache()

        def before() -> None:
            if in_cgroup:
                self._around.cgroup.join()
                if self._around.spec.private("cgroup"):
                    syscalls.unshare(syscalls.CLONE_NEWCGROUP)
            if in_network:
                syscalls.setns(self._around.netns, syscalls.CLONE_NEWNET)

        return Reply({"pid": self._helpers.spawn(argv, fds, before)})

    def _stdio(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        self._must_be_empty()
        self._relay.drop_streams()  # of a restore that failed
        theirs, ours = stdio.make_pipes(with_stdin=self._around.record.stdin_open)
        self._relay.add_streams(ours)
        ends = theirs.items()
        return Reply({"names": list(ends)}, list(ends.values()))

    def _netns(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        return Reply({"names": ["netns"]}, [os.dup(self._around.netns)])

    def _mntns(self, _client: socket.socket, _fields: Fields, _fds: list[int]) -> Reply:
        fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        return Reply({"names": ["mntns"]}, [fd])

    def _move_network(self, _client: socket.socket, fields: Fields, _fds: list[int]) -> Reply:
        pid = fields.get("pid")
        self._must_be_empty()
        if not isinstance(pid, int):
            raise errors.ProtocolError("move_network needs a PID")
        self._around.move_network(pid)
        return Reply()
