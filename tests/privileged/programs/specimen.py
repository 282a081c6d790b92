"""A program that holds one of each kind of state, and tells over TCP what it holds.

Runs in a container: `python3 -c SOURCE`. One line in asks a question, one line of JSON answers.
Everything is made at the start, so what is found later has survived.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PIPED = b"in the pipe"
SENT = b"in the socket"
INTERFACE = b"eth0"
SIOCGIFHWADDR = 0x8927  # netdevice(7)
UNIX = "/tmp/specimen.sock"


class Specimen:
    """All the state."""

    def __init__(self) -> None:
        os.chdir("/var/tmp")
        os.umask(0o027)
        self.counts = [0, 0, 0]
        self.alarms = 0
        self.mutex = threading.Lock()
        self.threads = [
            threading.Thread(target=self._count, args=(number,), daemon=True) for number in range(3)
        ]
        self.memory = os.urandom(8 << 20)
        self.digest = hashlib.sha256(self.memory).hexdigest()
        self.pipe = os.pipe()
        os.write(self.pipe[1], PIPED)
        self.pair = socket.socketpair()
        self.pair[0].sendall(SENT)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(UNIX)
        self.listener.listen()
        self.unlinked = tempfile.TemporaryFile(dir="/var/tmp")  # noqa: SIM115  # stays open
        self.unlinked.write(b"0123456789")
        self.unlinked.seek(5)
        self.file = Path("/var/tmp/offset").open("w+b", buffering=0)  # noqa: SIM115
        self.file.write(b"abcdefghij")
        self.file.seek(3)
        self.locked = Path("/var/tmp/locked").open("wb")  # noqa: SIM115
        fcntl.flock(self.locked, fcntl.LOCK_EX)
        self.mapped_file = Path("/var/tmp/mapped").open("w+b")  # noqa: SIM115
        self.mapped_file.truncate(1 << 20)
        self.mapped = mmap.mmap(self.mapped_file.fileno(), 1 << 20)
        self.mapped[4096:4102] = b"mapped"
        self.eventfd = os.eventfd(7)
        self.child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        signal.signal(signal.SIGALRM, self._alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        for thread in self.threads:
            thread.start()

    def _count(self, number: int) -> None:
        while True:
            with self.mutex:
                self.counts[number] += 1
            time.sleep(0.01)

    def _alarm(self, *_: object) -> None:
        self.alarms += 1

    def still(self) -> dict[str, Any]:
        """Return what must be the same whenever it is asked."""
        return {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "child": self.child.pid,
            "threads": sorted(thread.native_id or 0 for thread in self.threads),
            "hostname": socket.gethostname(),
            "addresses": addresses(),
            "directory": str(Path.cwd()),
            "umask": umask(),
            "environment": dict(os.environ),
            "arguments": Path("/proc/self/cmdline").read_text().split("\0")[:2],
            "memory": hashlib.sha256(self.memory).hexdigest() == self.digest,
            "unlinked": [self.unlinked.tell(), os.pread(self.unlinked.fileno(), 99, 0).decode()],
            "file": [self.file.tell(), os.pread(self.file.fileno(), 99, 0).decode()],
            "mapped": bytes(self.mapped[4096:4102]).decode(),
            "descriptors": numbers("/proc/self/fd"),
            "processes": numbers("/proc"),
            "namespaces": sorted(path.name for path in Path("/proc/self/ns").iterdir()),
            "limits": Path("/proc/self/limits").read_text(),
            "nice": os.nice(0),
        }

    def moving(self) -> dict[str, Any]:
        """Return what only ever grows."""
        uptime = Path("/proc/uptime").read_text().split()[0]
        return {
            "counts": list(self.counts),
            "alarms": self.alarms,
            "monotonic": time.monotonic(),
            "boottime": time.clock_gettime(time.CLOCK_BOOTTIME),
            "uptime": float(uptime),
            "wall": time.time(),
        }

    def use(self) -> dict[str, Any]:
        """Use everything once more; what is used up here is asked for once only."""
        other = socket.socket(socket.AF_UNIX)
        other.connect(UNIX)
        served, _ = self.listener.accept()
        other.sendall(b"over a new connection")
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(b"to the child and back\n")
        self.child.stdin.flush()
        self.mapped[0:3] = b"now"
        self.pair[1].settimeout(5)
        return {
            "pipe": os.read(self.pipe[0], 99).decode(),
            "pair": self.pair[1].recv(99).decode(),
            "unix": served.recv(99).decode(),
            "unlinked": self.unlinked.read().decode(),
            "file": self.file.read().decode(),
            "mapped": os.pread(self.mapped_file.fileno(), 3, 0).decode(),
            "eventfd": os.eventfd_read(self.eventfd),
            "child": self.child.stdout.readline().decode(),
            "locked": is_locked("/var/tmp/locked"),
        }


def addresses() -> str:
    """Return our MAC address, IPv4 routes and addresses as the kernel shows them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, SIOCGIFHWADDR, struct.pack("256s", INTERFACE))
    files = ("/proc/net/route", "/proc/net/fib_trie")
    return answer[18:24].hex(":") + "".join(Path(file).read_text() for file in files)


def numbers(directory: str) -> list[int]:
    """List the names in a directory that are numbers."""
    return sorted(int(path.name) for path in Path(directory).iterdir() if path.name.isdigit())


def umask() -> int:
    """Return the umask, which can only be read by setting it."""
    current = os.umask(0)
    os.umask(current)
    return current


def is_locked(path: str) -> bool:
    """Say whether another open file description holds a lock on the file."""
    with Path(path).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def serve(specimen: Specimen) -> None:
    """Answer questions on port 7000, any number of connections, with epoll."""
    questions: dict[str, Callable[[], dict[str, Any]]] = {
        "still": specimen.still,
        "moving": specimen.moving,
        "use": specimen.use,
    }
    server = socket.create_server(("", 7000))
    poll = select.epoll()
    poll.register(server, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == server.fileno():
                connection, _ = server.accept()
                connections[connection.fileno()] = connection
                poll.register(connection, select.EPOLLIN)
                continue
            line = connections[descriptor].recv(4096).decode().strip()
            if line:
                answer = json.dumps(questions[line]())
                connections[descriptor].sendall(f"{answer}\n".encode())
            else:
                poll.unregister(descriptor)
                connections.pop(descriptor).close()


if __name__ == "__main__":
    serve(Specimen())
