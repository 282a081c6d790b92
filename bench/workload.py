"""The workload and the client that watches it: built from C, run in the lab."""

from __future__ import annotations

import os
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.harness import BenchError
from tests.lab import Host, Place

SOURCES = Path(__file__).with_name("workloads")
CONNECTING = 30.0  # seconds for a workload to make its memory, or to come back
PATIENCE = 60.0  # seconds for any other answer


@dataclass(frozen=True)
class Workload:
    """So much memory behind a UDP port."""

    mib: int
    port: int = 7007
    content: str = "mix"  # or "random"

    @property
    def argv(self) -> list[str]:
        """The command, in an image made by `build_image`."""
        return ["/memory", str(self.port), str(self.mib), self.content]


def build(name: str, into: Path) -> None:
    """Compile workloads/NAME.c to a static program `into`/NAME."""
    source = SOURCES / f"{name}.c"
    command = ["gcc", "-O2", "-static", "-Wall", "-Wextra", "-o", str(into / name), str(source)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        raise BenchError(f"{source.name} does not compile:\n{said.stderr}")


def build_image(host: Host, directory: str) -> None:
    """Make a root file system at `directory` of the host, for all subjects the same."""
    outside = host.outside(directory)
    for name in ("dev", "proc", "sys", "run", "tmp", "etc"):
        (outside / name).mkdir(parents=True)
    for name in ("memory", "true"):
        build(name, outside)


@dataclass(frozen=True)
class Seen:
    """What the client saw since its last reset."""

    longest_gap: float
    own_gap: float
    answers: int


@dataclass(frozen=True)
class Moved:
    """What the client saw of a move, in seconds.

    ``blackout`` is from the last answer of the source to the first of the target; ``stall`` the
    longest time between two answers, or until now, from then on.
    """

    blackout: float
    stall: float


class Ticker:
    """The client: it asks once a millisecond, from its own place, and notes when answers come."""

    def __init__(
        self, place: Place, program: str, address: str, port: int, *, then: str | None = None
    ) -> None:
        """Start it; the workload need not be there yet, and may have address `then` later."""
        self._unread = b""
        self._process = place.popen(
            [program, address, str(port), *([] if then is None else [then])],
            stdin=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def watch(self) -> None:
        """Wait until the workload answers, then forget all gaps before."""
        self.expect_answer()
        self.answered(CONNECTING)
        self._order("reset")
        self._read("reset", PATIENCE)

    def expect_answer(self) -> None:
        """Note the first answer to a question asked from now on: `answered` returns its time."""
        self._order("await")

    def answered(self, patience: float = CONNECTING) -> float:
        """Return when the answer came (time.monotonic), waiting for it.

        Raises:
            BenchError: it did not come.

        """
        return float(self._read("answered", patience)[0])

    def report(self) -> Seen:
        """Return what was seen since `watch`."""
        self._order("report")
        longest, _, own, answers = self._read("gap", PATIENCE)
        return Seen(float(longest), float(own), int(answers))

    def moved(self) -> Moved:
        """Return what was seen since `watch` of a move, as far as it is now.

        Raises:
            BenchError: the workload did not move once.

        """
        self._order("moved")
        times, blackout, stall = self._read("moved", PATIENCE)
        if times != "1":
            raise BenchError(f"the client saw {times} moves")
        return Moved(float(blackout), float(stall))

    def verify(self) -> None:
        """Let the workload compare all of its memory with what it should be.

        Raises:
            BenchError: some of it is not.

        """
        self._order("verify")
        (damaged,) = self._read("damaged", PATIENCE)
        if damaged != "0":
            raise BenchError(f"{damaged} pages of the workload's memory are damaged")

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError("the client has ended") from None

    def _read(self, word: str, patience: float) -> list[str]:
        said = self._process.stdout
        assert said is not None
        deadline = time.monotonic() + patience
        while b"\n" not in self._unread:
            readable, _, _ = select.select([said], [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise BenchError(f"the workload did not answer the client for {patience:.0f} s")
            data = os.read(said.fileno(), 4096)
            if not data:
                raise BenchError(f"the client ended and said {self._unread.decode()!r}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        first, *rest = line.decode().split()
        if first != word:
            raise BenchError(f"the client said {line.decode()!r}")
        return rest

    def close(self) -> None:
        """End it. May be repeated."""
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
        """End it."""
        self.close()
