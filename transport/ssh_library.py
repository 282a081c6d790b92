"""paramiko, without what it loads for ``Match exec`` in ssh_config(5) alone.

That is invoke, and with it asyncio, a parser of YAML and the mocks of unittest: a third of the time
that paramiko takes to load, and a move cannot begin before. paramiko does without if there is none.
"""

from __future__ import annotations

import sys
from importlib import import_module

_HINDERED = "invoke" not in sys.modules
if _HINDERED:
    sys.modules["invoke"] = None  # type: ignore[assignment]  # so that an import of it fails
try:
    import paramiko
finally:
    if _HINDERED:
        del sys.modules["invoke"]

__all__ = ["paramiko"]


def allow_exec() -> None:
    """Load the rest: a configuration may have ``Match exec`` in it."""
    vars(paramiko.config)["invoke"] = import_module("invoke")
