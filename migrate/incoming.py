"""One container on its way to this host: what the target does and undoes.

What arrives is fenced and held until the source says that the move is committed. All of this may
be asked again after a lost answer, also by way of another connection; the journal's lock makes
sure that only one of them acts at a time.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pymigrate.checkpoint import restore
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.migrate import image_files
from pymigrate.migrate.journal import Journal
from pymigrate.migrate.phases import Phase
from pymigrate.runtime import events, inflight, network, priority, tree, tree_apply
from pymigrate.runtime.announcing import Announcer
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import AlreadyExists, NotFound, ProtocolError, WrongState
from pymigrate.runtime.host import Host
from pymigrate.runtime.images import Store
from pymigrate.runtime.spec import Spec
from pymigrate.runtime.state import Record, Status
from pymigrate.runtime.supervision import Supervision

SPARE = 1 << 30
"""Bytes by which what arrives may exceed what was announced: the container ran on meanwhile."""

MAX_ROUNDS = 32
"""Of changes to one tree: the limits are those of one round, and a disk is not endless."""


@dataclass
class Ready:
    """What waits for a container's frozen state: its supervisor, and a CRIU that has started."""

    keeper: Supervision
    criu: restore.PreparedRestore


@dataclass
class Waiting:
    """All that a connection keeps ready; a supervisor that nobody keeps ends by itself."""

    by_migration: dict[str, Ready] = field(default_factory=dict)
    announcers: dict[str, Announcer] = field(default_factory=dict)
    rounds: dict[tuple[str, str], int] = field(default_factory=dict)
    """How many rounds of changes each tree of a migration has taken, and taken whole."""

    def drop(self, migration_id: str) -> None:
        """Let go of one."""
        ready = self.by_migration.pop(migration_id, None)
        if ready is not None:
            ready.criu.close()
            ready.keeper.close()

    def announces(self, migration_id: str, announcer: Announcer) -> None:
        """Keep what tells where a container is, for when it does."""
        self.silence(migration_id)
        self.announcers[migration_id] = announcer

    def silence(self, migration_id: str) -> None:
        """Let go of that."""
        announcer = self.announcers.pop(migration_id, None)
        if announcer is not None:
            announcer.close()


@dataclass(frozen=True)
class Arriving:
    """The container whose memory is on its way: its directory, and how many bytes may come.

    ``complete`` says that its processes have all of it already, or ran and ended.
    """

    directory: Path
    room: int
    complete: bool


