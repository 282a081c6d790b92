"""CRIU's messages one kind at a time: pycriu, which has them, loads all eighty at once, in 25 ms.

They are modules that protoc has made. Those of images import one another by their bare names, for
which pycriu appends their directory to ``sys.path``; so do we. Who loads pycriu itself later gets
other modules of the same messages: protobuf knows each but once, by its name.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

_loading = threading.RLock()


def rpc() -> Any:
    """Return the messages of CRIU's service. Raises ImportError."""
    with _loading:
        return _load(_directory() / "rpc_pb2.py")


def image(name: str) -> Any:
    """Return those of a kind of image, such as ``pagemap``. Raises ImportError."""
    directory = str(_directory() / "images")
    if directory not in sys.path:
        sys.path.append(directory)
    return import_module(f"{name}_pb2")


def magic() -> Any:
    """Return the module of the numbers that images begin with. Raises ImportError."""
    with _loading:
        return _load(_directory() / "images/magic.py")


@cache
def _directory() -> Path:
    """Find pycriu, and load nothing of it. Raises ImportError."""
    found = importlib.util.find_spec("pycriu")
    if found is None or not found.submodule_search_locations:
        raise ImportError("there is no package pycriu")
    return Path(found.submodule_search_locations[0]).resolve()


@cache
def _load(path: Path) -> Any:
    name = f"{__name__}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError as error:
        raise ImportError(f"there is no {path}") from error
    return module
