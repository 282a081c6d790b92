"""What COPY finds in a directory, what is ignored, and that nothing leads out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pymigrate.runtime.build_context import Context, Ignored, Item, digest
from pymigrate.runtime.errors import UsageError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "context"
    (made / "src/deep").mkdir(parents=True)
    for name in ("a.py", "b.py", "c.txt", "src/d.py", "src/deep/e.py"):
        (made / name).write_text(name)
    (tmp_path / "secret").write_text("secret")
    return made


@pytest.mark.parametrize(
    ("rules", "path", "expected"),
    [
        ("*.py", "a.py", True),
        ("*.py", "src/a.py", False),
        ("**/*.py", "src/deep/a.py", True),
        ("**/*.py", "a.py", True),
        ("src", "src/deep/a.py", True),
        ("/src/", "src/a", True),
        ("src\n!src/keep", "src/keep", False),
        ("src\n!src/keep", "src/other", True),
        ("*\n!a.py", "a.py", False),
        ("# a.py\n\n", "a.py", False),
        ("a?py", "a.py", True),
        ("[ab].py", "b.py", True),
        ("[^ab].py", "b.py", False),
        ("a.py", "axpy", False),
        ("src/**/e.py", "src/e.py", True),
        (".", "a.py", False),
    ],
)
def test_ignore_rules_mean_what_docker_says(rules: str, path: str, expected: bool) -> None:
    assert expected == (path in Ignored.parse(rules))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.py", ["a.py"]),
        ("./a.py", ["a.py"]),
        ("/a.py", ["a.py"]),
        ("*.py", ["a.py", "b.py"]),
        ("src/*.py", ["src/d.py"]),
        ("*/deep", ["src/deep"]),
        (".", [""]),
        ("src/../a.py", ["a.py"]),
    ],
)
def test_sources_are_found_by_name_and_pattern(
    directory: Path, pattern: str, expected: list[str]
) -> None:
    assert expected == Context.open(directory).matches(pattern)


@pytest.mark.parametrize("pattern", ["../secret", "src/../../secret", "nothing", "*.c"])
def test_what_leads_out_or_is_not_there_is_refused(directory: Path, pattern: str) -> None:
    with pytest.raises(UsageError):
        Context.open(directory).matches(pattern)


@pytest.mark.parametrize("target", ["../secret", "/etc/hostname", "loop"])
def test_a_link_that_leads_out_is_refused(directory: Path, target: str) -> None:
    (directory / "loop").symlink_to(target)

    with pytest.raises(UsageError, match="leads out"):
        Context.open(directory).matches("loop")


def test_a_directory_that_is_a_link_out_is_refused_in_a_pattern(
    directory: Path, tmp_path: Path
) -> None:
    (directory / "out").symlink_to(tmp_path)

    with pytest.raises(UsageError, match="leads out"):
        Context.open(directory).matches("out/*")


def test_a_link_that_stays_inside_is_followed(directory: Path) -> None:
    (directory / "link").symlink_to("src/d.py")

    (found,) = Context.open(directory).members("link")

    assert len("src/d.py") == found[0].size


def test_what_is_ignored_is_neither_found_nor_copied(directory: Path) -> None:
    (directory / ".containerignore").write_text("src/deep\n*.txt\n.containerignore\n")
    context = Context.open(directory)

    names = [member.name.decode() for member, _ in context.members("")]

    assert ["", "a.py", "b.py", "src", "src/d.py"] == names
    with pytest.raises(UsageError) as refused:
        context.matches("c.txt")
    assert "ignored" in refused.value.hint


def test_the_digest_is_of_names_modes_and_contents_and_not_of_times(directory: Path) -> None:
    def now() -> str:
        context = Context.open(directory)
        return digest([Item(context, "src", "app")])

    first = now()
    (directory / "src/d.py").touch()
    touched = now()
    (directory / "src/d.py").chmod(0o755)
    executable = now()
    (directory / "src/d.py").write_text("other")
    changed = now()

    assert first == touched
    assert 3 == len({first, executable, changed})
