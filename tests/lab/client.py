"""The test's end of a client program in the lab (clients.py)."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self

from tests.lab.registry import LabError

PROGRAM = Path(__file__).with_name("clients.py")
PATIENCE = 60.0
ANSWERING = (
    "sql",
    "redis-ask",
    "redis-change",
    "redis-first",
    "redis-read",
    "lines",
)  # others report what they saw since the last line
CONNECTING = 30.0  # seconds for a server to come up


class Standpoint(Protocol):
    """Where a client can run: a place of the lab, or of another one."""

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | IO[Any] | None,
        stderr: int | IO[Any] | None,
    ) -> subprocess.Popen[str]:
        """Start a command there, with its standard output in a pipe."""
        ...


class Client:
    """A client that runs in a place of the lab.

        with Client(lab.client, "redis-writer", "10.88.0.5", 6379) as writer:
            lab["alpha"].pymigrate("migrate", "redis", "root@beta")
            print(writer.ask("moved")["longest_gap"], writer.finish()["lost"])

    Leaving the block kills it if it has not been finished.
    """

    def __init__(self, place: Standpoint, kind: str, host: str, port: int, *options: str) -> None:
        """Start it; wait until it is connected.

        Raises:
            LabError: it could not connect, within 30 s of trying.

        """
        self.kind = kind
        deadline = time.monotonic() + CONNECTING
        command: list[str | Path] = [
            "/usr/bin/python3",
            "-I",
            "-S",
            PROGRAM,
            kind,
            host,
            str(port),
            *options,
        ]
        while True:
            self._unread = b""
            self._process = place.popen(command, stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
            first = self._next()
            if first["event"] == "ready":
                self.ready = first
                return
            self.close()
            if time.monotonic() > deadline:
                raise LabError(f"{kind} at {host}:{port}: {first}")
            select.select([], [], [], 0.02)  # the server is still starting

    def _next(self, patience: float = PATIENCE) -> dict[str, Any]:
        said = self._process.stdout
        assert said is not None
        deadline = time.monotonic() + patience
        while b"\n" not in self._unread:
            readable, _, _ = select.select([said], [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise LabError(f"{self.kind} said nothing for {patience:g} s")
            data = os.read(said.fileno(), 1 << 16)
            if not data:
                raise LabError(f"{self.kind} ended and said {self._unread.decode()!r}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            document = json.loads(line)
        except ValueError:
            raise LabError(f"{self.kind} said {(line + self._unread).decode()!r}") from None
        if not isinstance(document, dict):
            raise LabError(f"{self.kind} said {line!r}")
        return document

    def _expect(self, event: str, patience: float) -> dict[str, Any]:
        document = self._next(patience)
        if document["event"] != event:
            raise LabError(f"{self.kind} said {document}")
        return document

    def ask(self, line: str, *, patience: float = PATIENCE) -> dict[str, Any]:
        """Send a line, which asks for a window's report or is a command; return the answer.

        Raises:
            LabError: the client saw an error, such as a broken connection, or says nothing.

        """
        self.order(line)
        return self.answer(patience=patience)

    def order(self, line: str) -> None:
        """Send a line, of which `answer` returns what came of it. Raises LabError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LabError(f"{self.kind} has ended: {self._next()}") from None

    def answer(self, *, patience: float = PATIENCE) -> dict[str, Any]:
        """Wait for the answer to a line. Raises LabError."""
        return self._expect("answer" if self.kind in ANSWERING else "window", patience)

    def finish(self, *, patience: float = PATIENCE) -> dict[str, Any]:
        """End it and return its last words.

        Raises:
            LabError: the client saw an error.

        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        document = self._expect("done", patience)
        self.close()
        return document

    def close(self) -> None:
        """Kill it, unless it has ended. May be repeated."""
        self._process.kill()
        with self._process:
            pass

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill it."""
        self.close()
