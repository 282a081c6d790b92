"""apt's sources in both forms, turned to the suite asked for, and what mmdebstrap is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.runtime import apt_sources, bootstrap, images
from pymigrate.runtime.apt_sources import AptSource
from pymigrate.runtime.errors import MissingFeature, UsageError
from pymigrate.runtime.host import Host

KEY = "signed-by=/usr/share/keyrings/debian-archive-keyring.gpg"
DEB822 = """\
# ours
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF

Types: deb
URIs: https://vendor.example/apt
Suites: stable
Components: vendor

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://old.example/debian bullseye main
deb-src http://mirror.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main # here
deb http://mirror.example/debian bookworm-updates main non-free-firmware
deb http://mirror.example/debian bullseye/updates main
"""


def test_stanzas_are_read_each_address_with_each_suite() -> None:
    assert list(apt_sources.parse_deb822(DEB822)) == [
        AptSource("http://mirror.example/debian", "bookworm", ("main", "contrib"), (KEY,)),
        AptSource("http://mirror.example/debian", "bookworm-updates", ("main", "contrib"), (KEY,)),
        AptSource("http://mirror.example/debian-security", "bookworm-security", ("main",)),
        AptSource("https://vendor.example/apt", "stable", ("vendor",)),
    ]


def test_lines_are_read() -> None:
    found = list(apt_sources.parse_one_line(ONE_LINE))
    assert found[0].line() == "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main"
    assert [source.suite for source in found] == [
        "bookworm",
        "bookworm-updates",
        "bullseye/updates",
    ]


def test_a_machine_has_both_forms(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "off.sources.disabled").write_text(DEB822)
    assert len(apt_sources.read(tmp_path)) == 3 + 4
    assert apt_sources.read(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("suite", "suites"),
    [
        ("bookworm", ["bookworm", "bookworm-updates", "bookworm-security"]),
        ("trixie", ["trixie", "trixie-updates", "trixie-security"]),
        ("sid", ["sid"]),
    ],
)
def test_a_mirror_serves_the_other_suites_too(suite: str, suites: list[str]) -> None:
    sources = tuple(apt_sources.parse_deb822(DEB822))
    turned = apt_sources.turned_to(suite, sources)
    assert [source.suite for source in turned] == suites
    assert {source.components for source in turned} == {("main",)}


def test_without_a_debian_source_there_is_none_to_turn() -> None:
    vendor = AptSource("https://vendor.example/apt", "stable", ("vendor",))
    updates = AptSource("http://mirror.example/debian", "bookworm-updates", ("main",))
    assert apt_sources.turned_to("bookworm", (vendor, updates)) == ()


def test_the_command_is_apart_from_the_hosts_mounts() -> None:
    sources = (AptSource("http://mirror.example/debian", "trixie", ("main",)),)
    command = bootstrap.command("trixie", ["redis-server", "nano"], sources)
    assert command[:2] == ["unshare", "--mount"]
    assert command[-4:] == [
        "--include=redis-server,nano",
        "trixie",
        "-",
        "deb http://mirror.example/debian trixie main",
    ]


@pytest.fixture
def store(tmp_path: Path) -> images.Store:
    for name in ("images", "containers"):
        (tmp_path / name).mkdir()
    return images.Store(Host(tmp_path, "0123456789ab"))


@pytest.mark.parametrize(
    ("suite", "package"), [("--help", "nano"), ("../x", "nano"), ("sid", "-x"), ("sid", "a b")]
)
def test_names_that_could_be_options_are_refused(
    store: images.Store, suite: str, package: str
) -> None:
    with pytest.raises(UsageError):
        bootstrap.bootstrap(store, "x", suite=suite, include=[package])


def test_a_missing_mmdebstrap_is_said_with_the_remedy(
    store: images.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingFeature) as caught:
        bootstrap.bootstrap(store, "x")
    assert caught.value.hint == "apt-get install mmdebstrap"
