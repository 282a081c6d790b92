"""Each input of the corpus, and each seed, is read or refused: in seconds, and without a fuzzer."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from pymigrate.runtime.errors import PymigrateError
from tests.fuzz import targets
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")
BOUND = 48 << 20  # bytes of memory that no input may cost: more than a frame, a tenth of a bomb


def inputs(name: str) -> list[bytes]:
    """List what a target is given: its seeds, each of them cut, and what a fuzzer came upon."""
    seeds = TARGETS[name].seeds()
    cut = [seed[: len(seed) // 2] for seed in seeds]
    found = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    return [b"", *seeds, *cut, *found]


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused_within_bounds(name: str) -> None:
    for data in inputs(name):
        tracemalloc.start()
        try:
            targets.run(name, data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < BOUND, data[:200]


@pytest.mark.parametrize("name", TARGETS)
def test_some_seed_of_a_target_is_read_to_the_end(name: str) -> None:
    """A target that refuses all that it is given tests nothing."""
    read = 0
    for seed in TARGETS[name].seeds():
        with targets.place() as place:
            try:
                TARGETS[name].read(seed, place)
            except PymigrateError:
                continue
            read += 1
    assert read


def test_the_corpus_has_no_input_of_a_target_that_is_gone() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
