"""A busybox to run as a container, and one that sleeps."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymigrate.runtime.settings import (
    Spec,
)
from pymigrate.runtime.spec import default_spec
from pymigrate.runtime.stdio import Stdio
from tests.privileged.isolation.box import (
    APPLETS,
    Box,
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def box(tmp_path: Path, cache: Path) -> Box:
    # pytest's directories are closed to others; the container's users must get in.
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    for name in APPLETS.split():
        (root / "bin" / name).symlink_to("busybox")
    return Box(root, cache)


@pytest.fixture
def sleeper(box: Box) -> Iterator[tuple[int, Spec]]:
    """Start a container that sleeps."""
    spec = default_spec(["sleep", "1000"], hostname="web")
    null = os.open("/dev/null", os.O_RDWR)
    started = box.start(spec, Stdio(None, null, null))
    os.close(null)
    yield started.pid, spec
    os.kill(started.pid, signal.SIGKILL)
    os.waitpid(started.pid, 0)
