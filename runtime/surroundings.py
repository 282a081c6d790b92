"""What is around a container before anything runs in it: mounts, network, cgroup.

All of it belongs to the supervisor's process, so the kernel takes most of it back when that dies:
the mounts are in a mount namespace of its own, the network namespace is held by a descriptor.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.runtime import errors, image_notes, launch, spec, state, syscalls
from pymigrate.runtime.cgroups import Cgroup
from pymigrate.runtime.host import Host
from pymigrate.runtime.namespaces import host_id
from pymigrate.runtime.spec import Spec
from pymigrate.runtime.state import Record, boot_id
from pymigrate.runtime.supervision import LENT
from pymigrate.runtime.values import dataclass, field

if TYPE_CHECKING:
    from pymigrate.runtime.init import Started
    from pymigrate.runtime.stdio import Stdio

_KERNDAT = Path("/run/criu.kdat")


@dataclass()
class Surroundings:
    """The surroundings of one container; ``leave`` is the undo of ``prepare`` and ``mount``."""

    host: Host
    record: Record
    spec: Spec
    directory: Path
    cgroup: Cgroup
    netns: int = -1
    users: int | None = None  # the user namespace, if it has one of its own
    _mounted: bool = False
    _lent: bool = False
    _held: list[socket.socket] = field(default_factory=list)  # the host's ports that are ours
    _has_cache: bool = False
    _undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def of(cls, directory: Path) -> Surroundings:
        """Read what the container in a directory is; nothing is made yet."""
        record = state.record_from_document(state.read_document(directory / "container.json"))
        host = Host.of_container(directory)
        return cls(
            host=host,
            record=record,
            spec=spec.load(directory / "config.json"),
            directory=directory,
            cgroup=Cgroup.named(f"{host.id}/{record.name}"),
        )

    @property
    def rootfs(self) -> Path:
        """Where the container's root is mounted."""
        return self.directory / "rootfs"

    def prepare(self, *, plugged: bool) -> None:
        """Make the mount namespace, cgroup and network; on failure nothing is left.

        Raises:
            MissingFeature: a limit cannot be enforced here.
            HostError: what else the kernel refuses.

        """
        with contextlib.ExitStack() as undo:
            self._make_mount_namespace()
            undo.callback(self._remove_cgroup)
            self.cgroup.kill()  # what a supervisor that was killed left behind
            self.cgroup.create()
            self.cgroup.apply(self.spec.resources)
            self._make_users()
            self._connect(undo, plugged=plugged)
            self._undo = undo.pop_all()

    def leave(self) -> None:
        """Remove mount, cable and the cgroup with all that is in it; a second time does nothing."""
        for held in self._held:
            held.close()
        for descriptor in (self.netns, self.users if self.users is not None else -1):
            if descriptor >= 0:
                os.close(descriptor)
        self.netns, self.users = -1, None
        with self._undo:
            self.take_back()
            if self._mounted:
                self._mounted = False
                syscalls.umount2(os.fspath(self.rootfs), syscalls.MNT_DETACH)

    def expect_restore(self) -> None:
        """Load what `mount` and `show_cgroup` need: it takes 3 ms, which a move has before."""
        from pymigrate.runtime import cgroup_view, rootfs  # noqa: F401 - loaded is all

    def mount(self) -> None:
        """Mount the container's root at rootfs/, once its upper directory is complete."""
        if self._mounted or not self.spec.private("mount"):
            return
        from pymigrate.runtime import rootfs  # costs what a prepared target need not wait for

        lower = launch.lower_directories(self.host, self.record)
        for directory in lower:
            if not directory.is_dir():
                raise errors.ContainerError(
                    f"{self.record.name}: {directory}, which its root is made of, is not there",
                    hint="import the image again, or put the directory back",
                )
        rootfs.overlay(
            lower,
            self.directory / "upper",
            self.directory / "work",
            self.rootfs,
            syscalls,
            users=self.users,
        )
        self._mounted = True

    @property
    def lent(self) -> Path:
        """Where mounts that CRIU is to find are attached."""
        return self.directory / LENT

    def lend(self, trees: Sequence[int]) -> None:
        """Attach detached mounts below `lent`, by their numbers; those before are taken back."""
        self.take_back()
        self.lent.mkdir(mode=0o700, exist_ok=True)
        # One mount below which the others are, so that one call takes back all.
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("pymigrate", os.fspath(self.lent), "tmpfs", flags, "mode=700")
        self._lent = True
        for number, tree in enumerate(trees):
            place = self.lent / str(number)
            place.mkdir()
            empty = syscalls.MOVE_MOUNT_F_EMPTY_PATH
            syscalls.move_mount(tree, "", syscalls.AT_FDCWD, os.fspath(place), empty)

    def take_back(self) -> None:
        """Unmount here what was lent: the container has it now."""
        if self._lent:
            self._lent = False
            syscalls.umount2(os.fspath(self.lent), syscalls.MNT_DETACH)
            self.lent.rmdir()

    def identify(self) -> None:
        """Write /etc/hostname, hosts and resolv.conf into the mounted root.

        Not for a restore: the container may have them open.
        """
        if not self._mounted:
            return
        from pymigrate.runtime import names, rootfs

        network = self.record.network
        hostname = self.spec.hostname or os.uname().nodename
        hosts = names.hosts(network, hostname, self.record.name)
        resolv = names.resolv_conf(_resolvers(), network.names)
        owner = (0, 0)
        if self.users is not None:
            owner = host_id(self.spec.uid_mappings, 0), host_id(self.spec.gid_mappings, 0)
        rootfs.write_identity(self.rootfs, hostname, hosts, resolv, owner=owner)
        rootfs.make_directories(
            self.rootfs, image_notes.volumes(self.spec.annotations), owner=owner
        )

    def give_birth(self, streams: Stdio) -> Started:
        """Start the container's init, a child of the calling process, in what is prepared."""
        from pymigrate.runtime import init  # a prepared target does not need it

        return init.spawn_init(
            self.spec,
            rootfs=os.fspath(self.rootfs) if self.spec.private("mount") else "/",
            netns_fd=self.netns if self.spec.namespace("network") is not None else None,
            users_fd=self.users,
            cgroup=self.cgroup,
            stdio=streams,
            cache=self.host.cache,
            cgroup_places=self.cgroup.places,
        )

    def show_cgroup(self, pid: int) -> None:
        """Let a process that CRIU has restored, and that is held, see its cgroup where it was."""
        from pymigrate.runtime import cgroup_view, mounts  # a start does without

        if mounts.cgroup_places(self.spec):
            cgroup_view.show(self.spec, self.cgroup.places, pid)

    def offer_criu_cache(self) -> None:
        """Give CRIU a tmpfs on /run, the only place where it keeps what it knows of the kernel.

        Without it each run of CRIU probes the kernel for 40 ms.
        """
        if self._has_cache or self._needs_run():
            return
        self._has_cache = True
        if not _is_tmpfs("/run"):
            syscalls.mount("pymigrate", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV)
        if not _KERNDAT.exists():
            with contextlib.suppress(FileNotFoundError):  # CRIU has not run since the boot
                _KERNDAT.write_bytes(self._cached_kerndat().read_bytes())

    def keep_criu_cache(self) -> None:
        """Keep what CRIU found out about the kernel for the next supervisor."""
        kept = self._cached_kerndat()
        if not self._has_cache or kept.exists():
            return
        with contextlib.suppress(FileNotFoundError):  # CRIU wrote none
            found = _KERNDAT.read_bytes()
            for stale in kept.parent.glob("criu.kdat.*"):
                stale.unlink(missing_ok=True)
            fresh = kept.with_name(f"new.kdat.{os.getpid()}")
            fresh.write_bytes(found)
            fresh.replace(kept)

    def _cached_kerndat(self) -> Path:
        return self.host.cache / f"criu.kdat.{boot_id()}"

    def _needs_run(self) -> bool:
        """Tell whether /run, or something below it, must stay as it is for others."""
        if self.spec.namespace("mount") is None:
            return True
        ours = [os.fspath(self.host.root), *(volume.source for volume in self.record.volumes)]
        return any(Path("/run") in (Path(path), *Path(path).parents) for path in ours)

    def _make_mount_namespace(self) -> None:
        if self.spec.namespace("mount") is None:
            return  # the container is to see the host's own, of which ours would be a copy
        syscalls.unshare(syscalls.CLONE_NEWNS)
        # Unmounts of the host must reach us (or we would keep its disks busy), ours not the host.
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)

    def _make_users(self) -> None:
        """Make the user namespace, and a network that belongs to it."""
        if not self.spec.private("user"):
            return
        from pymigrate.runtime import userns  # few containers have one

        made = userns.make(self.spec, network=self.record.network.is_own)
        self.users = made.users
        if made.network is not None:
            self.netns = made.network

    def _connect(self, undo: contextlib.ExitStack, *, plugged: bool) -> None:
        settings = self.record.network
        if not settings.is_own:
            path = settings.namespace_path or "/proc/self/ns/net"
            try:
                self.netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise errors.HostError(
                    f"cannot join the network namespace {path}: {error.strerror}",
                    hint="ip netns add NAME makes one at /run/netns/NAME",
                ) from error
            return
        from pymigrate.runtime import network  # not needed for a namespace that exists

        if self.netns < 0:
            self.netns = network.new_namespace()
        interface = network.interface_name(self.host.id, self.record.name)
        if settings.has_cable:
            undo.callback(network.detach, interface)
        if settings.ports:
            from pymigrate.runtime import publishing

            # Held by us until we end; the rules lead there as soon as they are made.
            self._held = publishing.hold(settings, self.record.name)
            undo.callback(publishing.unpublish, interface)
        network.attach(settings, self.netns, interface, plugged=plugged)
        self._set_parameters()
        if settings.ports:
            publishing.publish(settings, interface)

    def plug(self) -> None:
        """Let packets pass; a second time does nothing."""
        if self.record.network.has_cable:
            from pymigrate.runtime import network

            network.plug(network.interface_name(self.host.id, self.record.name))

    @property
    def is_fenced(self) -> bool:
        """Whether a migration decides about the container."""
        return (self.directory / launch.FENCE_NAME).exists()

    def move_network(self, pid: int) -> None:
        """Make the network namespace of a process the container's; the cable goes there, unplugged.

        Does nothing for a container without a network of its own.
        """
        settings = self.record.network
        if not settings.is_own:
            return
        from pymigrate.runtime import network

        interface = network.interface_name(self.host.id, self.record.name)
        theirs = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if settings.has_cable:
            network.detach(interface)
        os.close(self.netns)
        self.netns = theirs
        network.attach(settings, theirs, interface, plugged=False)
        self._set_parameters()

    def _set_parameters(self) -> None:
        """Set the network's sysctls: CRIU brings the other namespaces' back, but not these."""
        from pymigrate.runtime import network

        wanted = self.spec.sysctl.items()
        ours = {name: value for name, value in wanted if name.startswith("net.")}
        network.set_parameters(self.netns, ours)

    def _remove_cgroup(self) -> None:
        self.cgroup.kill()
        self.cgroup.remove()


def _resolvers() -> str:
    """Return a resolv.conf that also works where the host's loopback is not."""
    # systemd-resolved listens on 127.0.0.53 and keeps the real servers in the second file.
    text = ""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        with contextlib.suppress(FileNotFoundError):
            text = path.read_text(encoding="utf-8", errors="replace")
        if "nameserver 127." not in text:
            break
    return text


def _is_tmpfs(path: str) -> bool:
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount_point, kind, *_ = line.split(" ")
        if mount_point == path and kind == "tmpfs":
            return True
    return False
