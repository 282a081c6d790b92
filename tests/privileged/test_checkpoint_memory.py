"""Checkpoint files of containers that write to their memory all the time: it is of one instant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from tests.lab import images
from tests.privileged.programs.conftest import PACKAGES
from tests.privileged.tool import Tool, until

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

# Each page is what its version says, but for the one that is just being written; and there are
# areas that come and go, each with the digest of what was put into it.
WRITER = """
import hashlib, mmap, os, random, signal

PAGE, N = 4096, 6000
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

def content(page, version):
    return hashlib.sha256(b"%d %d" % (page, version)).digest() * 128

def fresh():
    area = mmap.mmap(-1, random.randrange(1, 200) * PAGE, flags=PRIVATE)
    for at in range(0, len(area), random.choice([1, 1, 3, 30]) * PAGE):
        area[at:at + PAGE] = content(random.randrange(N), at)
    return area, hashlib.sha256(area).digest()

def bad():
    pages = sum(memory[page * PAGE:(page + 1) * PAGE] != content(page, versions[page])
                for page in range(N) if page != busy)
    return pages + sum(hashlib.sha256(area).digest() != digest for area, digest in others)

def on_signal(*_):
    global asked
    asked = True

def say(*words):
    with open(f"/said-{os.getpid()}", "a") as file:
        print(*words, file=file)

memory = mmap.mmap(-1, N * PAGE, flags=PRIVATE)
versions, others, busy, asked, rounds = [0] * N, [fresh()], -1, False, 0
signal.signal(signal.SIGUSR1, on_signal)
for page in range(N):
    memory[page * PAGE:(page + 1) * PAGE] = content(page, 0)
os.fork()
random.seed(os.getpid())
while True:
    page = random.randrange(N) if rounds % 4 else random.randrange(50)
    busy = page
    memory[page * PAGE:(page + 1) * PAGE] = content(page, versions[page] + 1)
    versions[page] += 1
    busy = -1
    rounds += 1
    if not rounds % 100:
        others.append(fresh())
    if len(others) > 30:
        del others[random.randrange(30)]
    if rounds == 1000:
        say("ready")
    if asked:
        asked = False
        say("found", bad())
"""
TWICE = 2  # processes


@pytest.fixture(scope="module")
def python() -> Path:
    """Return a root that has Python."""
    image = images.bootstrap("programs", PACKAGES)
    (layer,) = image.layers
    return image.root / "images" / "layers" / layer


@pytest.fixture
def tool(tmp_path: Path, python: Path) -> Iterator[Tool]:
    made = Tool(tmp_path)
    made.rootfs = python
    yield made
    for one in json.loads(made("ps", "-a", "--json").stdout):
        made("rm", "-f", one["name"])


def opened(tool: Tool, name: str) -> Container:
    return Container.open(Host.open(tool.root), name)


def said(tool: Tool, name: str) -> str:
    return "".join(path.read_text() for path in opened(tool, name).upper.glob("said-*"))


def is_sound(tool: Tool, name: str) -> bool:
    """Have each process look at all of its memory."""
    container = opened(tool, name)
    before = said(tool, name).count("found")
    for pid in container.cgroup.pids():
        os.kill(pid, signal.SIGUSR1)
    until(
        lambda: (
            said(tool, name).count("found") == before + TWICE
            or not container.state().status.is_alive
        )
    )
    return said(tool, name).count("found 0\n") == said(tool, name).count("found") == before + TWICE


@pytest.fixture
def writer(tool: Tool) -> Tool:
    tool.run("-d", "--name", "writer", "python3", "-c", WRITER)
    until(lambda: said(tool, "writer").count("ready") == TWICE)
    return tool


@pytest.mark.parametrize("how", ["zstd:1", "none"])
@pytest.mark.parametrize("memory", ["lazy", "eager"])
def test_memory_is_of_one_instant_and_the_container_goes_on(
    writer: Tool, tmp_path: Path, how: str, memory: str
) -> None:
    path = tmp_path / "out" / "file"
    path.parent.mkdir()

    words = ("checkpoint", "writer", "--leave-running", "--compress", how, "-o", str(path))
    phases = [each["name"] for each in json.loads(writer("--json", *words).stdout)["phases"]]

    assert "look" in phases
    assert [path] == [*path.parent.iterdir()]
    assert is_sound(writer, "writer")
    writer("archive", "verify", str(path))
    eager = ["--eager"] if memory == "eager" else []
    done = json.loads(writer("--json", "restore", str(path), "--name", "copy", *eager).stdout)
    assert (memory == "lazy") == done["lazy"]
    assert is_sound(writer, "copy")
    assert is_sound(writer, "writer")


def test_it_ends_when_its_file_is_complete_and_another_is_made_of_what_was_restored(
    writer: Tool, tmp_path: Path
) -> None:
    for number in range(3):
        path = tmp_path / f"file-{number}"
        writer("checkpoint", "writer", "--compress", "zstd:1", "-o", str(path))
        assert "stopped" == writer.state("writer")["status"]
        writer("restore", str(path))
        assert is_sound(writer, "writer")


def test_one_that_is_paused_is_written_down_as_it_stands(writer: Tool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    writer("pause", "writer")

    writer("checkpoint", "writer", "--leave-running", "--compress", "zstd:1", "-o", str(path))

    assert "paused" == writer.state("writer")["status"]
    writer("restore", str(path), "--name", "copy")
    assert is_sound(writer, "copy")
    writer("resume", "writer")
    assert is_sound(writer, "writer")


def test_a_signed_one_is_restored_lazily_and_an_encrypted_one_at_once(
    writer: Tool, tmp_path: Path
) -> None:
    key, secret, path = tmp_path / "key", tmp_path / "secret", tmp_path / "file"
    secret.write_text("a secret")
    kind = ("-q", "-t", "ed25519", "-N", "", "-f", str(key))
    subprocess.run(["ssh-keygen", *kind], check=True)
    keep = ("checkpoint", "writer", "--leave-running", "--compress", "zstd:1", "-o", str(path))

    writer(*keep, "--sign", str(key))
    words = ("restore", str(path), "--signed-by", f"{key}.pub", "--name")
    assert json.loads(writer("--json", *words, "signed").stdout)["lazy"]
    assert is_sound(writer, "signed")

    writer(*keep, "--encrypt", str(secret))
    words = ("restore", str(path), "--key-file", str(secret), "--name")
    assert not json.loads(writer("--json", *words, "sealed").stdout)["lazy"]
    assert is_sound(writer, "sealed")


@pytest.mark.parametrize("mib", [1, 40, 70])
def test_a_disk_that_is_full_while_it_runs_or_stands_still_leaves_it_running(
    writer: Tool, tmp_path: Path, mib: int
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "small", small], check=True)
    try:
        words = ("checkpoint", "writer", "--compress", "none", "-o", str(small / "file"))
        said_then = writer(*words, code=24).stderr
        assert "is full" in said_then
        assert "goes on as before" in said_then
        assert [] == [*small.iterdir()]
    finally:
        subprocess.run(["umount", small], check=True)
    assert is_sound(writer, "writer")
