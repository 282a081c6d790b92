"""Trees sent in rounds: whatever happens between and during rounds, the last makes them equal."""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymigrate.runtime import syscalls, tree, tree_doubts, tree_index, tree_sending
from pymigrate.runtime.errors import HostError
from pymigrate.runtime.tree_apply import apply
from pymigrate.runtime.tree_records import Link, Record, Write, encode
from pymigrate.runtime.tree_sending import Sender
from tests.fakes.tree_upheaval import Deed, deeds
from tests.fakes.trees import look

LIMITS = tree.Limits()
PAGE = 16384


class Pair:
    """A tree, and the other host's copy of it."""

    def __init__(self, directory: Path, *, times_tell: bool = True) -> None:
        self.source, self.target = directory / "source", directory / "target"
        self.source.mkdir()
        self.target.mkdir()
        self._root = os.open(self.source, os.O_RDONLY)
        self.sender = Sender(self._root, overlay=False, times_tell=times_tell, seed=1)
        self.written: frozenset[tree_doubts.Stamp] | None = frozenset()

    def close(self) -> None:
        self.sender.close()
        os.close(self._root)

    def round(
        self,
        *,
        last: bool = False,
        meanwhile: Callable[[int], None] = lambda _: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> list[Record]:
        """Send a round and apply it; `meanwhile` is called with the number of each record."""
        taken: list[Record] = []
        stream = io.BytesIO()
        for number, record in enumerate(self.sender.records(self.written, last=last, clock=clock)):
            stream.write(b"".join(encode(record)))
            taken.append(record)
            meanwhile(number)
        stream.seek(0)
        if taken:
            apply(stream, self.target, limits=LIMITS, devices=True)
        return taken

    def sent(self, records: list[Record]) -> int:
        return sum(len(record.data) for record in records if isinstance(record, Write))

    def assert_equal(self) -> None:
        assert look(self.target) == look(self.source)
        assert tree.digest(self.target) == tree.digest(self.source)


def settled_clock() -> int:
    """Let a round begin long after all that has happened."""
    return time.time_ns() + 3_000_000_000


@contextlib.contextmanager
def pair(*, times_tell: bool = True) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as directory:
        made = Pair(Path(directory), times_tell=times_tell)
        try:
            yield made
        finally:
            made.close()


@given(rounds=st.lists(st.lists(deeds, max_size=12), min_size=1, max_size=5), tells=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_changes_between_rounds_arrive_and_the_last_sends_nothing_again(
    rounds: list[list[Deed]], *, tells: bool
) -> None:
    with pair(times_tell=tells) as both:
        for happened in rounds:
            for deed in happened:
                deed.do(both.source)
            both.round()
            both.assert_equal()
        assert [] == both.round(last=True)
        both.assert_equal()


@given(
    before=st.lists(deeds, max_size=12),
    rounds=st.lists(st.lists(st.tuples(st.integers(0, 30), deeds), max_size=12), max_size=4),
)
@settings(max_examples=250, deadline=None)
def test_after_any_changes_during_rounds_the_last_makes_the_trees_equal(
    before: list[Deed], rounds: list[list[tuple[int, Deed]]]
) -> None:
    with pair() as both:
        for deed in before:
            deed.do(both.source)
        for racing in rounds:

            def meanwhile(number: int, racing: list[tuple[int, Deed]] = racing) -> None:
                for when, deed in racing:
                    if when == number:
                        deed.do(both.source)

            both.round(meanwhile=meanwhile)
        both.round(last=True)
        both.assert_equal()


def test_a_link_that_got_the_inode_of_another_is_made_anew(tmp_path: Path) -> None:
    for _ in range(20):  # ext4 gives the inode out again as a rule, not always
        with pair() as both:
            (both.source / "link").symlink_to("one")
            both.round()
            (both.source / "link").unlink()
            (both.source / "link").symlink_to("two")
            both.round(last=True)
            both.assert_equal()


def test_a_name_seen_twice_while_its_file_moved_and_changed_has_the_new_content(
    both: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    (both.source / "a").write_bytes(b"a" * 100)
    both.round(clock=settled_clock)
    before = tree_index.look(both.sender._root, still=True).get(b"a")

    def look_slowly(*arguments: Any, **options: Any) -> tree_index.Index:
        """Return the index of a look that saw `a` before all of it happened, and `b` after."""
        (both.source / "a").rename(both.source / "b")
        (both.source / "b").write_bytes(b"b" * 100)
        return tree_index.look(*arguments, **options).but({b"a": before})

    with monkeypatch.context() as patched:
        patched.setattr(tree_sending, "look", look_slowly)
        assert any(isinstance(record, Link) for record in both.round(clock=settled_clock))
    both.round(last=True, clock=settled_clock)
    both.assert_equal()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


def test_of_a_large_file_only_the_blocks_that_changed_are_sent(both: Pair) -> None:
    file = both.source / "database"
    file.write_bytes(os.urandom(64 * PAGE) * 8)
    both.round()
    with file.open("r+b") as stream:
        for page in (3, 4, 77, 511):
            stream.seek(page * PAGE + 8192)
            stream.write(os.urandom(100))
    sent = both.round(last=True)

    both.assert_equal()
    assert both.sent(sent) == 4 * PAGE
    assert [record.offset // PAGE for record in sent if isinstance(record, Write)] == [3, 77, 511]


def test_a_renamed_file_is_not_sent_again(both: Pair) -> None:
    (both.source / "log").mkdir()
    (both.source / "log" / "now").write_bytes(os.urandom(40 * PAGE))
    both.round()
    (both.source / "log" / "now").rename(both.source / "log" / "before")
    (both.source / "log" / "now").write_bytes(b"new")
    (both.source / "log").rename(both.source / "logs")
    sent = both.round(last=True)

    both.assert_equal()
    assert both.sent(sent) == len(b"new")


def test_holes_stay_holes_and_what_becomes_one_is_punched(both: Pair) -> None:
    file = both.source / "sparse"
    with file.open("wb") as stream:
        stream.truncate(1 << 30)
        stream.seek(512 << 20)
        stream.write(os.urandom(1 << 20))
    sent = both.round()
    assert both.sent(sent) == 1 << 20
    assert (both.target / "sparse").stat().st_blocks * 512 < 2 << 20

    descriptor = os.open(file, os.O_RDWR)
    syscalls.fallocate(descriptor, 3, 512 << 20, 512 << 10)
    os.close(descriptor)
    sent = both.round(last=True)
    assert both.sent(sent) == 0
    assert (both.target / "sparse").stat().st_blocks == file.stat().st_blocks
    with file.open("rb") as here, (both.target / "sparse").open("rb") as there:
        for each in (here, there):
            each.seek(511 << 20)
        assert here.read(3 << 20) == there.read(3 << 20)


def test_a_file_that_shrank_and_grew_has_zeros_there_at_the_target_too(both: Pair) -> None:
    file = both.source / "file"
    file.write_bytes(b"x" * 10 * PAGE)
    both.round()
    os.truncate(file, 5)
    os.truncate(file, 10 * PAGE)
    both.round(last=True)

    both.assert_equal()


def test_a_file_that_shrinks_while_it_is_read_is_right_in_the_end(both: Pair) -> None:
    file = both.source / "file"
    file.write_bytes(os.urandom(3 << 20))
    both.round()
    file.write_bytes(os.urandom(3 << 20))

    def shrink(number: int) -> None:
        if number == 2:  # header, open, the first piece
            os.truncate(file, (1 << 20) + 100)

    both.round(meanwhile=shrink)
    os.truncate(file, 3 << 20)  # holes where the target had other content
    both.round(last=True)

    both.assert_equal()


def test_a_write_within_the_tick_of_the_round_is_found(both: Pair) -> None:
    # The same size, the same ctime as far as the index can know: only the content differs.
    file = both.source / "file"
    file.write_bytes(b"before")
    when = time.time_ns()
    both.round(clock=lambda: when)
    status = both.sender._sent.get(b"file") if both.sender._sent else None
    assert status is not None
    file.write_bytes(b"after!")
    real = tree_index.status_of(file.stat())
    pretended = real._replace(ctime_ns=status.ctime_ns, mtime_ns=status.mtime_ns)
    both.sender._sent = pretend(both.sender, b"file", pretended)
    os.utime(file, ns=(0, status.mtime_ns))
    both.round(last=True)

    both.assert_equal()


def pretend(sender: Sender, name: bytes, status: tree_index.Status) -> tree_index.Index:
    """Return what the sender knows, but for one status."""
    known = sender._sent
    assert known is not None
    directories = {key: dict(names) for key, names in known.directories.items()}
    directories[b""][name] = status
    return tree_index.Index(known.root, directories)


@contextlib.contextmanager
def mapping(path: Path) -> Iterator[ctypes.Array[ctypes.c_char]]:
    """Map a file with no descriptor of it left, which Python's own mmap keeps."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    size = path.stat().st_size
    with path.open("r+b") as stream:
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        at = libc.mmap(None, size, rights, mmap.MAP_SHARED, stream.fileno(), ctypes.c_long(0))
    assert at != ctypes.c_void_p(-1).value
    yield (ctypes.c_char * size).from_address(at)
    libc.munmap(at, size)


def test_this_file_system_shows_a_first_write_to_a_mapping_and_no_second(tmp_path: Path) -> None:
    """Why what is mapped when a round begins is not believed; see tree_doubts."""
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    directory = os.open(tmp_path, os.O_RDONLY)
    tells = tree_doubts.times_tell(directory)
    os.close(directory)
    if not tells:
        pytest.skip("the file system of the temporary directory does not keep times of mappings")
    with mapping(file) as mapped:
        before = file.stat().st_ctime_ns
        until = time.time_ns() + 3 * tree_doubts.TICK_NS
        while time.time_ns() < until:
            assert file.stat().st_ctime_ns == before
        mapped[0] = b"a"  # dirties the page
        assert file.stat().st_ctime_ns > before
        # A writeback in between makes the page clean again; it does not come every time.
        assert not all(shows_more_stores(file, mapped) for _ in range(10))
        assert tree_doubts.stamp(tree_index.status_of(file.stat())) in written()
    assert tree_doubts.stamp(tree_index.status_of(file.stat())) not in written()


def shows_more_stores(file: Path, mapped: ctypes.Array[ctypes.c_char]) -> bool:
    before = file.stat().st_ctime_ns
    until = time.time_ns() + 3 * tree_doubts.TICK_NS
    while time.time_ns() < until:
        mapped[1] = b"c"
    return file.stat().st_ctime_ns != before


def written() -> frozenset[tree_doubts.Stamp]:
    """Return what this very process writes."""
    found = tree_doubts.written([os.getpid()])
    if found is None:
        pytest.skip("only root may look at mappings")
    return found


def test_a_write_to_a_mapping_that_no_time_shows_is_found(both: Pair) -> None:
    file = both.source / "file"
    file.write_bytes(bytes(3 * PAGE))
    with mapping(file) as mapped:
        mapped[0] = b"a"
        both.written = written()
        both.round(clock=settled_clock)
        before = file.stat().st_ctime_ns
        mapped[PAGE] = b"b"
        mapped[0] = b"b"
        # The page was dirty before the round, so there is no fault that would set the time; another
        # page has one. Put back what it set, as far as one can: the sender knows that ctime.
        assert file.stat().st_ctime_ns >= before
        known = tree_index.status_of(file.stat())
        both.sender._sent = pretend(both.sender, b"file", known)
    sent = both.round(last=True, clock=settled_clock)

    assert both.sent(sent) == 2 * PAGE
    assert file.read_bytes() == (both.target / "file").read_bytes()


@pytest.mark.parametrize("how", ["open for writing", "open for reading"])
def test_only_who_may_write_is_believed_to_write(tmp_path: Path, how: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    with file.open("r+b" if how == "open for writing" else "rb"):
        stamp = tree_doubts.stamp(tree_index.status_of(file.stat()))
        assert (stamp in written()) == (how == "open for writing")


def test_what_nobody_writes_any_more_is_read_once_more_and_then_believed(both: Pair) -> None:
    file = both.source / "file"
    file.write_bytes(os.urandom(PAGE))
    stamp = tree_doubts.stamp(tree_index.status_of(file.stat()))
    both.written = frozenset({stamp})
    both.round(clock=settled_clock)
    assert list(both.sender._written.values()) == [b"file"]
    both.written = frozenset()
    both.round(clock=settled_clock)
    assert not both.sender._written


def test_a_change_in_the_last_round_is_an_error(both: Pair) -> None:
    file = both.source / "file"
    file.write_bytes(os.urandom(3 << 20))
    both.round()
    file.write_bytes(os.urandom(3 << 20))

    def write(_: int) -> None:
        file.write_bytes(b"y")

    with pytest.raises(HostError, match="file changed while it was being read"):
        both.round(last=True, meanwhile=write)


def test_a_directory_that_vanishes_while_it_is_listed_is_none(both: Pair) -> None:
    for name in ("a", "b"):
        (both.source / name).mkdir()
        (both.source / name / "file").write_bytes(b"x")

    def vanish(number: int) -> None:
        if number == 1:
            shutil.rmtree(both.source / "b")
            (both.source / "b").symlink_to("/etc")

    both.round(meanwhile=vanish)
    both.round(last=True)
    both.assert_equal()


def test_a_directory_that_became_a_link_is_not_followed(both: Pair, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"secret")
    (both.source / "d").mkdir()
    (both.source / "d" / "key").write_bytes(b"public")

    def swap(number: int) -> None:
        if number == 0:
            shutil.rmtree(both.source / "d")
            (both.source / "d").symlink_to(tmp_path / "secret")

    sent = both.round(meanwhile=swap)
    assert not any(isinstance(record, Write) for record in sent)


def test_deep_and_long_names_travel_and_longer_ones_are_refused(both: Pair) -> None:
    directory = os.open(both.source, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("nnnnnnnnnn", dir_fd=directory)
        inner = os.open("nnnnnnnnnn", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(directory)
    both.round()
    both.round(last=True)
    assert tree.digest(both.target) == tree.digest(both.source)
    (both.source / "/".join(["n" * 250] * 15)).mkdir(parents=True)
    (both.source / "/".join(["n" * 250] * 15) / ("m" * 100)).touch()
    both.round()
    descriptor = os.open(both.source / "/".join(["n" * 250] * 15), os.O_RDONLY)
    os.mkdir("k" * 255, dir_fd=descriptor)
    inner = os.open("k" * 255, os.O_RDONLY, dir_fd=descriptor)
    os.close(os.open("l" * 255, os.O_CREAT | os.O_WRONLY, dir_fd=inner))
    os.close(descriptor)
    os.close(inner)
    with pytest.raises(HostError, match="too long to travel"):
        both.round()
