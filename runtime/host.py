"""A host: a root directory that holds everything; two roots on one machine are two hosts."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pymigrate.runtime import errors
from pymigrate.runtime.values import dataclass

DEFAULT_ROOT = Path("/var/lib/pymigrate")
_ID_FILE = "host-id"
_ID_LENGTH = 12
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def check_name(name: str) -> str:
    """Return the name if a container may be called so.

    Raises:
        UsageError: it may not.

    """
    if not NAME.fullmatch(name):
        raise errors.UsageError(
            f"{name!r} is not a name for a container; nothing was changed",
            hint="use letters, digits, '_', '.' and '-', at most 63, a letter or digit first",
        )
    return name


@dataclass(frozen=True)
class Host:
    """One root directory and the random name (12 hex digits) that tells it from others."""

    root: Path
    id: str

    @classmethod
    def open(cls, root: Path) -> Host:
        """Open the root, making its directories (0700) and its id the first time.

        Raises:
            NotRoot: the effective user is not root.
            HostError: the directory cannot be made or its id is damaged.

        """
        if os.geteuid() != 0:
            raise errors.NotRoot(
                "only root can make containers; nothing was changed", hint="use sudo pymigrate …"
            )
        root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links
        host = cls(root, "")
        try:
            for directory in (root, host.containers, host.images, host.migrations, host.cache):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(root, _identify(root / _ID_FILE))
        except OSError as error:
            raise errors.HostError(
                f"cannot use {root} as a root: {error.strerror}; nothing was changed",
                hint="choose a directory on a local disk with --root or PYMIGRATE_ROOT",
            ) from error

    @classmethod
    def of_container(cls, directory: Path) -> Host:
        """Return the host to which a container's directory belongs."""
        root = directory.parent.parent
        return cls(root, _identify(root / _ID_FILE))

    @property
    def containers(self) -> Path:
        """The directory with one directory for each container."""
        return self.root / "containers"

    @property
    def images(self) -> Path:
        """The directory of the image store."""
        return self.root / "images"

    @property
    def volumes(self) -> Path:
        """The directory of the named volumes, made with the first; see volumes.py."""
        return self.root / "volumes"

    @property
    def index(self) -> Path:
        """The file that says which images there are; see image_index.py."""
        return self.images / "index.json"

    @property
    def migrations(self) -> Path:
        """The directory with one journal for each migration."""
        return self.root / "migrations"

    @property
    def cache(self) -> Path:
        """What can be made again: CRIU's knowledge of the kernel, for example."""
        return self.root / "cache"


def _identify(path: Path) -> str:
    """Return the id kept in the file, making it if there is none; of two makers one wins."""
    try:
        found = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        fresh = path.with_name(f"{_ID_FILE}.{os.getpid()}")
        fresh.write_text(os.urandom(_ID_LENGTH // 2).hex() + "\n", encoding="ascii")
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass  # another process was first: its id holds
        finally:
            fresh.unlink()
        found = path.read_text(encoding="ascii").strip()
    if len(found) != _ID_LENGTH or any(digit not in "0123456789abcdef" for digit in found):
        raise errors.HostError(
            f"{path} is damaged: {found[:40]!r} is not {_ID_LENGTH} hex digits",
            hint="put the id from one of its containers' cgroups back, or remove it if it has none",
        )
    return found
