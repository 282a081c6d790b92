"""Where a lab puts its cgroups, on trees made of plain files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import registry


def cgroup2(directory: Path, *, processes: str = "", controllers: str = "cpu memory\n") -> Path:
    """Make what a cgroup of version 2 that is not the root looks like."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.type").write_text("domain\n")
    (directory / "cgroup.procs").write_text(processes)
    (directory / "cgroup.controllers").write_text(controllers)
    (directory / "cgroup.subtree_control").write_text("")
    return directory


def test_version_2_is_left_upwards_to_where_controllers_can_be_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slice_ = cgroup2(tmp_path / "user.slice")
    scope = cgroup2(slice_ / "session.scope", processes="1\n2\n")
    monkeypatch.setattr(registry, "own_cgroups", lambda: [scope])

    assert [slice_] == registry.base_cgroups()


def test_root_of_version_2_may_have_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.procs").write_text("1\n")
    monkeypatch.setattr(registry, "own_cgroups", lambda: [tmp_path])

    assert [tmp_path] == registry.base_cgroups()


def test_version_2_without_controllers_is_used_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cgroup2(tmp_path / "own", processes="1\n", controllers="\n")
    monkeypatch.setattr(registry, "own_cgroups", lambda: [own])

    assert [own] == registry.base_cgroups()


def test_new_cpuset_of_version_1_is_filled_from_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuset.cpus").write_text("0-1\n")
    (tmp_path / "cpuset.mems").write_text("0\n")
    made = tmp_path / "made"
    really_make = Path.mkdir

    def like_the_kernel(path: Path) -> None:
        really_make(path)
        (path / "cpuset.cpus").write_text("\n")
        (path / "cpuset.mems").write_text("\n")

    monkeypatch.setattr(Path, "mkdir", like_the_kernel)
    registry.make_cgroup(made)

    assert ("0-1\n", "0\n") == tuple(
        (made / name).read_text() for name in ("cpuset.cpus", "cpuset.mems")
    )


def test_cgroups_are_listed_deepest_first(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)

    names = [path.name for path in registry.subtree(tmp_path / "a")]

    assert ["c", "b", "a"] == names
    assert [] == registry.subtree(tmp_path / "none")


def test_entry_is_registered_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "REGISTRY", tmp_path / "registry")
    monkeypatch.setattr(registry, "base_cgroups", lambda: [tmp_path / "missing"])

    with pytest.raises(FileNotFoundError):
        registry.Entry.make(1)

    [entry] = (tmp_path / "registry").iterdir()
    assert "missing/pymigrate-lab." in (entry / "lab.json").read_text()
