"""mount(8)'s option words, sorted by who takes them."""

from __future__ import annotations

from pymigrate.runtime import syscalls
from pymigrate.runtime.values import dataclass


@dataclass(frozen=True)
class Options:
    """mount(8)'s options, sorted by who takes them.

    ``parameters`` go to the filesystem by fsconfig(2): (name, value), value None for a flag.
    """

    attr_set: int = 0
    attr_clr: int = 0
    recursive_set: int = 0
    propagation: int = 0
    recursive_propagation: bool = False
    parameters: tuple[tuple[str, str | None], ...] = ()
    copy_up: bool = False  # begin with what the place holds that is mounted on (podman's tmpfs)

    @property
    def propagation_flags(self) -> int:
        """The propagation as mount(2) takes it."""
        return self.propagation | (syscalls.MS_REC if self.recursive_propagation else 0)


NO_OPTIONS = Options()

_SET = {
    "ro": syscalls.MOUNT_ATTR_RDONLY,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "nodiratime": syscalls.MOUNT_ATTR_NODIRATIME,
    "nosymfollow": syscalls.MOUNT_ATTR_NOSYMFOLLOW,
}
_CLEAR = {
    "rw": syscalls.MOUNT_ATTR_RDONLY,
    "suid": syscalls.MOUNT_ATTR_NOSUID,
    "dev": syscalls.MOUNT_ATTR_NODEV,
    "exec": syscalls.MOUNT_ATTR_NOEXEC,
    "diratime": syscalls.MOUNT_ATTR_NODIRATIME,
    "symfollow": syscalls.MOUNT_ATTR_NOSYMFOLLOW,
}
_ATIME = {
    "relatime": syscalls.MOUNT_ATTR_RELATIME,
    "norelatime": syscalls.MOUNT_ATTR_STRICTATIME,
    "noatime": syscalls.MOUNT_ATTR_NOATIME,
    "atime": syscalls.MOUNT_ATTR_RELATIME,
    "strictatime": syscalls.MOUNT_ATTR_STRICTATIME,
}
_PROPAGATION = {
    "private": syscalls.MS_PRIVATE,
    "shared": syscalls.MS_SHARED,
    "slave": syscalls.MS_SLAVE,
    "unbindable": syscalls.MS_UNBINDABLE,
}
_SILENT = frozenset(("defaults", "async", "bind", "rbind", "loud", "silent"))


WORDS = frozenset(
    (*_SET, *(f"r{word}" for word in _SET), *_CLEAR, *_ATIME, *_PROPAGATION,
     *(f"r{word}" for word in _PROPAGATION), *_SILENT, "tmpcopyup")
)  # fmt: skip
"""The words that `options` knows; all others go to the filesystem."""


def options(words: tuple[str, ...]) -> Options:
    """Sort mount(8)'s words; what is not known to the kernel's generic part is a parameter."""
    set_, clear, recursive, propagation, recurse = 0, 0, 0, 0, False
    parameters: list[tuple[str, str | None]] = []
    copy_up = False
    for word in words:
        bare = word.removeprefix("r")
        if word in _SET:
            set_, clear = set_ | _SET[word], clear & ~_SET[word]
        elif word in _CLEAR:
            set_, clear = set_ & ~_CLEAR[word], clear | _CLEAR[word]
        elif word in _ATIME:
            set_ = set_ & ~syscalls.MOUNT_ATTR__ATIME | _ATIME[word]
            clear |= syscalls.MOUNT_ATTR__ATIME
        elif word in _PROPAGATION:
            propagation, recurse = _PROPAGATION[word], False
        elif bare in _PROPAGATION:
            propagation, recurse = _PROPAGATION[bare], True
        elif bare in _SET:
            recursive |= _SET[bare]
        elif word == "tmpcopyup":
            copy_up = True
        elif word not in _SILENT:
            name, equals, value = word.partition("=")
            parameters.append((name, value if equals else None))
    return Options(set_, clear, recursive, propagation, recurse, tuple(parameters), copy_up)
