"""What CRIU's images say of the processes in them; the messages are pycriu's."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from pymigrate.checkpoint import criu_messages
from pymigrate.runtime.errors import BadArchive
from pymigrate.runtime.values import dataclass

PAGE = 4096
_LAZY, _PRESENT = 2, 4  # PE_ in criu/include/pagemap.h; present: the page lies in pages-N.img
# MAP_ and VMA_AREA_ in CRIU's images of mappings, the same for all architectures
_PRIVATE, _ANONYMOUS, _LOCKED, _HUGE = 0x2, 0x20, 0x2000, 0x40000
_VSYSCALL, _VDSO, _VVAR = 1 << 2, 1 << 3, 1 << 12
_MAGICS = struct.Struct("<II")
_SIZE = struct.Struct("<I")


@dataclass(frozen=True)
class Process:
    """A process as its container sees it; ``memory`` are the bytes of its pages in the images."""

    pid: int
    parent: int
    command: str
    threads: int
    memory: int


def processes(names: Collection[str], read: Callable[[str], bytes]) -> list[Process]:
    """Return the processes of a dump, by PID; ``names`` are its files, ``read`` reads one.

    Raises BadArchive for what is no image of CRIU's.
    """
    found = []
    for entry in _entries(read("pstree.img"), "pstree.img"):
        pid = int(entry["pid"])
        cores = _entries(read(f"core-{pid}.img"), f"core-{pid}.img")
        map_name = f"pagemap-{pid}.img"
        pages = _entries(read(map_name), map_name) if map_name in names else []
        found.append(
            Process(
                pid,
                int(entry["ppid"]),
                str(cores[0].get("tc", {}).get("comm", "?")) if cores else "?",
                len(entry["threads"]),
                sum(_bytes(page) for page in pages),
            )
        )
    return sorted(found, key=lambda process: process.pid)


def prepare() -> None:
    """Load CRIU's messages: who reads an image under a freeze does not wait for that."""
    criu_messages.image("pagemap").pagemap_head()
    criu_messages.image("mm").mm_entry()


class Entry(NamedTuple):
    """Pages that follow one another, as a pagemap has them; ``address`` in bytes."""

    address: int
    pages: int
    present: bool
    lazy: bool


def pagemap(data: bytes, name: str) -> tuple[int, list[Entry]]:
    """Read a pagemap: the number of its file of pages, and its entries in their order.

    Not by pycriu's own reader, which needs seconds for the map of a large process.
    Raises BadArchive for what is none.
    """
    head, entries = _map_messages(data, name)
    found: list[Entry] = []
    for entry in entries:
        flags = int(entry.flags) if entry.HasField("flags") else _PRESENT
        long = entry.HasField("nr_pages")
        pages = int(entry.nr_pages if long else entry.compat_nr_pages)
        present = bool(flags & _PRESENT) and not entry.in_parent
        found.append(Entry(int(entry.vaddr), pages, present, bool(flags & _LAZY)))
    return int(head.pages_id), found


def completed(data: bytes, name: str, entries: Sequence[Entry]) -> bytes:
    """Return the pagemap of a lazy dump as it is where all pages lie in the file of pages.

    They lie there in the order of the entries. Raises BadArchive for what is no pagemap.
    """
    pagemap_pb2 = criu_messages.image("pagemap")
    head, _ = _map_messages(data, name)
    # Its number of pages has been of 32 bits once; then its name is now that of 64 bits.
    with_compat = "compat_nr_pages" in pagemap_pb2.pagemap_entry.DESCRIPTOR.fields_by_name
    compat = {"compat_nr_pages": 0} if with_compat else {}
    whole = [data[: _MAGICS.size], _framed(head)]
    for entry in entries:
        flags = _PRESENT | (_LAZY if entry.lazy else 0)
        message = pagemap_pb2.pagemap_entry(
            vaddr=entry.address, nr_pages=entry.pages, flags=flags, **compat
        )
        whole.append(_framed(message))
    return b"".join(whole)


def lazy_mappings(data: bytes, name: str) -> set[tuple[int, int]]:
    """Return from where to where those mappings of a process lie that a restore fills lazily.

    By CRIU's own rule: vma_entry_can_be_lazy in criu/include/vma.h.
    Raises BadArchive for what is no image of a process' mappings.
    """
    entry = _messages(data, name, "MM", [criu_messages.image("mm").mm_entry])[0]
    needed, forbidden = _PRIVATE | _ANONYMOUS, _LOCKED | _HUGE
    return {
        (vma.start, vma.end)
        for vma in entry.vmas
        if vma.flags & (needed | forbidden) == needed
        and not vma.status & (_VSYSCALL | _VDSO | _VVAR)
    }


def _framed(message: Any) -> bytes:
    text = message.SerializeToString()
    return _SIZE.pack(len(text)) + bytes(text)


def _map_messages(data: bytes, name: str) -> tuple[Any, list[Any]]:
    """Return the head of a pagemap, and the messages of its entries."""
    pagemap_pb2 = criu_messages.image("pagemap")
    head, *entries = _messages(
        data, name, "PAGEMAP", [pagemap_pb2.pagemap_head, pagemap_pb2.pagemap_entry]
    )
    return head, entries


def _messages(data: bytes, name: str, kind: str, types: Sequence[Any]) -> list[Any]:
    """Return the messages of an image; the last type is that of all that follow, if any."""
    from google.protobuf.message import DecodeError

    numbers = criu_messages.magic().by_name
    magics = _MAGICS.pack(numbers["IMG_COMMON"], numbers[kind])
    if data[: len(magics)] != magics:
        raise BadArchive(f"{name} is no {kind.lower()} of CRIU's")
    found: list[Any] = []
    at = len(magics)
    try:
        while at < len(data):
            (size,) = _SIZE.unpack_from(data, at)
            at += _SIZE.size
            message = data[at : at + size]
            if len(message) != size:
                raise BadArchive(f"{name} is cut")
            at += size
            found.append(types[min(len(found), len(types) - 1)].FromString(message))
    except (DecodeError, struct.error) as error:
        raise BadArchive(f"{name} is no image of CRIU's: {error!r}") from error
    if not found:
        raise BadArchive(f"{name} has no head")
    return found


def _bytes(entry: dict[str, Any]) -> int:
    """Return how many bytes of pages an entry of a pagemap stands for; its head has none."""
    flags = str(entry.get("flags", ""))
    present = "PE_PRESENT" in flags or (flags.isdigit() and int(flags) & _PRESENT)
    return int(str(entry.get("nr_pages", 0))) * PAGE if present else 0


def _entries(data: bytes, name: str) -> list[dict[str, Any]]:
    from google.protobuf.message import DecodeError
    from pycriu import images

    try:
        document = images.loads(data, pretty=True)
    except (DecodeError, images.MagicException, KeyError, ValueError, struct.error) as error:
        raise BadArchive(f"{name} is no image of CRIU's: {error!r}") from error
    entries: list[dict[str, Any]] = document["entries"]
    return entries