@dataclass
class Incoming:
    """A migration to this host, with its journal open and locked."""

    host: Host
    store: Store
    migration_id: str
    journal: Journal
    waiting: Waiting

    @property
    def directory(self) -> Path:
        """Where the journal and what has arrived are kept."""
        return self.host.migrations / self.migration_id

    @property
    def images(self) -> Path:
        """CRIU's images, kept until the source says that it needs no second try."""
        return self.directory / "images"

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.journal.history.facts().get("name", ""))

    @property
    def limits(self) -> tree.Limits:
        """How much may arrive, from what was announced."""
        announced = self.journal.history.facts().get("announced_bytes", 0)
        return tree.Limits(max_bytes=int(str(announced)) + SPARE)

    def container(self) -> Container:
        """Open the container; NotFound unless it is here and fenced by this migration."""
        container = Container.open(self.host, self.name)
        if container.fenced_by != self.migration_id:
            raise NotFound(f"{self.name} on this host is not the one of {self.migration_id}")
        return container

    def arriving(self) -> Arriving:
        """Say where the container's memory goes."""
        history = self.journal.history
        complete = history.facts().get("memory_complete") is True
        return Arriving(
            self.host.containers / self.name,
            self.limits.max_bytes,
            complete=complete or (self._is_handed_over() and self._has_ended()),
        )

    def _is_handed_over(self) -> bool:
        """Return whether it was let run and is nobody's but its own people's.

        The fence goes last: where it is gone after the line `begin`, only the line `reach` is
        missing, which a crash kept from being written. Its people may have done anything since.
        """
        history = self.journal.history
        if history.begun < Phase.HANDED_OVER or history.reached >= Phase.HANDED_OVER:
            return history.reached >= Phase.HANDED_OVER
        try:
            return Container.open(self.host, self.name).fenced_by != self.migration_id
        except NotFound:
            return True

    def _own(self) -> Container | None:
        """Open the container that arrived; None if it was removed, or its name is another's."""
        try:
            container = Container.open(self.host, self.name)
        except NotFound:
            return None
        is_ours = container.record.id == self.journal.history.facts().get("container")
        return container if is_ours else None

    def _has_ended(self) -> bool:
        """Return whether a container that was handed over runs no more, or was even removed.

        What was run again since, by a person or by its supervisor, has none of that memory either.
        """
        container = self._own()
        if container is None:
            return True
        now = container.state()
        restored = self.journal.history.facts().get("init")
        return not now.status.is_alive or [now.pid, now.pid_started] != restored

    def reserve(self, record: Record, arriving: Spec, image: bytes) -> tuple[str, ...]:
        """Make the container's directory, fenced: that holds its name. Return missing layers."""
        if self.journal.history.reached < Phase.RESERVED:
            made = [v.source for v in record.volumes if not v.local and not Path(v.source).exists()]
            self.journal.begin(Phase.RESERVED, made_volumes=made)
            container = Container.create(self.host, record, arriving)
            container.fence(self.migration_id)
            if image:
                (self.directory / "image.json").write_bytes(image)
            self.journal.reach(Phase.RESERVED)
        return tuple(self.store.missing(record.layers))

    def prepare(self) -> None:
        """Make ready all that needs nothing of the frozen container; its layers are here now.

        Does nothing once it was restored, unless it was lost since and has never run.
        """
        history = self.journal.history
        if self._is_handed_over():
            return
        if history.begun >= Phase.HANDED_OVER and not self._has_never_run(self.container()):
            return
        if history.reached >= Phase.RESTORED:
            if self._is_held(self.container()):
                return
            self.journal.note(memory_complete=False)  # it went with the processes
        image = self.directory / "image.json"
        if image.exists():
            self.store.adopt(parse_json(image.read_bytes(), "image"))
        if self.migration_id not in self.waiting.by_migration:
            container = self.container()
            with ExitStack() as undo:
                keeper = undo.enter_context(container.prepare(plugged=False))
                restore.work_directory(container)
                is_its_own = not container.spec.private("user")  # else it will have another
                if is_its_own and container.record.network.has_cable:
                    self.waiting.announces(self.migration_id, _announcer(container, keeper))
                self.waiting.by_migration[self.migration_id] = Ready(
                    keeper, restore.prepare(container, inside=True)
                )
                undo.pop_all()

    def _has_never_run(self, container: Container) -> bool:
        """Return whether the restored processes have surely not run.

        The line of the hand-over comes before, and the thaw, which alone lets them run, last: what
        is frozen in between, as when its supervisor died there, has not run either.
        """
        history = self.journal.history
        if history.begun < Phase.HANDED_OVER or history.facts().get("never_ran") is True:
            return True
        return container.state().status is Status.PAUSED

    def _is_held(self, container: Container) -> bool:
        """Return whether the restored processes, which have not run, are there to be let run.

        Without their supervisor they cannot be, and are ended: they can be restored once more. That
        is nobody's business, so their sockets tell nobody: the cable is out.
        """
        now = container.state()
        if now.status.is_alive and now.supervisor is None:
            self.journal.note(never_ran=True)  # of which they are the only evidence
            container.unplug()
            container.end_unsupervised()
            return False
        return now.status.is_alive

    def put_images(self, manifest: bytes, stream: tree.Readable) -> None:
        """Take CRIU's images as a tar; a second time replaces the first."""
        self._await_images(manifest)
        tree.read(stream, self.images, limits=self.limits, hashed=False)

    def put_image_files(
        self, manifest: bytes, sizes: Mapping[str, int], stream: tree.Readable
    ) -> None:
        """Take CRIU's images one after the other; a second time replaces the first."""
        self._await_images(manifest)
        image_files.receive(sizes, stream, self.images, self.limits)

    def _await_images(self, manifest: bytes) -> None:
        priority.favour()  # until the end of this agent: another one takes the memory
        Manifest.from_json(manifest)
        if self.images.exists():
            shutil.rmtree(self.images)
        self.images.mkdir(mode=0o700)
        (self.directory / "manifest.json").write_bytes(manifest)

    def put_files(self, name: str, stream: tree.Readable, *, upper: bool) -> None:
        """Take the upper directory or a volume; a second time replaces the first."""
        into = self._emptied(name, upper=upper)
        tree.read(stream, into, limits=self.limits, overlay=upper, devices=True, hashed=False)

    def put_changes(self, name: str, stream: tree.Readable, number: int, *, upper: bool) -> None:
        """Take what changed in a tree since round ``number`` - 1; the first replaces all of it.

        A round that fails leaves the tree good for nothing but a first one, or `put_files`.
        """
        key = (self.migration_id, name)
        if number != 1 and self.waiting.rounds.get(key) != number - 1:
            raise ProtocolError(f"round {number} of the changes to {name} does not follow the last")
        if number > MAX_ROUNDS:
            raise ProtocolError(f"{number} rounds of changes to {name}: too many")
        into = self._emptied(name, upper=upper) if number == 1 else self._tree(name, upper=upper)
        self.waiting.rounds.pop(key, None)
        tree_apply.apply(stream, into, limits=self.limits, overlay=upper, devices=True)
        self.waiting.rounds[key] = number

    def _tree(self, name: str, *, upper: bool) -> Path:
        container = self.container()
        return container.upper if upper else _volume(container, name)

    def _emptied(self, name: str, *, upper: bool) -> Path:
        """Return the directory of a tree, with nothing in it."""
        self.waiting.rounds.pop((self.migration_id, name), None)
        into = self._tree(name, upper=upper)
        into.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in into.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return into

    def restore(self) -> int:
        """Restore and hold; from here on only the source decides. Return the PID."""
        if self.journal.history.reached < Phase.RESTORED:
            self.journal.begin(Phase.RESTORED)
            self._restore()
            self.journal.reach(Phase.RESTORED)
        return self.container().state().pid or 0

    def _restore(self) -> None:
        self.prepare()
        written = Manifest.from_json((self.directory / "manifest.json").read_bytes())
        manifest = written.placed(self.host)
        self.journal.note(memory_complete=not manifest.lazy)
        restore.hold(
            self.container(),
            self.images,
            manifest.restore_options(),
            self.waiting.by_migration[self.migration_id].criu,
        )
        now = self.container().state()
        self.journal.note(init=[now.pid, now.pid_started])
        self.waiting.drop(self.migration_id)

    def resume(self, frames: Sequence[bytes]) -> bool:
        """Let it run: the source has committed. Return whether it was running already.

        `frames` are packets that came for it while it was out; then its clients need not wait for
        their own next attempt.
        """
        history = self.journal.history
        if self._is_handed_over():
            self._note_arrival()
            return True
        if history.rolled_back or history.reached < Phase.RESTORED:
            raise WrongState(f"{self.name} was not restored here, so it cannot be resumed")
        container = self.container()
        if self._has_never_run(container):
            if not self._is_held(container):
                # It died without having run, as when this host lost its power; its images are here.
                self._restore()
        elif not container.state().status.is_alive:
            self._ended_unseen(container)
            return True
        self.journal.begin(Phase.HANDED_OVER, never_ran=False)
        self._let_run(container)
        if container.record.network.has_cable:
            inflight.deliver(container.host_interface, inflight.newest(frames))
        container.unfence(self.migration_id)
        self._note_arrival()
        return False

    def _note_arrival(self) -> None:
        """Write down that it was handed over, and tell who listens; a second time does nothing."""
        if self.journal.history.reached >= Phase.HANDED_OVER:
            return
        self.journal.reach(Phase.HANDED_OVER)
        container = self._own()
        if container is not None:
            events.note(self.host, container.record, "arrived", migration=self.migration_id)

    def _ended_unseen(self, container: Container) -> None:
        """Settle a hand-over that was cut short, of a container that has ended since.

        Bringing it back from the images could undo what it has acknowledged in between.
        """
        if container.state().finished is None:
            raise WrongState(
                f"{self.name} is not running here, and whether it ran after the hand-over is not "
                f"known; its images are in {self.images}",
                hint="if this host lost its power, bring it back from a checkpoint by hand",
            )
        container.unfence(self.migration_id)
        self._note_arrival()

    def _let_run(self, container: Container) -> None:
        """Tell the neighbours where the address is now, before the first packet asks for it.

        Raises WrongState if its supervisor has died: nobody would look after what runs then.
        """
        container.plug()
        with container.supervision() as supervision:
            if container.record.network.has_cable:
                if self.migration_id not in self.waiting.announcers:
                    announcer = _announcer(container, supervision)
                    self.waiting.announces(self.migration_id, announcer)
                self.waiting.announcers[self.migration_id].tell()
            container.thaw()
        self.waiting.silence(self.migration_id)

    def release(self) -> None:
        """Undo everything here; refused once the container may have run."""
        if self.journal.history.begun >= Phase.HANDED_OVER:
            raise WrongState(f"{self.name} was handed over: it runs here and stays")
        if self.journal.history.rolled_back:
            return
        try:
            container = self.container()
        except NotFound:
            pass  # never made, or another's: the name was taken before we could hold it
        else:
            container.remove(force=True, fenced_ok=True)
        self.waiting.drop(self.migration_id)
        self.waiting.silence(self.migration_id)
        made = self.journal.history.facts().get("made_volumes", [])
        for source in made if isinstance(made, list) else []:
            if Path(source).exists():
                shutil.rmtree(source)
        self.discard_images()
        self.journal.roll_back()

    def finish(self) -> None:
        """Drop the images: the source is gone and will not ask again."""
        if self.journal.history.reached < Phase.HANDED_OVER:
            raise WrongState(f"{self.name} does not run here yet")
        self.discard_images()
        if self.journal.history.reached < Phase.DONE:
            self.journal.reach(Phase.DONE)

    def discard_images(self) -> None:
        """Remove CRIU's images, which hold the container's memory."""
        if self.images.exists():
            shutil.rmtree(self.images)


