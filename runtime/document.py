"""Read a JSON document of others: each value knows its path, for messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from pymigrate.runtime.errors import UsageError

T = TypeVar("T")


class Node:
    """A value in a JSON document together with its path, for messages."""

    def __init__(self, value: object, path: str) -> None:
        """Take a value and where it is."""
        self.value = value
        self.path = path

    def wrong(self, expected: str) -> UsageError:
        """Return the error that says what it must be."""
        return UsageError(f"{self.path}: must be {expected}, not {_shown(self.value)}")

    def get(self, key: str) -> Node | None:
        """Return a member of an object; None if it is null or not there."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        child = self.value.get(key)
        if child is None:
            return None
        return Node(child, f"{self.path}.{key}" if self.path else key)

    def need(self, key: str) -> Node:
        """Return a member that must be there."""
        child = self.get(key)
        if child is None:
            raise UsageError(
                f"{self.path}.{key}: is missing" if self.path else f"{key}: is missing"
            )
        return child

    def items(self) -> list[Node]:
        """Return the items of an array."""
        if not isinstance(self.value, Sequence) or isinstance(self.value, str | bytes):
            raise self.wrong("an array")
        return [Node(item, f"{self.path}[{index}]") for index, item in enumerate(self.value)]

    def text(self) -> str:
        """Return a string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        if "\0" in self.value:
            raise self.wrong("a string without NUL")
        return self.value

    def number(self, low: int = -(1 << 63), high: int = (1 << 64) - 1) -> int:
        """Return an integer that is in the range."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.wrong("an integer")
        if not low <= self.value <= high:
            raise self.wrong(f"between {low} and {high}")
        return self.value

    def flag(self) -> bool:
        """Return true or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def one_of(self, allowed: Sequence[str]) -> str:
        """Return a string that is one of those."""
        if self.value not in allowed:
            raise self.wrong("one of " + ", ".join(allowed))
        return self.text()

    def absolute(self) -> str:
        """Return a string that is an absolute path."""
        if not self.text().startswith("/"):
            raise self.wrong("an absolute path")
        return self.text()

    def strings(self) -> tuple[str, ...]:
        """Return an array of strings."""
        return tuple(item.text() for item in self.items())

    def dictionary(self) -> dict[str, str]:
        """Return an object whose members are strings."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("an object")
        return {str(key): self.need(str(key)).text() for key in self.value}


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def each_of(node: Node | None, read: Callable[[Node], T]) -> tuple[T, ...]:
    """Read each item of an array; of none there are none."""
    return () if node is None else tuple(read(item) for item in node.items())


def strings_of(node: Node | None) -> tuple[str, ...]:
    """Return an array of strings; of none there are none."""
    return () if node is None else node.strings()


def or_else(node: Node | None, read: Callable[[Node], T], default: T) -> T:
    """Read a value, or return the default where there is none."""
    return default if node is None else read(node)


def number_of(node: Node, key: str) -> int | None:
    """Return a member that is an integer, or None."""
    child = node.get(key)
    return None if child is None else child.number()


def some(**members: object) -> dict[str, object]:
    """Return a JSON object without the members that say nothing."""
    return {key: value for key, value in members.items() if value not in (None, (), [], {})}
