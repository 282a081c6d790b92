"""What a pager does with pages that hold before there are processes for them; the kernel is played.

CRIU is played by what it says to the socket; a userfaultfd is a pipe that says of what a process
waits for, and what is put in place goes into a queue.
"""

from __future__ import annotations

import ctypes
import os
import queue
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pymigrate.checkpoint.pager import SOCKET, Pager
from pymigrate.checkpoint.ready import PAGE, Content, Ready
from pymigrate.runtime import userfault
from pymigrate.runtime.errors import ProtocolError, RestoreFailed
from pymigrate.runtime.userfault import Event, Message
from tests.unit.test_filling import Keeper

INNER = 7
PATIENCE = 20.0
_FINISHED = 0x52535446
ROOM = 64 << 20


@dataclass
class Kernel:
    """What the pager asked of the kernel, and a way to have a process wait for a page."""

    placed: queue.Queue[tuple[int, bytes]] = field(default_factory=queue.Queue)
    woken: queue.Queue[tuple[int, int]] = field(default_factory=queue.Queue)
    waits: int = -1

    def wait_for(self, address: int) -> None:
        self.tell(Event.PAGEFAULT, 0, address, 0)

    def tell(self, *message: int) -> None:
        os.write(self.waits, struct.pack("=4Q", *message))

    def read(self, descriptor: int, _into: memoryview) -> list[Message]:
        data = os.read(descriptor, 32 * userfault.MESSAGES)
        return [Message(*each) for each in struct.iter_unpack("=4Q", data)]

    def wake(self, _fd: int, start: int, length: int) -> None:
        self.woken.put((start, length))

    def copy(self, _fd: int, address: int, source: int, length: int) -> None:
        self.placed.put((address, ctypes.string_at(source, length)))

    def zero(self, _fd: int, address: int, length: int) -> None:
        if length:
            self.placed.put((address, bytes(length)))

    def next(self) -> tuple[int, bytes]:
        return self.placed.get(timeout=PATIENCE)


@dataclass
class Scene:
    """A pager, the kernel it speaks to, and what it asks of the source."""

    pager: Pager
    kernel: Kernel
    wanted: queue.Queue[tuple[int, int]]
    attached: threading.Event
    criu: socket.socket

    def finish_restore(self) -> None:
        """Say as CRIU does that all processes are there."""
        self.criu.sendall(struct.pack("=i", _FINISHED))
        assert self.attached.wait(PATIENCE)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    kernel, keeper = Kernel(), Keeper()
    for name in ("read", "copy", "zero", "wake"):
        monkeypatch.setattr(userfault, name, getattr(kernel, name))
    wanted: queue.Queue[tuple[int, int]] = queue.Queue()
    attached = threading.Event()
    pager = Pager(
        tmp_path, keeper, lambda *which: wanted.put(which), lambda _: attached.set(), room=ROOM
    )
    hears, kernel.waits = os.pipe()
    with socket.socket(socket.AF_UNIX) as criu:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket may only have 107 bytes
        try:
            criu.connect(SOCKET)
        finally:
            os.chdir(here)
        criu.sendall(struct.pack("=i", INNER))
        socket.send_fds(criu, [b"x"], [hears])
        os.close(hears)
        yield Scene(pager, kernel, wanted, attached, criu)
    pager.close()
    keeper.drop_kept()
    os.close(kernel.waits)


def settled(pager: Pager, address: int, letters: bytes) -> None:
    """Send pages for good, each full of a letter."""
    content = b"".join(bytes([letter]) * PAGE for letter in letters)
    pager.put_aside(INNER, address, memoryview(content))
    pager.ready.settle(INNER, address, len(content), Content.ASIDE)


def test_what_holds_is_put_in_place_as_soon_as_all_processes_are_there(scene: Scene) -> None:
    settled(scene.pager, 0x10000, b"ab")
    scene.pager.ready.settle(INNER, 0x40000, PAGE, Content.ZERO)
    assert scene.kernel.placed.empty()  # what is not registered yet would be passed over

    scene.finish_restore()

    assert (0x10000, b"a" * PAGE + b"b" * PAGE) == scene.kernel.next()
    assert (0x40000, bytes(PAGE)) == scene.kernel.next()
    scene.pager.finish()
    assert [3, 3] == [scene.pager.filled, scene.pager.ready.placed]
    assert os.fstat(scene.pager._early._files[INNER]).st_blocks == 0  # it is not there twice


