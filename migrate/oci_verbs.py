"""What the verbs of ``oci`` have in common: options as tables, and how a container is found."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from pymigrate.runtime import errors
from pymigrate.runtime.oci_container import OciContainer

Option = tuple[tuple[str, ...], dict[str, Any]]
Verb = tuple[str, str, Callable[[argparse.Namespace], int], Sequence[Option]]
FLAG = {"action": "store_true"}
NAME: Option = (("id",), {"metavar": "ID"})


def opened(given: argparse.Namespace) -> OciContainer:
    """Return the container that is named."""
    return OciContainer.open(given.root, given.id)


def refuse(given: argparse.Namespace, *names: str) -> None:
    """Raise UsageError for options of runc's that we do not have."""
    for name in names:
        if getattr(given, name):
            raise errors.UsageError(f"--{name.replace('_', '-')}: is not supported")
