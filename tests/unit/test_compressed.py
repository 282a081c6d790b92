"""Compressed streams are known by their first bytes, and damage is said, not passed on."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable

import pytest
import zstandard

from pymigrate.runtime import compressed
from pymigrate.runtime.errors import BadArchive

CONTENT = b"".join(b"%d lines of text\n" % number for number in range(50_000)) + os.urandom(9999)
FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
}


def read(data: bytes) -> bytes:
    stream = compressed.plain(io.BytesIO(data))
    found = b""
    while piece := stream.read(70_000):
        assert len(piece) <= 70_000
        found += piece
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_known(form: str) -> None:
    assert read(FORMATS[form](CONTENT)) == CONTENT


@pytest.mark.parametrize("form", FORMATS)
def test_several_streams_joined_are_one(form: str) -> None:
    pack = FORMATS[form]
    assert read(pack(CONTENT[:1000]) + pack(b"") + pack(CONTENT[1000:])) == CONTENT


@pytest.mark.parametrize("content", [CONTENT, b"", b"x", b"12345", b"123456"])
def test_what_is_not_compressed_passes(content: bytes) -> None:
    assert read(content) == content


@pytest.mark.parametrize("form", ["gzip", "xz", "bzip2"])
def test_a_cut_is_said(form: str) -> None:
    with pytest.raises(BadArchive, match="cut"):
        read(FORMATS[form](CONTENT)[:-3])


@pytest.mark.parametrize("form", FORMATS)
def test_damage_is_said(form: str) -> None:
    data = bytearray(FORMATS[form](CONTENT))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadArchive, match=r"damaged|cut"):
        read(bytes(data))
