"""Labels of the host's security modules: an AppArmor profile, an SELinux context.

A process writes into a file of its own in /proc what it is to be from its next exec on. /proc is
opened by the middle process, before anything of the container is looked at: in a container's root
/proc may be anything, and a write that goes elsewhere would leave the process unconfined
(CVE-2019-16884).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pymigrate.runtime.errors import HostError, MissingFeature
from pymigrate.runtime.settings import Process
from pymigrate.runtime.values import dataclass

APPARMOR, SELINUX = "apparmor", "selinux"
UNCONFINED = "unconfined"  # AppArmor's name for what has no profile, on every host that has it
_WORDS = {APPARMOR: "AppArmor profile", SELINUX: "SELinux label"}
_HINTS = {
    APPARMOR: "apparmor_parser -r FILE loads a profile; --security-opt apparmor=unconfined: none",
    SELINUX: "seinfo -t lists what the policy has; --security-opt label=disable: none",
}


@dataclass(frozen=True)
class Label:
    """A label and the module that knows it."""

    module: str
    name: str

    def describe(self) -> str:
        """Say what it is, for messages."""
        return f"the {_WORDS[self.module]} {self.name}"

    @property
    def text(self) -> bytes:
        """What is written into the file."""
        return f"exec {self.name}".encode() if self.module == APPARMOR else self.name.encode()


def wanted(process: Process) -> tuple[Label, ...]:
    """Return the labels that a process asks for."""
    pairs = ((APPARMOR, process.apparmor_profile), (SELINUX, process.selinux_label))
    return tuple(Label(module, name) for module, name in pairs if name)


def modules(root: Path = Path("/")) -> frozenset[str]:
    """Return the modules that this kernel has and that are at work."""
    found = set()
    enabled = root / "sys/module/apparmor/parameters/enabled"
    if enabled.is_file() and enabled.read_text(encoding="ascii").startswith("Y"):
        found.add(APPARMOR)
    if (root / "sys/fs/selinux/enforce").exists():
        found.add(SELINUX)
    return frozenset(found)


def chosen(process: Process, here: frozenset[str] | None = None) -> tuple[Label, ...]:
    """Return the labels that are to be taken; MissingFeature where the host has no such module.

    To be unconfined where nothing confines is no wish.
    """
    asked = wanted(process)
    if not asked:
        return ()
    here = modules() if here is None else here
    for label in asked:
        if label.module not in here and label != Label(APPARMOR, UNCONFINED):
            raise MissingFeature(
                f"{label.describe()}: this host has no {_WORDS[label.module].partition(' ')[0]}",
                hint=_HINTS[label.module].rpartition("; ")[2],
            )
    return tuple(label for label in asked if label.module in here)


def take_at_exec(label: Label, proc: int) -> None:
    """Have the calling process, at its next exec, become what the label says.

    ``proc`` is a descriptor of the host's /proc.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        # One's own directory of each module is there since Linux 5.1, and with several of them
        # the only one that is not the first module's.
        fd = os.open(f"self/attr/{label.module}/exec", flags, dir_fd=proc)
    except FileNotFoundError:
        fd = os.open("self/attr/exec", flags, dir_fd=proc)
    try:
        os.write(fd, label.text)
    except OSError as error:
        reason = error.strerror
        if error.errno in (errno.ENOENT, errno.EINVAL):
            reason = "this host has none of this name"
        raise HostError(
            f"cannot take {label.describe()}: {reason}", hint=_HINTS[label.module]
        ) from error
    finally:
        os.close(fd)
