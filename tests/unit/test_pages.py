"""What pages of memory look like on the wire, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime.errors import ProtocolError
from pymigrate.transport import pages
from pymigrate.transport.pages import PAGE, Batch, Kind, News, Run, Runs, Stage


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    runs: list[Run] = []
    address = 0
    content = 0
    for _ in range(draw(st.integers(0, 6))):
        address += draw(st.integers(0, 1 << 40)) * PAGE
        kind = draw(st.sampled_from(Kind))
        count = draw(st.integers(1, 4 if kind is Kind.CONTENT else 1 << 20))
        content += count if kind is Kind.CONTENT else 0
        runs.append(Run(address, count, kind))
        address += count * PAGE
    byte = draw(st.integers(0, 255))
    inner = draw(st.integers(0, 2**32 - 1))
    body = memoryview(bytes([byte]) * (content * PAGE))
    return Batch(draw(st.sampled_from(Stage)), inner, Runs.of(runs), body)


@given(batches())
def test_a_batch_is_read_as_it_was_written(batch: Batch) -> None:
    assert batch == pages.decode(pages.encode(batch))


@given(batches(), st.data())
def test_a_batch_that_is_cut_or_altered_never_reads_as_more_than_it_is(
    batch: Batch, data: st.DataObject
) -> None:
    whole = bytearray(pages.encode(batch))
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] ^= data.draw(st.integers(1, 255))
    try:
        read = pages.decode(whole)
    except ProtocolError:
        return
    wanted = sum(run.pages for run in read.runs if run.kind is Kind.CONTENT)
    assert wanted * PAGE == len(read.content) <= len(whole)
    ends = [run.address + run.pages * PAGE for run in read.runs]
    assert all(end <= run.address for end, run in zip(ends, read.runs[1:], strict=False))


@given(st.binary(max_size=4 * PAGE))
def test_noise_is_refused_or_harmless(noise: bytes) -> None:
    try:
        read = pages.decode(noise)
    except ProtocolError:
        return
    assert len(read.content) <= len(noise)


@pytest.mark.parametrize(
    "runs",
    [
        [Run(PAGE + 1, 1, Kind.ZERO)],
        [Run(PAGE, 0, Kind.ZERO)],
        [Run(2 * PAGE, 1, Kind.ZERO), Run(PAGE, 1, Kind.ZERO)],
        [Run(0, 2, Kind.ZERO), Run(PAGE, 1, Kind.ZERO)],
        [Run((1 << 63) - PAGE, 2, Kind.ZERO)],
        [Run(0, 1, Kind.CONTENT)],
    ],
)
def test_impossible_runs_are_refused(runs: list[Run]) -> None:
    with pytest.raises(ProtocolError):
        pages.decode(pages.encode(Batch(Stage.FINAL, 1, Runs.of(runs), memoryview(b""))))


def test_more_than_a_batch_holds_is_never_written() -> None:
    runs = [Run(number * 2 * PAGE, 1, Kind.ZERO) for number in range(pages.MAX_RUNS + 1)]
    with pytest.raises(ValueError, match="1025 runs"):
        pages.encode(Batch(Stage.FINAL, 1, Runs.of(runs), memoryview(b"")))


@given(
    st.lists(st.tuples(st.sampled_from(News), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)))
)
def test_news_are_read_as_they_were_written(told: list[tuple[News, int, int]]) -> None:
    written = b"".join(pages.news(kind, inner=inner, value=value) for kind, inner, value in told)

    assert told == pages.parse_news(written)


@pytest.mark.parametrize("payload", [b"x", b"\x09" + bytes(15)])
def test_news_of_another_form_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        pages.parse_news(payload)
