"""What a person types: the keys to detach are found, and nothing else is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate.session import DetachKeys


@pytest.mark.parametrize(
    ("typed", "passed", "detached"),
    [
        ([b"ls\n"], b"ls\n", False),
        ([b"ls\x10\x11"], b"ls", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"\x10", b"b"], b"\x10b", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_detach_keys(typed: list[bytes], passed: bytes, detached: bool) -> None:
    keys = DetachKeys()
    results = [keys.filter(data) for data in typed]

    assert passed == b"".join(data for data, _ in results)
    assert detached == results[-1][1]


@given(st.lists(st.binary(max_size=5)))
def test_keys_that_are_no_detaching_pass_in_order(typed: list[bytes]) -> None:
    keys = DetachKeys()
    passed = b""
    for data in typed:
        kept, detached = keys.filter(data)
        passed += kept
        if detached:
            return

    assert b"".join(typed) in (passed, passed + b"\x10")
