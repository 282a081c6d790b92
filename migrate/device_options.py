"""``--device`` of ``run`` and ``create``: devices of the host that a container may use."""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence

from pymigrate.migrate.amounts import NOTHING
from pymigrate.runtime import cgroups_devices
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import Device, DeviceRule
from pymigrate.runtime.values import dataclass

_ACCESS = "rwm"


@dataclass(frozen=True)
class Granted:
    """A device, where the container sees it, where it is on the host, and what may be done."""

    device: Device
    source: str
    access: str

    @property
    def rule(self) -> DeviceRule:
        """What the container's cgroup is told."""
        return DeviceRule(True, self.device.type, self.device.major, self.device.minor, self.access)


def granted(texts: Sequence[str], *, renamed: bool = True) -> tuple[Granted, ...]:
    """Read each ``PATH[:PATH IN IT][:rwm]``; a directory stands for all devices below it.

    Not ``renamed``: the container sees the host's own nodes, so none can have another path.
    """
    found = tuple(each for text in texts for each in _granted(text))
    for each in found:
        if each.device.path != each.source and not renamed:
            raise UsageError(
                f"--device {each.source}:{each.device.path}: with --userns, --share mnt or --join "
                f"mnt a device has the path that it has on the host; {NOTHING}"
            )
    return found


def rules(devices: Sequence[Granted]) -> tuple[DeviceRule, ...]:
    """Return what a container may use: the usual devices and these; () is the usual ones."""
    if not devices:
        return ()
    return (*cgroups_devices.DEFAULT, *(each.rule for each in devices))


def _granted(text: str) -> Iterator[Granted]:
    source, *rest = text.split(":")
    access = rest.pop() if rest and not rest[-1].startswith("/") else _ACCESS
    path = rest.pop() if rest else source
    plain = all(
        each.startswith("/") and ".." not in each.split("/") and each.strip("/")
        for each in (source, path)
    )
    if rest or not plain or not access or set(access) - set(_ACCESS):
        raise UsageError(
            f"--device {text}: not PATH[:PATH][:rwm]; {NOTHING}",
            hint="such as /dev/fuse, /dev/sdb:/dev/data:r",
        )
    found = list(_below(text, source, path, access))
    if not found:
        raise UsageError(f"--device {text}: no device is in {source}; {NOTHING}")
    yield from found


def _below(text: str, source: str, path: str, access: str) -> Iterator[Granted]:
    status = _stat(text, source)
    if stat.S_ISDIR(status.st_mode):
        for name in sorted(os.listdir(source)):  # noqa: PTH208 - texts, as they were given
            inner = posixpath.join(source, name)
            if stat.S_IFMT(_stat(text, inner, follow=False).st_mode) in _KINDS:
                yield from _below(text, inner, posixpath.join(path, name), access)
        return
    kind = _TYPES.get(stat.S_IFMT(status.st_mode))
    if kind is None:
        raise UsageError(f"--device {text}: {source} is no device; {NOTHING}")
    number = status.st_rdev
    yield Granted(
        Device(
            posixpath.normpath(path),
            kind,
            os.major(number),
            os.minor(number),
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
        ),
        posixpath.normpath(source),
        access,
    )


_TYPES = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
_KINDS = (*_TYPES, stat.S_IFDIR)


def _stat(text: str, path: str, *, follow: bool = True) -> os.stat_result:
    try:
        return os.stat(path, follow_symlinks=follow)  # noqa: PTH116
    except OSError as error:
        raise UsageError(f"--device {text}: {path}: {error.strerror}; {NOTHING}") from error
