"""Frames survive any cut of the stream, and nothing else passes for a frame."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime.errors import Corrupted, ProtocolError
from pymigrate.transport import frames
from pymigrate.transport.frames import Decoder, Flag, Frame, Kind

PREFIX = struct.Struct(">2sBBII")


def _frames() -> st.SearchStrategy[Frame]:
    plain = st.builds(
        Frame,
        st.sampled_from([Kind.REQUEST, Kind.REPLY, Kind.ERROR, Kind.EVENT]),
        st.binary(max_size=300),
    )
    data = st.builds(
        Frame,
        st.just(Kind.DATA),
        st.binary(max_size=300),
        st.sampled_from([Flag.NONE, Flag.ZSTD]),
        st.integers(0, frames.MAX_NUMBER),
    )
    end = st.builds(
        Frame,
        st.just(Kind.END),
        st.binary(max_size=64),
        st.sampled_from([Flag.NONE, Flag.ABORTED]),
    )
    return st.one_of(plain, data, end, st.just(Frame(Kind.PING)))


def _header(
    kind: int, length: int, *, magic: bytes = b"pM", flags: int = 0, number: int = 0
) -> bytes:
    return PREFIX.pack(magic, kind, flags, number, length) + bytes(4)


class TestDecoder:
    """What comes out is what went in."""

    @given(st.lists(_frames(), max_size=6), st.lists(st.integers(1, 200), min_size=1))
    def test_any_cut_of_the_stream_gives_the_same_frames(
        self, sent: list[Frame], cuts: list[int]
    ) -> None:
        wire = b"".join(frames.encode(frame) for frame in sent)
        decoder = Decoder()
        got: list[Frame] = []

        position = turn = 0
        while position < len(wire):
            count = cuts[turn % len(cuts)]
            got += decoder.feed(wire[position : position + count])
            position += count
            turn += 1

        assert got == sent
        assert not decoder.midway

    def test_every_single_cut_of_two_frames_gives_both(self) -> None:
        sent = [Frame(Kind.DATA, b"x" * 20, Flag.ZSTD, 7), Frame(Kind.END, b"y" * 12)]
        wire = b"".join(frames.encode(frame) for frame in sent)

        for cut in range(len(wire) + 1):
            decoder = Decoder()
            got = [*decoder.feed(wire[:cut]), *decoder.feed(wire[cut:])]
            assert got == sent

    def test_a_cut_frame_leaves_the_decoder_midway(self) -> None:
        wire = frames.encode(Frame(Kind.REQUEST, b"hello"))

        for cut in range(1, len(wire)):
            decoder = Decoder()
            assert list(decoder.feed(wire[:cut])) == []
            assert decoder.midway

    @given(_frames(), st.data())
    def test_any_flipped_bit_is_noticed(self, frame: Frame, data: st.DataObject) -> None:
        wire = bytearray(frames.encode(frame))
        position = data.draw(st.integers(0, len(wire) * 8 - 1))
        wire[position // 8] ^= 1 << position % 8

        decoder = Decoder()
        try:
            got = list(decoder.feed(bytes(wire)))
        except (Corrupted, ProtocolError):
            return
        # A length that grew is only seen as a frame that never becomes complete.
        assert got == []
        assert decoder.midway

    @given(st.binary(max_size=200))
    def test_arbitrary_bytes_raise_only_our_errors(self, noise: bytes) -> None:
        decoder = Decoder()
        try:
            got = list(decoder.feed(noise))
        except (Corrupted, ProtocolError):
            return
        assert (
            b"".join(frames.encode(frame) for frame in got) == noise[: len(noise) - _held(decoder)]
        )

    @given(st.binary(min_size=12, max_size=80))
    def test_arbitrary_bytes_after_the_magic_raise_only_our_errors(self, noise: bytes) -> None:
        try:
            list(Decoder().feed(b"pM" + noise))
        except (Corrupted, ProtocolError):
            return


def _held(decoder: Decoder) -> int:
    """Count the bytes that wait for the rest of their frame."""
    return len(decoder.received) if decoder.received or not decoder.midway else frames.HEADER_SIZE


class TestHostileHeaders:
    """Refused by its first sixteen bytes, without memory for what it announces."""

    @pytest.mark.parametrize("kind", list(Kind))
    def test_a_length_over_the_bound_of_its_kind(self, kind: Kind) -> None:
        header = _header(kind, frames.MAX_PAYLOAD[kind] + 1)

        with pytest.raises(ProtocolError, match="announces"):
            list(Decoder().feed(header))

    @pytest.mark.parametrize(
        ("header", "says"),
        [
            (_header(0, 0), "unknown kind"),
            (_header(99, 0), "unknown kind"),
            (_header(Kind.REQUEST, 0, flags=1), "unknown flags"),
            (_header(Kind.DATA, 0, flags=0x80), "unknown flags"),
            (_header(Kind.PING, 0, number=1), "carries a number"),
            (_header(Kind.PING, 0, magic=b"PM"), "does not speak our protocol"),
            (b"bash: pymigrate: command not found\n", "does not speak our protocol"),
            (b"We", "does not speak our protocol"),
        ],
    )
    def test_a_header_that_is_none(self, header: bytes, says: str) -> None:
        with pytest.raises(ProtocolError, match=says):
            list(Decoder().feed(header))

    def test_a_frame_that_the_other_side_would_refuse_is_not_sent(self) -> None:
        with pytest.raises(ProtocolError, match="is over"):
            frames.encode(Frame(Kind.PING, b"x"))
        with pytest.raises(ProtocolError, match="32 bits"):
            frames.encode(Frame(Kind.DATA, b"x", number=2**32))


class TestSealed:
    """Over a channel that authenticates, the payload of DATA needs no sum of its own."""

    @given(_frames())
    def test_what_comes_out_is_what_went_in(self, frame: Frame) -> None:
        wire = frames.encode_header(frame, sealed=True) + bytes(frame.payload)

        assert list(Decoder().feed(wire)) == [frame]

    @given(st.binary(min_size=1, max_size=50), st.integers(0, 127))
    def test_a_damaged_header_is_noticed_all_the_same(self, payload: bytes, bit: int) -> None:
        header = bytearray(frames.encode_header(Frame(Kind.DATA, payload), sealed=True))
        header[bit // 8] ^= 1 << bit % 8

        # A length that has grown leaves the frame incomplete; anything else is refused.
        try:
            got = list(Decoder().feed(bytes(header) + payload))
        except (ProtocolError, Corrupted):
            return
        assert got == []

    def test_only_data_goes_without(self) -> None:
        frame = Frame(Kind.REPLY, b"payload")

        assert frames.encode_header(frame, sealed=True) == frames.encode_header(frame)
