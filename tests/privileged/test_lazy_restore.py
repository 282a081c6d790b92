"""Containers that run before their memory is there: never a wrong page, whatever happens meanwhile.

Where a test says how far the memory has come, the filler is a thread of the test's, and its gate
holds back all that nobody waits for.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pymigrate.checkpoint import archive_pages, filling, load, working_set
from pymigrate.checkpoint.archive import Archive
from pymigrate.checkpoint.archive_pages import ArchivePages
from pymigrate.checkpoint.fill_words import Plan
from pymigrate.checkpoint.lazily import Filler
from pymigrate.checkpoint.memory_map import PageFile
from pymigrate.checkpoint.page_places import PagePlaces
from pymigrate.migrate import snapshots
from pymigrate.migrate.snapshot_pages import SnapshotPages, memory, page_files
from pymigrate.runtime import lock
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import BadArchive, WrongState
from pymigrate.runtime.host import Host
from pymigrate.runtime.supervision import Supervision
from tests.lab import images
from tests.privileged.programs.conftest import PACKAGES
from tests.privileged.tool import Tool, until

pytestmark = [pytest.mark.privileged, pytest.mark.criu]

UPHEAVAL = """
import ctypes, hashlib, os, signal

libc = ctypes.CDLL(None)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
PAGE, N = 4096, 2048
SIZE = N * PAGE

def mmap(at=None, fixed=0):
    return libc.mmap(ctypes.c_void_p(at), ctypes.c_size_t(SIZE), 3, 0x22 | fixed, -1, 0)

def page(seed, i):
    return hashlib.sha256(b"%d %d" % (seed, i)).digest() * 128

def area(seed):
    at = mmap()
    for i in range(N):
        ctypes.memmove(at + i * PAGE, page(seed, i), PAGE)
    return at

def bad(seed, at, pages=range(N)):
    return sum(ctypes.string_at(at + i * PAGE, PAGE) != page(seed, i) for i in pages)

def not_zero(at, pages):
    return sum(any(ctypes.string_at(at + i * PAGE, PAGE)) for i in pages)

def munmap(at, pages):
    libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(pages * PAGE))

def child(act):
    pid = os.fork()
    if pid == 0:
        os._exit(1 if act() else 0)
    return pid

