"""A limit that a benchmark raises is put back, whatever happens to the benchmark."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import BenchError
from bench.limits import raised

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PATIENCE = 20.0  # seconds for a process to end
HOLD = """\
import sys
from pathlib import Path
from bench.limits import raised
with raised(Path(sys.argv[1]), 400):
    print("raised", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def limit(tmp_path: Path) -> Path:
    path = tmp_path / "limit"
    path.write_text("100\n")
    return path


def test_it_is_raised_and_put_back(limit: Path) -> None:
    with raised(limit, 400):
        assert limit.read_text() == "400\n"

    assert limit.read_text() == "100\n"


def test_it_is_put_back_after_an_error(limit: Path) -> None:
    with pytest.raises(BenchError, match="the peer failed"), raised(limit, 400):
        raise BenchError("the peer failed")

    assert limit.read_text() == "100\n"


@pytest.mark.parametrize("least", [100, 40])
def test_what_is_enough_is_not_touched(limit: Path, least: int) -> None:
    with raised(limit, least):
        assert limit.read_text() == "100\n"


def test_what_somebody_set_since_stays(limit: Path) -> None:
    with raised(limit, 400):
        limit.write_text("800\n")

    assert limit.read_text() == "800\n"


def test_it_says_if_it_cannot_be_raised() -> None:
    fixed = Path("/proc/sys/kernel/cap_last_cap")  # nobody can write to it

    with pytest.raises(BenchError, match="cannot be raised to 1000"), raised(fixed, 1000):
        pytest.fail("it was not raised")


def test_it_is_put_back_when_the_benchmark_is_killed(limit: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, limit],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as benchmark:
        assert benchmark.stdout is not None
        assert benchmark.stdout.readline() == "raised\n"
        held = limit.read_text()
        children = Path(f"/proc/{benchmark.pid}/task/{benchmark.pid}/children").read_text()
        guard = os.pidfd_open(int(children))
        benchmark.send_signal(signal.SIGKILL)
        ended, _, _ = select.select([guard], [], [], PATIENCE)
        os.close(guard)

    assert ended
    assert (held, limit.read_text()) == ("400\n", "100\n")
