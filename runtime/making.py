"""Make the directory of a new container, complete or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pymigrate.runtime import errors, launch, lock, reaping, spec, state
from pymigrate.runtime.host import Host, check_name
from pymigrate.runtime.state import Record
from pymigrate.runtime.userns import owner_on_host


def make_directory(
    host: Host, record: Record, container_spec: spec.Spec, init: Path | None = None
) -> None:
    """Write down a new container; its directory appears by a rename.

    ``init`` is a program to put among its own files; see reaping.py.

    Raises:
        UsageError: the name is not one.
        AlreadyExists: the name is in use.

    """
    directory = host.containers / check_name(record.name)
    _sweep(host.containers)
    if directory.exists():
        raise _in_use(record.name)
    fresh = host.containers / f"{launch.HIDDEN}{record.name}.{record.id[:12]}"
    fresh.mkdir(mode=0o700)
    mark = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock.try_lock(mark)  # says to a sweeper that its maker lives
        for name in ("upper", "work", "rootfs"):
            (fresh / name).mkdir(mode=0o755)
        _imitate_root(fresh / "upper", launch.lower_directories(host, record), container_spec)
        if init is not None:
            reaping.put(init, fresh / "upper")
        spec.save(container_spec, fresh / "config.json")
        state.write_document(fresh / "container.json", state.record_to_document(record))
        fresh.rename(directory)
    except BaseException as error:
        launch.discard(fresh, record.id)
        if isinstance(error, OSError) and directory.exists():
            raise _in_use(record.name) from error
        raise
    finally:
        os.close(mark)


def _imitate_root(upper: Path, lower: tuple[Path, ...], container_spec: spec.Spec) -> None:
    """Give the upper directory the owner and mode of the root that it will cover."""
    users, groups = container_spec.uid_mappings, container_spec.gid_mappings
    with contextlib.suppress(FileNotFoundError, IndexError):  # layers may come later
        below = lower[-1].stat()
        os.chown(upper, owner_on_host(users, below.st_uid), owner_on_host(groups, below.st_gid))
        upper.chmod(below.st_mode & 0o7777)


def _sweep(containers: Path) -> None:
    """Remove what killed processes left half made or half removed."""
    for directory in containers.iterdir():
        if not directory.name.startswith(launch.HIDDEN):
            continue
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if lock.try_lock(fd):
                    launch.discard(directory, "")
            finally:
                os.close(fd)


def _in_use(name: str) -> errors.AlreadyExists:
    return errors.AlreadyExists(
        f"there is a container {name} already; nothing was changed",
        hint=f"pymigrate rm {name} removes it",
    )
