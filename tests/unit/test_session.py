"""What a person types: the keys to detach are found, and nothing else is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.migrate.session import DetachKeys, parse_detach_keys
from pymigrate.runtime.errors import UsageError


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


@pytest.mark.parametrize(
    ("text", "keys"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-],x", b"\x1dx"), ("c", b"c"), ("", b"")],
)
def test_detach_keys_are_read(text: str, keys: bytes) -> None:
    assert keys == parse_detach_keys(text)


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "pq", "a,,b", "ä", "ctrl-pq"])
def test_what_are_no_detach_keys_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--detach-keys"):
        parse_detach_keys(text)


def test_without_detach_keys_nothing_detaches() -> None:
    assert DetachKeys(b"").filter(b"\x10\x11") == (b"\x10\x11", False)


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
