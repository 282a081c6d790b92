"""Named volumes: directories of the host that outlive the containers whose data is in them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pymigrate.runtime import errors, lock
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import NAME, Host
from pymigrate.runtime.settings import Spec
from pymigrate.runtime.state import Record, Volume
from pymigrate.runtime.values import replace

NOTHING = "nothing was changed"
_GOING = ".rm."  # no volume's name begins so


def place(host: Host, name: str) -> Path:
    """Return the directory of a volume, whether it is there or not."""
    return host.volumes / name


def located(host: Host, volume: Volume) -> Volume:
    """Return a volume as it is on this host, which may keep its named ones elsewhere."""
    return volume if volume.name is None else replace(volume, source=str(place(host, volume.name)))


def placed(host: Host, record: Record, settings: Spec) -> tuple[Record, Spec]:
    """Return both with their volumes `located`."""
    volumes = tuple(located(host, each) for each in record.volumes)
    places = {each.destination: each.source for each in volumes if each.name is not None}
    if not places:
        return record, settings
    mounts = tuple(
        replace(each, source=places[each.destination])
        if each.type == "bind" and each.destination in places
        else each
        for each in settings.mounts
    )
    return replace(record, volumes=volumes), replace(settings, mounts=mounts)


def make(host: Host, name: str, owner: tuple[int, int] = (0, 0)) -> bool:
    """Make a volume, root's in the container; False if it was there already.

    Raises:
        UsageError: the name is not one.

    """
    if not NAME.fullmatch(name):
        raise errors.UsageError(
            f"{name!r} is not a name for a volume; {NOTHING}",
            hint="use letters, digits, '_', '.' and '-', at most 63, a letter or digit first",
        )
    host.volumes.mkdir(mode=0o700, exist_ok=True)
    directory = place(host, name)
    try:
        directory.mkdir(mode=0o755)
    except FileExistsError:
        return False
    os.chown(directory, *owner)
    return True


def names(host: Host) -> list[str]:
    """List the volumes of a host."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(each.name for each in host.volumes.iterdir() if not each.name.startswith("."))
    return []


def users(host: Host) -> dict[str, list[str]]:
    """List, by the names of volumes, the containers that have them, whether they run or not."""
    found: dict[str, list[str]] = {}
    for container in Container.all(host):
        for each in container.record.volumes:
            if each.name is not None:
                found.setdefault(each.name, []).append(container.name)
    return found


def check(host: Host, name: str) -> Path:
    """Return the directory of a volume that is there.

    Raises:
        NotFound: it is not.

    """
    if name not in names(host):
        raise errors.NotFound(
            f"there is no volume {name!r}; {NOTHING}", hint="pymigrate volume ls lists them"
        )
    return place(host, name)


def remove(host: Host, name: str) -> None:
    """Remove a volume and all that is in it.

    Raises:
        NotFound: there is none.
        WrongState: a container has it.

    """
    with lock.locked(host.containers):  # no container gets it meanwhile
        directory = check(host, name)
        if holders := users(host).get(name):
            raise errors.WrongState(
                f"the volume {name} belongs to {', '.join(holders)}: it was not removed",
                hint="remove the containers first",
            )
        going = directory.with_name(f"{_GOING}{name}.{os.getpid()}")
        directory.rename(going)
    import shutil  # with bz2 and lzma, for who removes some

    shutil.rmtree(going)


def prune(host: Host) -> list[str]:
    """Remove the volumes that no container has; return their names."""
    for left in host.volumes.glob(f"{_GOING}*"):  # by a removal that was killed
        import shutil

        shutil.rmtree(left)
    unused = [name for name in names(host) if name not in users(host)]
    for name in unused:
        remove(host, name)
    return unused
