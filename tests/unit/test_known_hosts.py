"""Host keys: which we know, in all the ways a known_hosts file can say it."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymigrate.runtime.errors import HostKeyMismatch
from pymigrate.transport.known_hosts import (
    KnownHosts,
    Verdict,
    check,
    fingerprint,
    host_name,
    parse,
)

KEY, OTHER = b"key of beta", b"key of somebody else"


def line(names: str, key: bytes = KEY, kind: str = "ssh-ed25519", marker: str = "") -> str:
    return f"{marker} {names} {kind} {base64.b64encode(key).decode()} comment\n".lstrip()


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("text", "host", "verdict"),
    [
        (line("beta"), "beta", Verdict.KNOWN),
        (line("BETA"), "beta", Verdict.KNOWN),
        (line("alpha,beta"), "beta", Verdict.KNOWN),
        (line("beta"), "[beta]:2222", Verdict.UNKNOWN),
        (line("[beta]:2222"), "[beta]:2222", Verdict.KNOWN),
        (line("[beta]:2222"), "beta", Verdict.UNKNOWN),
        (line("*.example.org"), "beta.example.org", Verdict.KNOWN),
        (line("*.example.org,!beta.example.org"), "beta.example.org", Verdict.UNKNOWN),
        (line("b?ta"), "beta", Verdict.KNOWN),
        (line("[a-z]eta"), "beta", Verdict.UNKNOWN),
        (line(hashed("beta")), "beta", Verdict.KNOWN),
        (line(hashed("beta")), "gamma", Verdict.UNKNOWN),
        (line(hashed("[beta]:2222")), "[beta]:2222", Verdict.KNOWN),
        (line("beta", OTHER), "beta", Verdict.CHANGED),
        (line("beta", OTHER) + line("beta"), "beta", Verdict.KNOWN),
        (line("beta", OTHER, "ssh-rsa"), "beta", Verdict.CHANGED),
        (line("beta") + line("*", marker="@revoked"), "beta", Verdict.REVOKED),
        (line("beta", marker="@cert-authority"), "beta", Verdict.UNKNOWN),
        (
            "# beta\n\nbeta ssh-ed25519\nbeta ssh-ed25519 %%%\n|1|x|y| a b\n",
            "beta",
            Verdict.UNKNOWN,
        ),
    ],
)
def test_verdict(text: str, host: str, verdict: Verdict) -> None:
    assert KnownHosts(parse(text, "file")).verdict(host, KEY) is verdict


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    assert KnownHosts(parse(text, "file")).verdict("beta", KEY) is not Verdict.REVOKED


def test_files_that_do_not_exist_are_empty_and_the_first_is_named(tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_text(line("beta"))

    known = KnownHosts.load([tmp_path / "first", second])

    assert known.verdict("beta", KEY) is Verdict.KNOWN
    assert known.file == str(tmp_path / "first")
    assert known.key_types("beta") == ["ssh-ed25519"]


def test_an_unknown_key_is_refused_with_fingerprint_and_remedy() -> None:
    with pytest.raises(HostKeyMismatch, match="not known") as caught:
        check(KnownHosts([], "/k"), "beta", 2222, host_name("beta", 2222), "ssh-ed25519", KEY)

    assert fingerprint(KEY) in caught.value.message
    assert "ssh-keyscan -p 2222 beta >> /k" in caught.value.hint


def test_a_changed_key_is_refused_with_both_fingerprints_and_the_line() -> None:
    known = KnownHosts(parse("\n" + line("beta", OTHER), "/k"), "/k")

    with pytest.raises(HostKeyMismatch, match="has changed") as caught:
        check(known, "beta", 22, "beta", "ssh-ed25519", KEY)

    for part in (fingerprint(KEY), fingerprint(OTHER), "/k:2"):
        assert part in caught.value.message
    assert "ssh-keygen -R 'beta' -f /k" in caught.value.hint
