"""One tree of errors: the classes, their docstring and the README's table say the same."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from pymigrate.runtime import errors
from pymigrate.runtime.errors import PymigrateError

README = Path(__file__).parents[2] / "README.md"


def classes() -> list[type[PymigrateError]]:
    return [
        value
        for _, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, PymigrateError)
    ]


def test_the_docstrings_tree_names_every_class_with_its_code() -> None:
    drawn = dict(re.findall(r"(\w+) +(\d+)$", errors.__doc__ or "", re.MULTILINE))

    assert {cls.__name__: str(cls.exit_code) for cls in classes()} == drawn


def test_the_readme_names_every_class_with_its_code() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)

    assert {(str(cls.exit_code), cls.__name__) for cls in classes()} == set(rows)


def test_no_two_classes_share_a_code() -> None:
    codes = [cls.exit_code for cls in classes()]

    assert len(codes) == len(set(codes))


def test_a_subclass_code_lies_in_its_family() -> None:
    for cls in classes():
        parent = cls.__bases__[0]
        if parent is not PymigrateError and issubclass(parent, PymigrateError):
            assert cls.exit_code // 10 == parent.exit_code // 10 or cls.exit_code >= 125


@pytest.mark.parametrize("cls", classes())
def test_every_error_keeps_message_and_hint(cls: type[PymigrateError]) -> None:
    error = cls("web: it failed", hint="try again")

    assert (str(error), error.message, error.hint) == ("web: it failed",) * 2 + ("try again",)