def result(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def in_child():
    munmap(areas[0], N // 2)
    grandchild = child(lambda: bad(2, areas[2]))
    mine = bad(0, areas[0], range(N // 2, N)) + bad(1, areas[1], range(0, N, 7))
    return mine + result(grandchild)

def say(*words):  # its output ends with its supervisor
    with open("/said", "a") as file:
        print(*words, file=file)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
areas = [area(seed) for seed in range(6)]
both = libc.mmap(None, ctypes.c_size_t(2 * SIZE), 3, 0x22, -1, 0)
for i in range(2 * N):
    ctypes.memmove(both + i * PAGE, page(6, i), PAGE)
say("ready")
signal.sigwait([signal.SIGUSR1])
forked = child(in_child)
new = mmap()
moved = libc.mremap(ctypes.c_void_p(areas[2]), ctypes.c_size_t(SIZE), ctypes.c_size_t(SIZE), 3,
                    ctypes.c_void_p(new))
half = range(N // 2)
libc.madvise(ctypes.c_void_p(areas[3]), ctypes.c_size_t(SIZE // 2), 4)
munmap(areas[4], N)
mmap(areas[4], 0x10)
munmap(both + SIZE, N)
grown = libc.mremap(ctypes.c_void_p(both), ctypes.c_size_t(SIZE), ctypes.c_size_t(2 * SIZE), 0)
assert grown == both  # over what it has just unmapped
first = [result(forked), bad(2, moved, range(0, N, 511)), not_zero(areas[3], half),
         not_zero(areas[4], range(0, N, 5)), not_zero(both + SIZE, range(0, N, 5))]
late = child(lambda: signal.sigwait([signal.SIGUSR1]) and bad(5, areas[5]) + bad(2, moved))
say("first", first)
signal.sigwait([signal.SIGUSR1])
os.kill(late, signal.SIGUSR1)
last = [result(late), bad(0, areas[0]), bad(1, areas[1]), bad(2, moved), not_zero(areas[3], half),
        bad(3, areas[3], range(N // 2, N)), not_zero(areas[4], range(N)), bad(5, areas[5]),
        bad(6, both), not_zero(both + SIZE, range(N))]
say("last", last)
signal.sigwait([signal.SIGUSR1])
"""
FIRST = "first [0, 0, 0, 0, 0]"
LAST = "last [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"


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


@pytest.fixture
def checkpointed(tool: Tool, tmp_path: Path) -> Path:
    """Write the program, which has filled its memory, into an archive."""
    tool.run("-d", "--name", "tree", "python3", "-c", UPHEAVAL)
    until(lambda: "ready" in said(tool, "tree"))
    path = tmp_path / "tree.tar"
    tool("checkpoint", "tree", "--compress", "zstd:1", "-o", str(path))
    return path


def opened(tool: Tool, name: str = "tree") -> Container:
    return Container.open(Host.open(tool.root), name)


def said(tool: Tool, name: str) -> str:
    path = opened(tool, name).upper / "said"
    return path.read_text() if path.exists() else ""


def go_on(tool: Tool, name: str, wanted: str) -> None:
    """Let the program take its next step, and wait for what it finds."""
    pid = opened(tool, name).state().pid
    assert pid is not None
    os.kill(pid, signal.SIGUSR1)
    word = wanted.split(maxsplit=1)[0]
    until(lambda: word in said(tool, name) or not opened(tool, name).state().status.is_alive)
    assert wanted in said(tool, name)


@dataclass
class Gate:
    """Holds back what nobody waits for; ``spoiled`` makes it damaged when it is let through.

    ``brought`` are the blocks of it, in the order in which they were asked for.
    """

    open: threading.Event = field(default_factory=threading.Event)
    spoiled: bool = False
    brought: list[working_set.Block] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def end(self) -> list[int]:
        """Wait until the filler has ended."""
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        return self.exit_codes


@dataclass(frozen=True)
class Gated:
    """Pages that come by a gate, if a thread that fetches ahead asks for them."""

    pages: ArchivePages
    gate: Gate

    @property
    def files(self) -> list[PageFile]:
        return list(self.pages.files)

    def block(self, file: PageFile, number: int) -> bytes:
        if threading.current_thread() not in self.gate.threads:
            self.gate.brought.append((file.name, number))
            assert self.gate.open.wait(50)
            if self.gate.spoiled:
                raise BadArchive("spoiled")
        return self.pages.block(file, number)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Have restores of this process be filled by threads of it."""
    made = Gate()

    @contextmanager
    def pages(plan: Plan, descriptors: Sequence[int]) -> Iterator[Gated]:
        with made_of(plan, descriptors) as found:
            yield Gated(found, made)

    @contextmanager
    def started(_program: str) -> Iterator[Filler]:
        ours, theirs = socket.socketpair()

        def fill() -> None:
            made.exit_codes.append(filling.fill(theirs, pages, Supervision.connect))

        made.threads.append(threading.Thread(target=fill))
        made.threads[-1].start()
        with ours:
            yield Filler(ours)

    monkeypatch.setattr(Filler, "started", started)
    yield made
    made.open.set()
    made.end()


@contextmanager
def made_of(plan: Plan, descriptors: Sequence[int]) -> Iterator[ArchivePages]:
    try:
        with archive_pages.opened(plan, descriptors) as found:
            yield found
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def restored(tool: Tool, path: Path) -> None:
    """Restore in this process."""
    assert load.load(Host.open(tool.root), path, load.Wishes()).lazy


def test_processes_change_their_memory_before_it_is_there(
    tool: Tool, checkpointed: Path, gate: Gate
) -> None:
    restored(tool, checkpointed)

    go_on(tool, "tree", FIRST)  # all of it by faults alone
    with pytest.raises(WrongState, match="not all of its memory"):
        opened(tool).check_whole()
    gate.open.set()
    assert [0] == gate.end()
    go_on(tool, "tree", LAST)
    opened(tool).check_whole()


def test_the_next_restore_begins_with_what_was_waited_for(
    tool: Tool, checkpointed: Path, gate: Gate
) -> None:
    restored(tool, checkpointed)
    go_on(tool, "tree", FIRST)  # all of it by faults alone
    gate.open.set()
    assert [0] == gate.end()
    hint = working_set.place(Host.open(tool.root), Archive.open(checkpointed).manifest)
    needed = working_set.read(hint)
    rest = set(gate.brought) - set(needed)
    assert needed
    assert rest
    gate.brought.clear()
    tool("rm", "-f", "tree")

    restored(tool, checkpointed)

    assert [0, 0] == gate.end()
    behind = [number for number, block in enumerate(gate.brought) if block in rest]
    ahead = [number for number, block in enumerate(gate.brought) if block in needed]
    assert max(ahead) < min(behind) + filling.THREADS  # they ask at the same time
    assert needed == working_set.read(hint)[: len(needed)]


def test_a_killed_supervisor_costs_no_memory(tool: Tool, checkpointed: Path, gate: Gate) -> None:
    restored(tool, checkpointed)
    supervisor = tool.supervisor("tree")

    os.kill(supervisor.pid, signal.SIGKILL)
    assert lock.await_end(supervisor, 10)
    gate.open.set()
    assert [0] == gate.end()

    go_on(tool, "tree", FIRST)
    go_on(tool, "tree", LAST)


def test_a_page_that_cannot_be_read_ends_the_container_and_ps_says_why(
    tool: Tool, checkpointed: Path, gate: Gate
) -> None:
    restored(tool, checkpointed)
    before = said(tool, "tree")

    gate.spoiled = True
    gate.open.set()
    assert [1] == gate.end()

    until(lambda: tool.state("tree")["status"] == "stopped")
    assert "its memory could not be brought: spoiled" in tool("ps", "-a").stdout
    assert "its memory could not be brought: spoiled" == tool.state("tree")["failure"]
    assert before == said(tool, "tree")
    tool("restore", str(checkpointed))  # it is still good
    go_on(tool, "tree", FIRST)


def test_without_supervisor_a_page_that_cannot_be_read_ends_the_container(
    tool: Tool, checkpointed: Path, gate: Gate
) -> None:
    restored(tool, checkpointed)
    supervisor = tool.supervisor("tree")
    os.kill(supervisor.pid, signal.SIGKILL)
    assert lock.await_end(supervisor, 10)

    gate.spoiled = True
    gate.open.set()
    assert [1] == gate.end()

    assert not opened(tool).state().status.is_alive


def ended_for(tool: Tool, reason: str, done: subprocess.CompletedProcess[str]) -> None:
    """Check that the restore failed for this, or if it was faster, the container."""
    if done.returncode:
        assert reason in done.stderr
    until(lambda: tool.state("tree")["status"] == "stopped")
    if not done.returncode:
        assert reason in str(tool.state("tree")["failure"])


def test_an_altered_block_ends_the_container_with_the_reason(
    tool: Tool, tmp_path: Path, checkpointed: Path
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    path = tmp_path / "plain.tar"
    tool("restore", str(checkpointed), "--eager")
    tool("checkpoint", "tree", "--compress", "none", "-o", str(path))
    found = Archive.open(path)
    laid = found.lay_out(into)
    assert laid is not None
    laid.stream.close()
    sizes = {name: found.manifest.members[name] for name in laid.places}
    images = into / "checkpoint"
    files = archive_pages.page_files(sizes, images)
    pages = ArchivePages.of(path, laid.file, laid.places, files, images)
    file = pages.files[0]
    number = next(
        number
        for number in range(file.blocks)
        if sum(e.length for e in file.within(number)) == file.length(number)
    )
    with path.open("r+b") as stream:
        stream.seek(laid.places["checkpoint/pages-1.img"] + file.begin(number) + 1000)
        stream.write(b"x")

    ended_for(tool, "was altered", tool("restore", str(path), code=None))
    assert "damaged" in tool("restore", str(path), "--eager", code=33).stderr
    tool("restore", str(checkpointed))
    go_on(tool, "tree", FIRST)


def test_several_restores_of_one_archive_side_by_side(tool: Tool, checkpointed: Path) -> None:
    copies = ["tree", "copy", "third"]
    for name in copies:
        told = json.loads(tool("restore", str(checkpointed), "--name", name, "--json").stdout)
        assert told["lazy"]
    checkpointed.unlink()  # whoever has begun needs no name
    for name in copies:
        go_on(tool, name, FIRST)
        go_on(tool, name, LAST)


def test_eager_has_all_of_it_at_once(tool: Tool, checkpointed: Path) -> None:
    told = json.loads(tool("restore", str(checkpointed), "--eager", "--json").stdout)
    assert not told["lazy"]
    with opened(tool).supervision() as supervision:
        assert 0 == supervision.count_kept()
    go_on(tool, "tree", FIRST)


def test_a_checkpoint_waits_for_the_memory(tool: Tool, tmp_path: Path, checkpointed: Path) -> None:
    assert json.loads(tool("restore", str(checkpointed), "--json").stdout)["lazy"]
    again = tmp_path / "again.tar"
    tool("checkpoint", "tree", "--compress", "none", "-o", str(again))
    tool("restore", str(again))
    go_on(tool, "tree", FIRST)
    go_on(tool, "tree", LAST)


def test_a_container_ends_with_what_brings_its_memory(tool: Tool) -> None:
    tool.run("-d", "--name", "tree", "sleep", "1000")
    container = opened(tool)
    with container.supervision() as supervision:
        with container.supervision() as relied:
            relied.rely()
            supervision.begin_wait()
        assert 137 == supervision.wait()
    assert "memory was killed" in str(tool.state("tree")["failure"])
    tool("start", "tree")
    assert tool.state("tree")["failure"] is None


@pytest.fixture
def snapshot(tool: Tool) -> str:
    """Add a snapshot of the program, which has filled its memory and has ended."""
    tool.run("-d", "--name", "tree", "python3", "-c", UPHEAVAL)
    until(lambda: "ready" in said(tool, "tree"))
    identity: str = json.loads(tool("snapshot", "create", "tree", "--json").stdout)["id"]
    tool("kill", "tree")
    until(lambda: tool.state("tree")["status"] == "stopped")
    return identity


def test_a_snapshot_is_restored_before_its_memory_is_there(tool: Tool, snapshot: str) -> None:
    for name in ("tree", "copy"):
        words = ("restore", snapshot, "--name", name, "--json")
        assert json.loads(tool("snapshot", *words).stdout)["lazy"]
    tool("snapshot", "rm", snapshot)
    tool("snapshot", "prune")  # waits for those who still read
    for name in ("tree", "copy"):
        go_on(tool, name, FIRST)
        go_on(tool, name, LAST)


def test_a_snapshot_is_restored_eagerly_if_asked(tool: Tool, snapshot: str) -> None:
    told = json.loads(tool("snapshot", "restore", snapshot, "--eager", "--json").stdout)
    assert not told["lazy"]
    go_on(tool, "tree", FIRST)


def test_an_altered_chunk_ends_the_container_with_the_reason(
    tool: Tool, tmp_path: Path, snapshot: str
) -> None:
    with snapshots.opened(str(tool.root / "snapshots"), None) as repository:
        found = repository.snapshot(snapshot)
        contents = repository.contents()
        into = tmp_path / "into"
        into.mkdir()
        for member in found.members:
            if "pagemap" in member.name:
                repository.extract(contents, member, into / Path(member.name).name)
        places = PagePlaces.find(repository, contents, memory(found).values())
        pages = SnapshotPages(repository, places, page_files(places, into))
        needed: set[tuple[int, int]] = set()
        later: set[tuple[int, int]] = set()
        for file in pages.files:
            for number in range(file.blocks):
                lazy = sum(extent.length for extent in file.within(number))
                into_set = later if lazy == file.length(number) else needed
                into_set.update(pages.blobs(file, number))
        pack, blob = max(later - needed)
        path = tool.root / "snapshots/packs" / contents.names[pack]
        start = int(contents.tables[pack].starts[blob])
    path.chmod(0o600)
    with path.open("r+b") as stream:
        stream.seek(start + 100)
        stream.write(b"altered")

    done = tool("snapshot", "restore", snapshot, code=None)
    ended_for(tool, f"pack {contents.names[pack]}, blob {blob} is damaged", done)