def check_free(host: Host, record: Record) -> None:
    """Refuse what would hurt a neighbour or cannot work, before anything is made."""
    if (host.containers / record.name).exists():
        raise AlreadyExists(
            f"there is a container {record.name} on this host already",
            hint=f"remove or rename it: pymigrate rm {record.name}",
        )
    if network.address_in_use(record.network, except_mac=network.mac_of(record.network)):
        raise AlreadyExists(
            f"the address {record.network.address} of {record.name} is in use on this network",
            hint="find out who answers for it: ip neighbour",
        )
    for volume in record.volumes:
        source = Path(volume.source)
        if volume.local and not source.exists():
            raise NotFound(
                f"{record.name} wants this host's own {volume.source}, which does not exist",
                hint=f"make {volume.source} on this host",
            )
        if not volume.local and source.is_dir() and any(source.iterdir()):
            raise AlreadyExists(
                f"{volume.source}, a volume of {record.name}, is not empty on this host",
                hint="move it away, or run the container with :local for that volume",
            )
    if record.rootfs is not None and not Path(record.rootfs).is_dir():
        raise NotFound(
            f"{record.name} runs on the directory {record.rootfs}, which is not on this host",
            hint="import it as an image: images travel, directories do not",
        )


def _announcer(container: Container, supervision: Supervision) -> Announcer:
    namespace = supervision.netns()
    try:
        return Announcer(namespace, container.record.network)
    finally:
        os.close(namespace)


def _volume(container: Container, destination: str) -> Path:
    for volume in container.volumes_to_travel:
        if volume.destination == destination:
            return Path(volume.source)
    raise ProtocolError(f"{container.name} has no volume {destination!r} that travels")


def parse_json(data: bytes, what: str) -> Mapping[str, object]:
    """Read a JSON object that a peer sent; frames bound its length."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ProtocolError(f"the {what} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ProtocolError(f"the {what} is not a JSON object")
    return document
