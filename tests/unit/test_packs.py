"""Packs: what is put in comes out, and not one bit may change."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymigrate.checkpoint import packs
from pymigrate.checkpoint.packs import Builder, Kind
from pymigrate.checkpoint.sealing import Damaged, Keys
from pymigrate.runtime.errors import BadArchive, UsageError

KEYS = Keys(bytes(range(32)))
NAME = bytes(16)


def packed(chunks: list[bytes], kind: Kind = Kind.DATA, name: bytes = NAME) -> bytes:
    builder = Builder(KEYS, name, kind)
    packer = packs.compressor()
    naming = KEYS.naming()
    out = bytearray(packs.header(kind))
    blob = b""

    def close() -> None:
        nonlocal blob
        sealed = builder.seal(builder.close_blob(), blob, packer)
        out.extend(sealed)
        builder.written(len(sealed))
        blob = b""

    for chunk in chunks:
        full = builder.place(naming(chunk), len(chunk))
        blob += chunk
        if full:
            close()
    if blob:
        close()
    out += builder.finish(packer)
    assert builder.size == len(out)
    return bytes(out)


def opened(data: bytes, name: bytes = NAME) -> list[bytes]:
    kind = packs.parse_header(data[: packs.HEADER.size])
    end = len(data) - packs.TRAILER.size
    size = packs.table_size(data[end:], len(data))
    opener = packs.sealer(KEYS, name, kind)
    table = packs.parse_table(data[end - size : end], len(data), kind, opener)
    starts = [int(start) for start in table.starts]
    blobs = [
        packs.open_blob(data[starts[number] : starts[number + 1]], number, opener)
        for number in range(len(table.sealed))
    ]
    places = zip(table.blob, table.offset, table.length, strict=True)
    return [blobs[blob][at : at + length] for blob, at, length in places]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.sampled_from(Kind))
def test_chunks_come_out_as_they_went_in(chunks: list[bytes], kind: Kind) -> None:
    assert chunks == opened(packed(chunks, kind))


def test_many_chunks_fill_several_blobs() -> None:
    noise = random.Random(1)
    chunks = [noise.randbytes(4096) for _ in range(200)]

    assert chunks == opened(packed(chunks))


def test_every_flipped_bit_is_found() -> None:
    data = packed([b"first", b"second" * 100, b"third"])

    for bit in range(8 * len(data)):
        altered = bytearray(data)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            opened(bytes(altered))


def test_every_cut_is_found() -> None:
    data = packed([b"first", b"second"])

    for size in range(len(data)):
        with pytest.raises(Damaged):
            opened(data[:size])


def test_pack_under_another_name_is_refused() -> None:
    with pytest.raises(Damaged):
        opened(packed([b"content"]), name=bytes(15) + b"x")


@given(st.binary(max_size=300))
def test_payload_is_decompressed_to_what_it_was(data: bytes) -> None:
    assert data == packs.decompress(packs.compress(data, packs.compressor()))


@given(st.binary(max_size=60))
def test_anything_else_is_refused_as_a_payload(data: bytes) -> None:
    try:
        plain = packs.decompress(data)
    except Damaged:
        return
    assert len(plain) == int.from_bytes(data[1:5], "little")


def test_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = packs.compress(bytes(1 << 20), packs.compressor())
    lying = bomb[:1] + (1000).to_bytes(4, "little") + bomb[5:]

    with pytest.raises(Damaged, match="another size"):
        packs.decompress(lying)


def test_names_are_hmac_sha256() -> None:
    import hmac

    key = KEYS.derive("chunk names")

    assert hmac.digest(key, b"content", "sha256")[:16] == KEYS.naming()(b"content")


def test_secret_opens_the_keys_and_another_does_not() -> None:
    document = KEYS.to_document(b"open sesame")

    assert KEYS == Keys.from_document(document, b"open sesame")
    assert KEYS.master.hex() not in str(document)
    with pytest.raises(UsageError, match="does not open"):
        Keys.from_document(document, b"open barley")
    with pytest.raises(UsageError, match="no secret"):
        Keys.from_document(document, None)


def test_plain_keys_want_no_secret() -> None:
    document = KEYS.to_document(None)

    assert KEYS == Keys.from_document(document, None)
    with pytest.raises(UsageError, match="not encrypted"):
        Keys.from_document(document, b"secret")


@pytest.mark.parametrize("change", [{"kind": "rot13"}, {"n": 1 << 40}, {"salt": "x"}, {"r": "?"}])
def test_damaged_key_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadArchive):
        Keys.from_document(KEYS.to_document(b"secret") | change, b"secret")
