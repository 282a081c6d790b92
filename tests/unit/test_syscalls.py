"""System calls: errors name the call and the path; every architecture has every number."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from pymigrate.runtime import syscalls


def test_an_error_names_the_call_and_the_path() -> None:
    with pytest.raises(FileNotFoundError) as raised:
        syscalls.openat2(syscalls.AT_FDCWD, "/nonexistent", os.O_RDONLY)

    assert "openat2: No such file or directory" == raised.value.strerror
    assert "/nonexistent" == raised.value.filename


def test_openat2_does_not_leave_the_root_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    root = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(FileNotFoundError):
            syscalls.openat2(root, "out", os.O_PATH, resolve=syscalls.RESOLVE_IN_ROOT)
        with pytest.raises(OSError, match="openat2") as raised:
            syscalls.openat2(root, "out", os.O_PATH, resolve=syscalls.RESOLVE_BENEATH)
        assert errno.EXDEV == raised.value.errno
    finally:
        os.close(root)


def test_every_architecture_knows_every_number() -> None:
    tables = syscalls._NUMBERS
    first = next(iter(tables.values()))
    assert all(table.keys() == first.keys() for table in tables.values())
    assert syscalls.MACHINE in tables


def test_an_unknown_architecture_is_said_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "MACHINE", "vax")
    with pytest.raises(OSError, match="fsopen: its number on vax is not known"):
        syscalls.fsopen("tmpfs")


def test_own_memory_is_read_piece_by_piece() -> None:
    import ctypes

    source = ctypes.create_string_buffer(b"abcdefghij", 10)
    base = ctypes.addressof(source)
    into = bytearray(5)

    count = syscalls.process_vm_readv(os.getpid(), memoryview(into), [(base, 2), (base + 7, 3)])

    assert 5 == count
    assert b"abhij" == into


@pytest.mark.parametrize("make", [bytes, bytearray])
def test_where_bytes_lie_is_where_they_are_read(make: type[bytes] | type[bytearray]) -> None:
    content = make(b"0123456789" * 500)
    part = memoryview(content)[4096:]
    whole, address = syscalls.address_of(content), syscalls.address_of(part)
    assert address == whole + 4096
    found = ctypes.string_at(address, len(part))
    assert found == part
