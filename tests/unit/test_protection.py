"""Encrypted and signed checkpoint files: read back with the right keys, refused with any others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pymigrate.checkpoint import archive_writer, new_file, signing
from pymigrate.checkpoint.archive import Archive
from pymigrate.checkpoint.archive_pages import ArchivePages, page_files
from pymigrate.checkpoint.archive_writer import Compression
from pymigrate.checkpoint.protection import BLOCK, Protection, Trust
from pymigrate.checkpoint.signing import Signer
from pymigrate.runtime.errors import BadArchive, UsageError
from tests.fakes import old_archives
from tests.unit.test_archive import CONTENT, PAGES, into, manifest

SECRET = b"a long secret"
CONTENTS = {**CONTENT, "rootfs-diff.tar": b"r" * (2 * BLOCK)}


def keys(directory: Path, name: str = "id", kind: str = "ed25519") -> Path:
    """Make a pair of keys as a person would."""
    path = directory / name
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True)
    return path


def written(
    directory: Path, secret: bytes | None = None, key: Path | None = None, level: int | None = None
) -> Path:
    """Write a small archive and return its path."""
    members = {}
    for name, data in CONTENTS.items():
        members[name] = directory / name.replace("/", "_")
        members[name].write_bytes(data)
    protection = Protection(secret, None if key is None else Signer.read(key))
    path = directory / "web.tar"
    with new_file.target(path) as target:
        archive_writer.write(members, manifest(), target.stream, Compression(level), protection)
        target.publish()
    return path


@pytest.mark.parametrize("level", [None, 1])
@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_signed_file_is_read_back_by_who_knows_the_signer(
    tmp_path: Path, secret: bytes | None, level: int | None
) -> None:
    key = keys(tmp_path)
    path = written(tmp_path, secret, key, level)
    place = into(tmp_path)

    opened = Archive.open(path, Trust(secret, signing.read_public(key.with_suffix(".pub"))))
    opened.extract(place)

    assert (opened.is_signed, opened.is_encrypted) == (True, secret is not None)
    assert CONTENTS == {name: (place / name).read_bytes() for name in CONTENTS}
    other = tmp_path / "other"
    other.mkdir()
    laid = opened.lay_out(other)
    assert (laid is None) == opened.is_encrypted
    if laid is not None:
        laid.stream.close()
        assert not (other / PAGES).exists()


def test_an_encrypted_file_shows_nothing(tmp_path: Path) -> None:
    data = written(tmp_path, SECRET).read_bytes()

    assert 0o600 == (tmp_path / "web.tar").stat().st_mode & 0o777
    for shown in (b"rrrrrrrr", b"inventory", b"web:1", b"vvvvvvvv", SECRET):
        assert shown not in data


def test_an_encrypted_file_is_not_read_without_its_key(tmp_path: Path) -> None:
    path = written(tmp_path, SECRET)

    for secret, said in ((None, "no key file was given"), (b"another", "does not open")):
        with pytest.raises(UsageError, match=said):
            Archive.open(path, Trust(secret))


def test_a_plain_file_does_not_pass_for_an_encrypted_one(tmp_path: Path) -> None:
    path = written(tmp_path)

    with pytest.raises(UsageError, match="is not encrypted"):
        Archive.open(path, Trust(SECRET))


def test_every_part_of_an_encrypted_file_is_bound_to_its_place(tmp_path: Path) -> None:
    path = written(tmp_path, SECRET)
    data = path.read_bytes()
    header = len(data) % (BLOCK + 16)  # it and the last block, which is shorter
    first, second = data[-2 * (BLOCK + 16) : -(BLOCK + 16)], data[-(BLOCK + 16) :]
    swapped = data[:header] + second + first
    harms = {
        "cut within": data[:-1],
        "a block cut off": data[: -(BLOCK + 16)],
        "blocks swapped": swapped,
        "something behind it": data + b"x",
        "first bit of a block": data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        "header": data[:40] + bytes([data[40] ^ 1]) + data[41:],
        "only its header": data[:30],
    }

    for harm, damaged in harms.items():
        path.write_bytes(damaged)
        with pytest.raises((BadArchive, UsageError)):
            print(harm, Archive.open(path, Trust(SECRET)).verify())


def test_a_signed_file_that_was_altered_is_refused(tmp_path: Path) -> None:
    key = keys(tmp_path)
    path = written(tmp_path, key=key)
    trust = Trust(signers=signing.read_public(key.with_suffix(".pub")))
    data = path.read_bytes()
    at = data.index(b"rrrr")
    resigned = written(tmp_path, key=keys(tmp_path, "other")).read_bytes()
    unsigned = written(tmp_path).read_bytes()
    signature = data.index(b'"signature": "') + 20
    harms = {
        "altered": data[:at] + b"R" + data[at + 1 :],
        "signed by another": resigned,
        "not signed": unsigned,
        "the signature altered": data[:signature]
        + (b"0" if data[signature : signature + 1] != b"0" else b"1")
        + data[signature + 1 :],
        "the signature of another": data[: data.index(b'{"key"')]
        + resigned[resigned.index(b'{"key"') :],
    }

    for harm, damaged in harms.items():
        path.write_bytes(damaged)
        place = tmp_path / harm
        place.mkdir()
        with pytest.raises(BadArchive):
            Archive.open(path, trust).extract(place)
        (place / "around").mkdir()
        with pytest.raises(BadArchive):
            Archive.open(path, trust).lay_out(place / "around")


def test_an_altered_block_of_a_signed_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    key = keys(tmp_path)
    path = written(tmp_path, key=key)
    trust = Trust(signers=signing.read_public(key.with_suffix(".pub")))
    data = path.read_bytes()
    at = data.index(CONTENT[PAGES])
    path.write_bytes(data[: at + 7] + b"x" + data[at + 8 :])
    images = into(tmp_path) / "checkpoint"

    laid = Archive.open(path, trust).lay_out(images.parent)

    assert laid is not None
    with laid.stream:
        files = page_files({PAGES: len(CONTENT[PAGES])}, images)
        pages = ArchivePages.of(path, laid.file, laid.places, files, images)
        with pytest.raises(BadArchive, match=r"block 0 of pages-1\.img was altered"):
            pages.block(files[0], 0)
    with pytest.raises(BadArchive, match="altered"):
        Archive.open(path, trust).verify()


def test_a_signed_file_of_before_is_read_from_its_beginning(tmp_path: Path) -> None:
    key = keys(tmp_path)
    path = tmp_path / "web.tar"
    old_archives.write(path, CONTENTS, manifest(), 1, signer=Signer.read(key))
    trust = Trust(signers=signing.read_public(key.with_suffix(".pub")))
    place = into(tmp_path)

    assert Archive.open(path, trust).lay_out(place) is None
    Archive.open(path, trust).extract(place)

    assert CONTENTS == {name: (place / name).read_bytes() for name in CONTENTS}


def test_without_a_key_to_trust_a_signature_finds_damage_and_is_told(tmp_path: Path) -> None:
    key = keys(tmp_path)
    path = written(tmp_path, key=key)

    signer = Archive.open(path).examine().signer

    assert signer is not None
    said = subprocess.run(
        ["ssh-keygen", "-l", "-f", key], capture_output=True, text=True, check=True
    ).stdout
    assert signing.fingerprint(signer) in said
    path.write_bytes(path.read_bytes().replace(b'"key": "', b'"kay": "'))
    with pytest.raises(BadArchive, match="signature is damaged"):
        Archive.open(path).verify()


def test_a_file_that_is_no_key_is_refused_before_anything(tmp_path: Path) -> None:
    rsa = keys(tmp_path, "rsa", "ecdsa")
    text = tmp_path / "text"
    text.write_text("ssh-ed25519\n")
    (tmp_path / "empty").touch()

    for private in (rsa, text, tmp_path / "missing", rsa.with_suffix(".pub")):
        with pytest.raises(UsageError, match="nothing was changed"):
            Signer.read(private)
    for public in (rsa.with_suffix(".pub"), text, tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(UsageError, match="nothing was changed"):
            signing.read_public(public)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.binary(max_size=300), at=st.integers(0, 200))
def test_arbitrary_bytes_behind_the_first_line_raise_only_our_errors(
    tmp_path: Path, data: bytes, at: int
) -> None:
    path = tmp_path / "fuzzed"
    whole = tmp_path / "whole"
    if not whole.exists():
        whole.write_bytes(written(tmp_path, SECRET).read_bytes()[:400])
    begin = whole.read_bytes()
    path.write_bytes(begin[: 30 + at] + data)

    with pytest.raises((BadArchive, UsageError)):
        Archive.open(path, Trust(SECRET)).verify()