def test_runs_that_arrive_are_put_in_place_with_what_is_theirs(scene: Scene) -> None:
    scene.finish_restore()
    content = memoryview(b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    addresses, counts = np.array([0x10000, 0x40000], np.uint64), np.array([1, 2], np.uint64)

    scene.pager.fill_all(INNER, addresses, counts, content)
    scene.pager.fill_all(INNER + 1, addresses, counts, content)  # there is nobody

    assert (0x10000, b"a" * PAGE) == scene.kernel.next()
    assert (0x40000, b"b" * PAGE + b"c" * PAGE) == scene.kernel.next()
    assert scene.kernel.placed.empty()


def test_what_is_waited_for_goes_before_what_is_ready(scene: Scene) -> None:
    """CRIU's own restorer may wait, and then for one page: beside it nothing may be registered."""
    settled(scene.pager, 0x10000, b"abcdef")

    scene.kernel.wait_for(0x10000 + 3 * PAGE)
    assert (0x10000 + 3 * PAGE, b"d" * PAGE) == scene.kernel.next()
    assert scene.kernel.placed.empty()

    scene.finish_restore()
    assert 6 * PAGE == len(scene.kernel.next()[1])
    assert scene.wanted.empty()  # it needed nobody else


def test_after_the_restore_what_is_beside_it_comes_along(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    put: queue.Queue[Ready] = queue.Queue()

    def note(run: Ready, _buffer: memoryview, *, is_urgent: bool = False) -> None:
        put.put(run)
        may_go_on.wait(PATIENCE)

    monkeypatch.setattr(scene.pager.ready, "_put", note)
    for address in (1 << 30, 0x10000):
        settled(scene.pager, address, b"abcdef")
    scene.finish_restore()
    assert 1 << 30 == put.get(timeout=PATIENCE).address
    scene.kernel.wait_for(0x10000 + 3 * PAGE)
    scene.kernel.wait_for(1 << 40)  # heard after that
    assert (INNER, 1 << 40) == scene.wanted.get(timeout=PATIENCE)
    may_go_on.set()

    around = Ready(INNER, 0x10000, 6 * PAGE, Content.ASIDE)
    assert around == put.get(timeout=PATIENCE)


@pytest.mark.parametrize("restored", [False, True])
def test_what_was_on_its_way_when_it_was_asked_for_is_put_in_place_at_once(
    scene: Scene, restored: bool
) -> None:
    """The source does not send it again, and before the restore the rest is not put in place."""
    if restored:
        scene.finish_restore()
    scene.kernel.wait_for(0x10000 + 2 * PAGE)
    assert (INNER, 0x10000 + 2 * PAGE) == scene.wanted.get(timeout=PATIENCE)

    settled(scene.pager, 0x10000, b"abcd")

    assert (0x10000 + 2 * PAGE, b"c" * PAGE) == scene.kernel.next()


def test_an_answer_is_put_in_place_at_once_and_asked_for_no_more(scene: Scene) -> None:
    """Also before all processes are there, and while what came with the rest is on its way."""
    address = 0x10000
    scene.kernel.wait_for(address)
    assert (INNER, address) == scene.wanted.get(timeout=PATIENCE)
    content = b"ab" * PAGE

    with scene.pager.ready.arriving():
        scene.pager.answer(INNER, address, len(content), memoryview(content))
        assert (address, content) == scene.kernel.next()
        scene.pager.answer(INNER, 0x20000, PAGE, None)
        assert (0x20000, bytes(PAGE)) == scene.kernel.next()

    scene.pager.ready.all_is_said()  # after which what is still waited for is zeros
    scene.kernel.wait_for(0x30000)
    assert (0x30000, bytes(PAGE)) == scene.kernel.next()


def test_once_all_was_spoken_of_the_rest_is_zeros(scene: Scene) -> None:
    """Nobody is asked for it any more, also not for what was asked for before."""
    settled(scene.pager, 0x10000, b"a")
    scene.finish_restore()
    assert 0x10000 == scene.kernel.next()[0]
    scene.kernel.wait_for(0x20000)
    assert (INNER, 0x20000) == scene.wanted.get(timeout=PATIENCE)

    scene.pager.ready.all_is_said()

    assert (0x20000, bytes(PAGE)) == scene.kernel.next()
    scene.kernel.wait_for(0x30000)
    assert (0x30000, bytes(PAGE)) == scene.kernel.next()
    assert scene.wanted.empty()


def test_what_was_unmapped_is_zeros_and_nothing_is_put_there(scene: Scene) -> None:
    """Who waits there has a mapping that has grown; around it all that is nobody's is cleared."""
    scene.finish_restore()
    scene.kernel.tell(Event.UNMAP, 0x12000, 0x15000, 0)
    assert (0x12000, 3 * PAGE) == scene.kernel.woken.get(timeout=PATIENCE)

    scene.kernel.wait_for(0x13000)
    assert [(0x13000, bytes(2 * PAGE)), (0x12000, bytes(PAGE))] == [
        scene.kernel.next() for _ in range(2)
    ]
    scene.pager.fill(INNER, 0x11000, memoryview(b"abcde" * PAGE))
    placed = [scene.kernel.next() for _ in range(2)]
    assert [(0x11000, PAGE), (0x15000, PAGE)] == [(at, len(each)) for at, each in placed]
    assert scene.wanted.empty()


def test_who_waits_where_something_was_moved_meanwhile_is_woken_and_asks_again(
    scene: Scene,
) -> None:
    scene.finish_restore()
    scene.kernel.wait_for(0x10000)
    assert (INNER, 0x10000) == scene.wanted.get(timeout=PATIENCE)
    scene.kernel.tell(Event.REMAP, 0x10000, 0x80000, PAGE)
    assert {(0x10000, PAGE), (0x80000, PAGE)} == {
        scene.kernel.woken.get(timeout=PATIENCE) for _ in range(2)
    }

    scene.pager.answer(INNER, 0x10000, PAGE, memoryview(b"a" * PAGE))
    assert (0x80000, b"a" * PAGE) == scene.kernel.next()
    scene.kernel.wait_for(0x10000)
    assert (0x10000, bytes(PAGE)) == scene.kernel.next()


def test_what_has_arrived_goes_before_what_is_ready(scene: Scene) -> None:
    settled(scene.pager, 0x10000, b"a")
    with scene.pager.ready.arriving():
        scene.finish_restore()
        scene.pager.fill(INNER, 0x20000, memoryview(b"b" * PAGE))
        scene.kernel.wait_for(0x10000)  # who waits does not wait for that
        assert [0x20000, 0x10000] == [scene.kernel.next()[0] for _ in range(2)]
        scene.kernel.wait_for(1 << 40)
        assert (INNER, 1 << 40) == scene.wanted.get(timeout=PATIENCE)
        assert scene.kernel.placed.empty()
    assert 0x10000 == scene.kernel.next()[0]


def test_memory_that_ends_before_there_are_processes_is_an_error(scene: Scene) -> None:
    settled(scene.pager, 0x10000, b"a")
    with pytest.raises(ProtocolError, match="before there were processes"):
        scene.pager.finish()


def test_nothing_holds_that_was_never_sent(scene: Scene) -> None:
    with pytest.raises(ProtocolError, match="never sent"):
        scene.pager.ready.settle(INNER, 0x10000, PAGE, Content.ASIDE)


def test_pages_behind_all_that_was_sent_are_an_error(scene: Scene) -> None:
    settled(scene.pager, 0x10000, b"a")
    scene.pager.ready.settle(INNER, 0x10000, 8 * PAGE, Content.ASIDE)
    scene.finish_restore()
    with pytest.raises(RestoreFailed, match="never sent"):
        scene.pager.finish()
