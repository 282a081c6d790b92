"""Buffers go round, and what somebody waits for overtakes the rest."""

from __future__ import annotations

from pymigrate.migrate.outbox import BUFFERS, SPARE, Outbox, Piece


def filled(outbox: Outbox, name: bytes, *, urgent: bool = False) -> None:
    buffer = outbox.take()
    buffer[: len(name)] = name
    outbox.put(Piece(buffer, len(name)), urgent=urgent)


def sent(outbox: Outbox) -> list[bytes]:
    names = []
    while outbox.has_piece:
        piece = outbox.next()
        names.append(bytes(piece.plain))
        outbox.give_back(piece.buffer)
    return names


def test_pieces_go_in_their_order_and_urgent_ones_first_in_theirs() -> None:
    outbox = Outbox(8)
    filled(outbox, b"one")
    filled(outbox, b"two")
    filled(outbox, b"now", urgent=True)
    filled(outbox, b"then", urgent=True)

    assert [b"now", b"then", b"one", b"two"] == sent(outbox)


def test_a_buffer_is_kept_for_what_somebody_waits_for() -> None:
    outbox = Outbox(8)
    while outbox.has_room:
        filled(outbox, b"x")

    assert outbox.has_any
    filled(outbox, b"now", urgent=True)
    assert not outbox.has_any
    assert [b"now", *[b"x"] * BUFFERS] == sent(outbox)
    assert 1 == SPARE


def test_it_is_idle_only_when_every_buffer_is_back() -> None:
    outbox = Outbox(8)
    filled(outbox, b"x")
    piece = outbox.next()

    assert not outbox.has_piece
    assert not outbox.is_idle
    outbox.give_back(piece.buffer)
    assert outbox.is_idle
