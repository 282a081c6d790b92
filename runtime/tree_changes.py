"""What makes one tree out of another, decided from their two indexes.

The one tree is at the target, as it was last sent; the other is here. A plan's parts are applied in
their order: files whose names change are put aside, what is gone is removed, and then every name is
made or changed, directories before what is in them; the times of directories come last.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Container, Iterable, Mapping, Set
from dataclasses import dataclass, field

from pymigrate.runtime.tree_below import join, split
from pymigrate.runtime.tree_index import Index, Key, Names, Status


class Action(enum.Enum):
    """What is done about one name."""

    MAKE = "make"
    LINK = "link"  # to `source`, another name of the same file
    PLACE = "place"  # what was put aside as `source`; then its content as in CHANGE
    CHANGE = "change"  # content, where it differs, and owner, mode, times, attributes
    DRESS = "dress"  # owner, mode, times and attributes of what has no content


@dataclass(frozen=True, slots=True)
class Step:
    """One action; ``source`` is another name where the action needs one."""

    action: Action
    name: bytes
    status: Status
    source: bytes = b""


@dataclass(frozen=True)
class Plan:
    """All that is to be done; an empty one if the trees are the same."""

    keep: tuple[bytes, ...] = ()
    """Files to put aside, by the number that is their place here."""
    remove: tuple[bytes, ...] = ()
    """Names to remove, with everything in them."""
    steps: tuple[Step, ...] = ()
    directories: tuple[bytes, ...] = ()
    """Directories whose owner, mode, times or attributes are to be set, the deepest first."""

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.keep or self.remove or self.steps or self.directories)


def compare(
    old: Index,
    new: Index,
    doubtful: Iterable[bytes] = (),
    known: Container[Key] = frozenset(),
) -> Plan:
    """Return what makes the tree of ``old`` into that of ``new``.

    ``doubtful`` are names whose content or attributes may differ although the index says no.
    ``known`` are the files of the old tree: a new name of one of them is a link to it, even if the
    index says that it has one name only, since an index is not made in an instant.
    """
    found = _Differences()
    for directory, names in new.directories.items():
        found.add(directory, old.directories.get(directory, {}), names)
    for directory, before in old.directories.items():
        if directory not in new.directories:
            found.add(directory, before, {})
    again = found.unnoticed(old, new, doubtful)
    fresh, gone = found.fresh, found.gone
    changed = [*found.changed, *((name, status) for name, status in again if name)]
    shared = {
        status.key
        for _, status in fresh
        if not status.is_directory and (status.links > 1 or status.key in known)
    }
    links = _staying_links(old, new, shared) if shared else {}
    kept = _kept(gone, fresh, links)
    moved = frozenset(kept.values())
    vanished = frozenset(name for name, _ in gone)
    remove = [name for name, _ in gone if name not in moved and split(name)[0] not in vanished]
    dressed = {name for name, status in (*fresh, *changed) if status.is_directory}
    # The time of a directory is changed by what happens in it.
    parents = {split(name)[0] for name, _ in (*fresh, *gone)}
    dressed |= {parent for parent in parents if parent in new.directories}
    if old.root != new.root or kept or any(not name for name, _ in again):
        dressed.add(b"")
    return Plan(
        tuple(kept.values()),
        tuple(remove),
        (*_made(fresh, links, kept), *_changed(changed)),
        tuple(sorted(dressed, reverse=True)),
    )


_Named = tuple[bytes, Status]


@dataclass
class _Differences:
    """Names that are not there yet, that stay but may differ, and that must go (as they were)."""

    fresh: list[_Named] = field(default_factory=list)
    changed: list[_Named] = field(default_factory=list)
    gone: list[_Named] = field(default_factory=list)

    def add(self, directory: bytes, before: Names, names: Names) -> None:
        """Compare what a directory held with what it holds."""
        if before is names:
            return
        for base, status in names.items():
            was = before.get(base)
            if was is status or was == status:
                continue
            name = join(directory, base)
            if was is not None and _stays(was, status):
                self.changed.append((name, status))
                continue
            self.fresh.append((name, status))
            if was is not None:
                self.gone.append((name, was))
        self.gone += [
            (join(directory, base), was) for base, was in before.items() if base not in names
        ]

    def unnoticed(self, old: Index, new: Index, doubtful: Iterable[bytes]) -> list[_Named]:
        """Return those of the doubtful names that are in both trees and seem to be the same."""
        seen = {name for name, _ in (*self.changed, *self.fresh)}
        found: list[_Named] = []
        for name in sorted(frozenset(doubtful) - seen):
            status = new.get(name)
            if status is not None and old.get(name) is not None:
                found.append((name, status))
        return found


def _stays(was: Status, now: Status) -> bool:
    """Return whether what is there can become what should be, without being made anew."""
    if was.kind != now.kind:
        return False
    if was.kind == stat.S_IFLNK and was.ctime_ns != now.ctime_ns:
        return False  # another link may have got the inode of one that was removed
    return was.is_directory or (was.key == now.key and was.number == now.number)


def _staying_links(old: Index, new: Index, shared: Set[Key]) -> Mapping[Key, bytes]:
    """Return a name that stays for each file that may have several, if it has one."""
    found: dict[Key, bytes] = {}
    for name, status in new.entries():
        if status.key in shared and status.key not in found and not status.is_directory:
            was = old.get(name)
            if was is not None and _stays(was, status):
                found[status.key] = name
    return found


def _kept(
    gone: Iterable[tuple[bytes, Status]],
    fresh: Iterable[tuple[bytes, Status]],
    links: Mapping[Key, bytes],
) -> dict[Key, bytes]:
    """Return the old names of files that get new ones."""
    wanted = {status.key for _, status in fresh if status.is_file and status.key not in links}
    found: dict[Key, bytes] = {}
    for name, was in gone:
        if was.is_file and was.key in wanted:
            found.setdefault(was.key, name)
    return found


def _made(
    fresh: Iterable[tuple[bytes, Status]], links: Mapping[Key, bytes], kept: Mapping[Key, bytes]
) -> Iterable[Step]:
    first = dict(links)
    for name, status in fresh:
        if status.is_directory:
            yield Step(Action.MAKE, name, status)
        elif status.key in first:
            yield Step(Action.LINK, name, status, first[status.key])
        elif status.is_file and status.key in kept:
            first[status.key] = name
            yield Step(Action.PLACE, name, status, kept[status.key])
        else:
            first[status.key] = name
            yield Step(Action.MAKE, name, status)


def _changed(changed: Iterable[tuple[bytes, Status]]) -> Iterable[Step]:
    done: set[Key] = set()
    for name, status in changed:
        if status.is_directory or (status.links > 1 and status.key in done):
            continue
        done.add(status.key)
        yield Step(Action.CHANGE if status.is_file else Action.DRESS, name, status)
