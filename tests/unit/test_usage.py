"""What the benchmarks say that programs use: of made-up and of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.usage import Usage, look


def test_a_process_is_read_whatever_its_name_is(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    words = ["S", *["0"] * 10, str(3 * ticks), str(2 * ticks), "0"]
    (tmp_path / "stat").write_text(f"12 (a (b) c) {' '.join(words)}\n")
    (tmp_path / "status").write_text(
        "Name:\ta\nVmHWM:\t     2048 kB\nVmRSS:\t 1 kB\nRssAnon:\t 512 kB\n"
    )

    assert ("a (b) c", 5.0, 2 << 20, 512 << 10) == look(tmp_path)
    assert None is look(tmp_path / "gone")


def test_what_programs_had_at_once_is_their_own_memory_and_no_file() -> None:
    running: list[int] = []
    program = "a = bytearray(64 << 20); print('ready', flush=True); input()"
    with Usage(lambda: list(running)) as usage:
        for _ in range(2):
            with subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as process:
                assert process.stdout is not None
                assert b"ready\n" == process.stdout.readline()
                running[:] = [process.pid]
                usage.look()
                process.communicate(b"\n")

    assert 64 << 20 < usage.anonymous < 128 << 20  # one after the other
    assert usage.peak > 128 << 20


def test_only_what_began_meanwhile_counts_as_memory_but_all_time_does() -> None:
    before = subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE)
    running = [before.pid]
    program = "a = bytearray(64 << 20); print('ready', flush=True); input()"
    with Usage(lambda: list(running)) as usage:
        after = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert after.stdout is not None
        assert b"ready\n" == after.stdout.readline()
        running.append(after.pid)
    for process in (before, after):
        process.communicate(b"\n")

    assert 64 << 20 < usage.peak < 128 << 20
    assert usage.seconds >= 0
