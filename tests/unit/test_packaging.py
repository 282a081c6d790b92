"""What is installed is what is in the folders, and the commands at the root can be run."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from pymigrate.runtime.version import VERSION

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
FOLDERS = ("checkpoint", "migrate", "runtime", "transport")


def git(*arguments: str) -> str:
    """Ask git about the checkout, whoever owns it."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", f"safe.directory={REPOSITORY}", *arguments]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stderr
    return result.stdout


def test_packages_are_the_folders_on_disk() -> None:
    found = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    found -= {"bench", "tests"}  # of the checkout, not installed

    assert set(FOLDERS) == found
    assert {f"pymigrate.{name}" for name in found} == set(PROJECT["tool"]["setuptools"]["packages"])
    assert {f"pymigrate.{name}": name for name in found} == (
        PROJECT["tool"]["setuptools"]["package-dir"]
    )


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_package_is_flat_and_typed(folder: str) -> None:
    """Nested packages would have to be listed by hand, and would be left out of the wheel."""
    assert [] == [str(path) for path in (REPOSITORY / folder).glob("*/**/*.py")]
    assert (REPOSITORY / folder / "py.typed").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_mypy_finds_a_package_through_its_link(folder: str) -> None:
    link = REPOSITORY / "tests/typing/pymigrate" / folder

    assert Path("../../..", folder) == link.readlink()


def test_wheel_holds_every_module_under_pymigrate_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(
            REPOSITORY / folder,
            source / folder,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "LICENSE", PROJECT["project"].get("readme", "LICENSE")):
        shutil.copy(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr

    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    shipped = (".c", ".json", ".proto", ".py", ".pyi")
    assert packed == {
        f"pymigrate/{path.relative_to(REPOSITORY)}"
        for folder in FOLDERS
        for path in (REPOSITORY / folder).glob("*")
        if path.suffix in shipped or path.name == "py.typed"
    }


def test_version_is_known_to_the_installed_package() -> None:
    assert PROJECT["project"]["version"] == importlib.metadata.version("pymigrate") == VERSION


@pytest.mark.parametrize("name", ["demo", "pymigrate", "test", ".ci/run"])
def test_a_command_is_executable_and_parses(name: str) -> None:
    command = REPOSITORY / name
    shell = command.read_text().splitlines()[0].removeprefix("#!")

    assert os.access(command, os.X_OK)
    subprocess.run([shell, "-n", command], check=True)


def test_no_other_executables_lie_at_the_root() -> None:
    listed = (line.split("\t") for line in git("ls-files", "--stage").splitlines())

    assert {"demo", "pymigrate", "test"} == {
        path for mode, path in listed if mode.startswith("100755") and "/" not in path
    }


def test_pymigrate_runs_from_anywhere_and_through_a_link(tmp_path: Path) -> None:
    """The command finds its environment by its own place, not by the current directory."""
    link = tmp_path / "linked"
    link.symlink_to(REPOSITORY / "pymigrate")

    for command in (REPOSITORY / "pymigrate", link):
        result = subprocess.run(
            [command, "--help"], cwd="/", capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr


def test_pymigrate_without_its_environment_says_how_to_make_it(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "pymigrate", tmp_path)

    result = subprocess.run(
        [tmp_path / "pymigrate", "ps"], capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["pymigrate", "hint"]


def test_no_machine_of_ours_is_named_in_the_sources() -> None:
    """Mirrors and package indexes are the user's choice, and homes are the author's."""
    names = r"pypi[.]org|pythonhosted[.]org|deb[.]debian[.]org|/home/[a-z]+/|/Users/"
    names += r"|(^|[^[:alnum:]])/root/[.a-z]+/"
    but_here = f":!{Path(__file__).relative_to(REPOSITORY)}"

    assert git("grep", "--untracked", "-nIE", names, "--", ".", but_here) == ""
