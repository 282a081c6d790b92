"""The set-up decides from facts; here the facts are made up."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from debian_packages import KEYRING, SetupError, mirror

PROGRAM = Path(__file__).parents[2] / "vagrant/provision"


def load() -> ModuleType:
    """Import the program, which has no suffix, without leaving compiled code beside it."""
    loader = importlib.machinery.SourceFileLoader("provision", str(PROGRAM))
    spec = importlib.util.spec_from_loader("provision", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["provision"] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


provision = load()
READY = provision.Host(
    system="Debian",
    codename="bookworm",
    kernel=(6, 18),
    udp_lite=True,
    is_root=True,
    missing=frozenset(),
    record={
        "venv": "3.11 here",
        "python": "with test tools",
        "criu": "checked",
        "preload": "source",
    },
    venv_key="3.11 here",
    python_keys={
        **dict.fromkeys(provision.GROUPS, "plain"),
        **dict.fromkeys(("test", "kernels", "kernels-full", "fuzz"), "with test tools"),
    },
    criu_key="checked",
    preload_key="source",
)


@pytest.mark.parametrize("profile", provision.PROFILES)
def test_a_machine_that_has_all_is_left_alone(profile: str) -> None:
    assert not provision.decide(READY, profile)


@pytest.mark.parametrize("profile", provision.PROFILES)
def test_a_fresh_machine_gets_everything_of_a_profile(profile: str) -> None:
    names = frozenset(package.name for package in provision.PACKAGES)
    fresh = dataclasses.replace(READY, missing=names, venv_key=None, record={}, criu_key=None)

    plan = provision.decide(fresh, profile)

    wanted = provision.PROFILES[profile]
    assert tuple(p for p in provision.PACKAGES if p.part in wanted) == plan.packages
    assert (plan.make_venv, plan.install_python, plan.find_criu) == (True, True, True)


def test_a_profile_leaves_out_what_only_another_needs() -> None:
    host = dataclasses.replace(READY, missing=frozenset({"nftables", "openssh-server"}))

    assert ["nftables"] == [package.name for package in provision.decide(host, "run").packages]


def test_the_tests_do_without_the_peers_of_the_benchmarks() -> None:
    host = dataclasses.replace(READY, missing=frozenset({"openssh-server", "podman"}))

    assert {"openssh-server"} == {p.name for p in provision.decide(host, "test").packages}
    assert len(provision.decide(host, "bench").packages) == 2


def test_packages_of_a_larger_profile_are_enough() -> None:
    groups = {"": "a", "demo": "b", "bench": "c", "dev": "d", "fuzz": "e"}
    keys = {profile: groups[name] for profile, name in provision.GROUPS.items()}
    host = dataclasses.replace(READY, python_keys=keys, record=READY.record | {"python": "c"})

    again = {profile for profile in keys if provision.decide(host, profile).install_python}

    assert again == {
        profile for profile, name in provision.GROUPS.items() if name in ("dev", "fuzz")
    }


def test_guests_and_vagrant_come_only_where_they_are_wanted() -> None:
    missing = frozenset({"qemu-system-x86", "qemu-system-arm", "vagrant"})
    host = dataclasses.replace(READY, missing=missing)

    def asked(profile: str) -> set[str]:
        return {package.name for package in provision.decide(host, profile).packages}

    assert set() == asked("test")
    assert {"qemu-system-x86"} == asked("lab") == asked("kernels")
    assert missing == asked("kernels-full")


def test_test_tools_are_installed_when_tests_are_first_wanted() -> None:
    host = dataclasses.replace(READY, record=READY.record | {"python": "plain"})

    assert not provision.decide(host, "demo")
    assert provision.decide(host, "test").install_python


def test_another_kernel_has_criu_checked_again() -> None:
    host = dataclasses.replace(READY, criu_key="checked, but on another kernel")

    assert provision.Plan((), False, False, find_criu=True) == provision.decide(host, "run")


def test_another_python_or_place_makes_the_environment_anew() -> None:
    plan = provision.decide(dataclasses.replace(READY, venv_key="3.13 here"), "run")

    assert plan == provision.Plan((), make_venv=True, install_python=True, find_criu=True)


@pytest.mark.parametrize("key", [None, "another source"], ids=["none", "another"])
def test_library_for_criu_is_built_from_the_source_that_is_there(key: str | None) -> None:
    assert provision.Plan((), False, False, False, build_preload=True) == (
        provision.decide(dataclasses.replace(READY, preload_key=key), "run")
    )


@pytest.mark.parametrize(
    ("version", "kernel", "udp_lite", "fits"),
    [
        ("3.17.1-2+deb12u2", (6, 1), True, True),
        ("3.17.1-2+deb12u2", (6, 12), True, True),
        ("3.17.1-2+deb12u2", (6, 13), True, False),
        ("4.1.1-1", (6, 15), True, True),
        ("4.1.1-1", (6, 16), True, False),
        ("4.2.1-1", (6, 18), True, True),
        ("4.1.1-1", (7, 3), False, False),
        ("4.2.1-1", (7, 3), False, True),
    ],
)
def test_criu_versions_known_not_to_work_are_not_tried(
    version: str, kernel: tuple[int, int], udp_lite: bool, fits: bool
) -> None:
    assert fits == (provision.why_unfit(version, kernel, udp_lite) is None)


DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/debian.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("sources.list.d/a.sources", DEB822, ("http://mirror.example/debian", "/keys/debian.gpg")),
        ("sources.list", "deb http://m.example/d bookworm main\n", ("http://m.example/d", KEYRING)),
        (
            "sources.list.d/b.list",
            "deb-src http://no.example bookworm main\n"
            "deb [arch=amd64 signed-by=/k.gpg] http://m.example/d bookworm main contrib\n",
            ("http://m.example/d", "/k.gpg"),
        ),
    ],
)
def test_the_mirror_is_found_in_both_formats(
    tmp_path: Path, name: str, text: str, expected: tuple[str, str]
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / name).write_text(text)

    assert expected == mirror("bookworm", tmp_path)


@pytest.mark.parametrize("text", ["", DEB822.replace("Types: deb\n#", "Enabled: no\n#")])
def test_a_machine_without_debian_sources_is_told_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(text)

    with pytest.raises(SetupError, match="no package source for Debian bookworm"):
        mirror("bookworm", tmp_path)
