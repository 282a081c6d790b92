"""What the source does and undoes in each phase of a migration.

Every ``do`` and ``undo`` may be repeated, and ``undo`` also follows a ``do`` that got half-way. A
step that runs after a crash finds only what the journal and the kernel kept: so the container may
be gone, and the dump that CRIU held is over.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.checkpoint import dump
from pymigrate.checkpoint.requests import DumpOptions
from pymigrate.migrate import image_files
from pymigrate.migrate.budget import USUAL_FIXED, Budget, Round
from pymigrate.migrate.driver import Facts, Step
from pymigrate.migrate.file_rounds import SMALL, FileRounds
from pymigrate.migrate.memory_rounds import MemoryRounds, Throttle
from pymigrate.migrate.modes import Mode
from pymigrate.migrate.peer import Peer
from pymigrate.migrate.phases import Phase
from pymigrate.migrate.progress import Counters
from pymigrate.runtime import events, inflight, network, priority, spec, state, tree
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import MigrationError, Unreachable
from pymigrate.runtime.images import Store
from pymigrate.transport import messages as m
from pymigrate.transport.rpc import Writer

if TYPE_CHECKING:
    from pymigrate.migrate.memory_sender import MemorySender

RESERVATION_SECONDS = 3600
PAGE = 4096
SWITCH_SECONDS = 0.0002
"""From the freeze on. Before, a thread that looks at memory may keep the interpreter for 5 ms each
time that the one for which clients wait has made a system call."""


@dataclass
class Move:
    """One migration as the source sees it: what its steps share.

    ``wanted_data`` is "auto", "ssh" or "tls"; ``data`` is which of the two came of it.
    ``wanted_streams`` is None where nobody asked for a number.
    """

    container: Container | None
    store: Store
    peer: Peer
    migration_id: str
    directory: Path
    hostname: str
    options: DumpOptions
    memory: int = 0
    files: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    missing_layers: tuple[str, ...] = ()
    prepared: dump.PreparedDump | None = None
    dump: dump.HeldDump | None = None
    capture: inflight.Capture | None = None
    files_sent: FileRounds | None = None
    wanted_data: str = "auto"
    data: str = ""
    wanted_streams: int | None = None
    mode: Mode = Mode.STOP
    lazy: bool = False
    ahead: bool = False
    memory_sender: MemorySender | None = None
    taken: m.PagesTaken | None = None
    announce: Callable[[str], None] = lambda _: None
    budget: Budget = field(default_factory=Budget)
    fixed: float = USUAL_FIXED
    throttle: Throttle = field(default_factory=Throttle)
    memory_rounds: MemoryRounds | None = None
    frozen_memory_seconds: float = 0.0

    @property
    def images(self) -> Path:
        """Where CRIU's images wait to be sent."""
        return self.directory / "images"

    @property
    def source(self) -> Container:
        """The container, in phases in which it must be there."""
        if self.container is None:
            raise MigrationError(
                "the container is gone from this host, so it cannot be moved",
                hint=f"pymigrate migrations show {self.migration_id}",
            )
        return self.container

    def steps(self) -> Sequence[Step]:
        """Every step, in the order of the phases."""
        return (
            Reserve(self),
            Precopy(self),
            Freeze(self),
            Ship(self),
            Restore(self),
            Commit(self),
            HandOver(self),
            Fill(self),
            Finish(self),
        )

    def open_memory(self) -> MemorySender:
        """Begin to speak about the memory, by the way that other data goes too."""
        if self.memory_sender is None or self.memory_sender.has_failed:
            cut = self.memory_sender
            self.memory_sender = self.peer.open_memory(
                tls=self.data == "tls",
                scratch=self.directory,
                ahead=self.ahead,
                after=cut,
                streams=self.wanted_streams,
            )
            self.memory_sender.await_pager()
            if self.data == "tls" and (made := self.peer.streams) < (self.wanted_streams or 1):
                self.announce(f"memory goes by {made} of {self.wanted_streams} connections")
        return self.memory_sender

    def reopen_memory(self) -> None:
        """After a crash or a cut, speak of the frozen container's memory anew."""
        sender = self.memory_sender
        if not self.lazy or self.taken is not None or (sender and not sender.has_failed):
            return
        self.peer.prepare()  # a target that lost what it had restores once more
        self.open_memory().freeze(self.source.cgroup.pids())

    def close_memory(self) -> None:
        """Say no more about the memory; may be repeated."""
        self.memory_sender = None
        self.peer.close_memory()

    def send_memory(self) -> Facts:
        """Have the target get all memory of the frozen container, and tell what that took."""
        sender = self.open_memory()
        sender.begin()
        try:
            self.taken = sender.wait()
        finally:
            self.count_memory(sender)
            self.close_memory()
        return {"pages": self.taken.pages, "waited": self.taken.wanted}

    def count_memory(self, sender: MemorySender) -> None:
        """Add to the counts what was sent, in bytes before compression."""
        sent = sender.sent
        self.counts["memory early"] = sent.early * PAGE
        self.counts["memory"] = self.counts.get("memory", 0) + sent.content * PAGE
        self.counts["memory unchanged"] = sent.same * PAGE

    def counters(self) -> Counters:
        """Say how far it has come; for another thread than the one that moves."""
        sent = self.memory_sender.sent if self.memory_sender is not None else None
        if sent is None:
            return Counters(self.peer.bytes_sent)
        pages = sent.early + sent.content
        return Counters(self.peer.bytes_sent, pages, sent.turn, sent.looked * PAGE, self.memory)

    def catch_packets(self, container: Container) -> None:
        """Begin to catch what is sent to the container while its cable is out."""
        mac = network.mac_of(container.record.network)
        if container.record.network.has_cable and mac is not None:
            self.capture = inflight.Capture(mac)

    def caught_packets(self) -> list[bytes]:
        """Return what was caught since the last time."""
        return [] if self.capture is None else self.capture.frames()

    def end_capture(self) -> None:
        """Catch no more; later packets find the container themselves.

        Not while clients wait: the kernel takes some 15 ms to close such a socket.
        """
        if self.capture is not None:
            self.capture.close()
            self.capture = None

    def discard_images(self) -> None:
        """Remove CRIU's images, which hold the container's memory."""
        if self.images.exists():
            shutil.rmtree(self.images)


@dataclass
class _Step:
    move: Move

    def facts(self) -> Facts:
        """Return nothing: the migration's id is all that undo needs."""
        return {}

    def undo(self) -> None:
        """Do nothing: the steps before this one take back what it did."""


class Reserve(_Step):
    """Fence the container here; hold its name and room at the target."""

    phase = Phase.RESERVED

    def do(self) -> Facts:
        """Say what comes; keep which layers the target lacks."""
        move, container = self.move, self.move.source
        container.fence(move.migration_id)
        record = container.record
        move.missing_layers = move.peer.reserve(
            m.Reserve(
                name=record.name,
                record_json=json.dumps(state.record_to_document(record)).encode(),
                spec_json=json.dumps(spec.to_document(container.spec)).encode(),
                layers=record.layers,
                memory_bytes=move.memory,
                disk_bytes=move.files + move.memory,
                expires_s=RESERVATION_SECONDS,
                source_host=move.hostname,
                image_json=self._image(record.image),
            )
        )
        return {"missing_layers": list(move.missing_layers)}

    def _image(self, reference: str | None) -> bytes:
        image = None if reference is None else self.move.store.describe(reference)
        return b"" if image is None else json.dumps(image).encode()

    def undo(self) -> None:
        """Lift the fence; let go of everything at the target."""
        if self.move.container is not None:
            self.move.container.unfence(self.move.migration_id)
        self.move.discard_images()
        self.move.peer.release()


class Precopy(_Step):
    """Send what can go while the container runs; make both hosts ready for the rest."""

    phase = Phase.PRECOPIED

    def do(self) -> Facts:
        """Send each missing layer, which the target verifies by its digest, and the files."""
        move = self.move
        move.data = self._choose_data()
        for digest in move.missing_layers:

            def layer(stream: Writer, digest: str = digest) -> object:
                return move.store.write_layer(digest, stream)

            sent = move.peer.put_layer(digest, layer)
            move.counts["layers"] = move.counts.get("layers", 0) + sent
        move.peer.prepare()
        move.files_sent = FileRounds.begin(move.source, move.peer)
        move.files_sent.send_while_running()
        move.prepared = dump.prepare(
            move.source,
            inside=move.options.inside,
            lazy=move.options.lazy,
            carried=move.options.carried,
        )
        rounds: list[Round] = []
        if move.lazy:
            move.open_memory()
            if move.mode.has_rounds:
                rounds = self._send_rounds()
                move.files_sent.send_another()  # they changed while the memory went
        return {
            "data": move.data,
            "lazy": move.lazy,
            "mode": move.mode.value,  # another than was planned, where rounds did not converge
            "rounds": [asdict(each) for each in rounds],
        }

    def _send_rounds(self) -> list[Round]:
        """Send memory while it changes, for as long as the budget wants."""
        move = self.move
        rounds = move.memory_rounds = MemoryRounds(
            move.budget, move.fixed, move.mode, move.throttle
        )
        files = 0.0
        if move.files_sent is not None and move.files_sent.rounds:
            newest = move.files_sent.rounds[-1]
            files = newest.seconds if newest.bytes > SMALL else 0.0
        move.mode = rounds.send(move.source, move.open_memory, files, move.announce)
        return rounds.rounds

    def _choose_data(self) -> str:
        """Decide, while the container still runs, by which connection streams go."""
        move = self.move
        if move.wanted_data == "ssh":
            return "ssh"
        why_not = move.peer.open_data()
        if not why_not:
            return "tls"
        if move.wanted_data == "tls":
            raise Unreachable(
                f"there is no TLS connection for the data: {why_not}",
                hint="let the target's firewall pass TCP from this host, or use --data auto",
            )
        move.announce(f"{move.source.name}: data goes over SSH: {why_not}")
        return "ssh"

    def undo(self) -> None:
        """End the CRIU that waits; let go of the files and the memory; give back the CPU time."""
        self.move.close_memory()
        if self.move.files_sent is not None:
            self.move.files_sent.close()
        if self.move.prepared is not None:
            self.move.prepared.close()
            self.move.prepared = None
        if self.move.container is not None:
            self.move.throttle.lift(self.move.container)


@dataclass
class Freeze(_Step):
    """Freeze the container, pull its cable, and have CRIU write it down and hold it."""

    phase = Phase.FROZEN

    held: bool = False

    def hold(self) -> None:
        """Freeze it and pull its cable; nothing of it is written down yet. May be repeated."""
        move, container = self.move, self.move.source
        if self.held:
            return
        # Frozen before unplugged: a running program must not see its carrier go. Unplugged before
        # the dump: what the kernel acknowledges after a socket was written down would be lost.
        # A throttled program stops only when it gets CPU time again: up to a period later.
        sys.setswitchinterval(SWITCH_SECONDS)
        move.throttle.lift(container)
        container.freeze()
        priority.come_back()
        move.catch_packets(container)
        container.unplug()
        self.held = True

    def do(self) -> Facts:
        """Leave the container frozen and unplugged, written down in the images directory."""
        move, container = self.move, self.move.source
        move.discard_images()
        move.images.mkdir(mode=0o700)
        self.hold()
        sender = move.memory_sender
        if sender is not None:
            sender.freeze(container.cgroup.pids(), traced=True)

        def asked() -> None:
            # While CRIU is at work, and not before: it would take the processor from who asks CRIU.
            if sender is not None and move.ahead:
                sender.begin()
            priority.favour()

        move.dump = dump.hold(container, move.images, move.options, move.prepared, asked=asked)
        if sender is not None:
            sender.release()
        return {"inside_network": move.dump.manifest.inside}

    def undo(self) -> None:
        """Let the container run on as before."""
        priority.favour_no_more()
        if self.move.dump is not None:
            self.move.dump.abandon()
            self.move.dump = None
        frames = self.move.caught_packets()
        container = self.move.container
        if container is not None and container.state().status.is_alive:
            container.plug()
            container.thaw()
            if container.record.network.has_cable:
                inflight.deliver(container.host_interface, frames)
        self.move.end_capture()
        self.move.discard_images()


class Ship(_Step):
    """Send memory and files, all from the one instant of the freeze."""

    phase = Phase.SHIPPED

    def do(self) -> Facts:
        """Send CRIU's images, and what changed in the files since they were sent."""
        move = self.move
        if move.dump is None:
            raise AssertionError("nothing was dumped")
        move.counts["images"] = self._send_images(move.dump.manifest.to_json())
        if move.files_sent is None:
            raise AssertionError("no files were sent before the freeze")
        move.files_sent.send_rest()
        move.counts["files"] = sum(each.bytes for each in move.files_sent.rounds)
        return {"bytes": dict(move.counts)}

    def _send_images(self, manifest: bytes) -> int:
        """Send CRIU's images as what the target takes; returns their size in bytes."""
        peer, images = self.move.peer, self.move.images
        if not peer.serves(m.PutImageFiles):
            return peer.put_images(
                manifest, lambda stream: tree.write(images, stream, hashed=False)
            )
        sizes = image_files.listed(images)
        return peer.put_image_files(
            manifest, sizes, lambda stream: image_files.send(images, sizes, stream)
        )


class Restore(_Step):
    """Have the target restore the container, held: frozen, unplugged, nothing ran."""

    phase = Phase.RESTORED

    def do(self) -> Facts:
        """Wait for the target's vote, and have all memory there unless it may come later."""
        move = self.move
        if move.memory_sender is None:
            return {"restore_seconds": move.peer.restore()}
        move.memory_sender.begin()  # also what may come later: CRIU leaves the line idle
        seconds = move.peer.restore()
        if move.mode.fills_later:
            move.memory_sender.await_attached()  # or a killed pager could cost its memory
            return {"restore_seconds": seconds}
        started = time.monotonic()
        taken = move.send_memory()
        move.frozen_memory_seconds = time.monotonic() - started
        return {"restore_seconds": seconds, **taken}


class Commit(_Step):
    """Nothing to do: the driver's line in the journal is the commit."""

    phase = Phase.COMMITTED

    def do(self) -> Facts:
        """Do nothing."""
        return {}


class Fill(_Step):
    """Send the memory that the target, which runs, does not have yet."""

    phase = Phase.FILLED

    def do(self) -> Facts:
        """Send all of it; what the target's processes wait for goes first."""
        move = self.move
        if not move.lazy or move.taken is not None:
            return {}
        move.reopen_memory()
        return move.send_memory()


@dataclass
class HandOver(_Step):
    """Let the target run, as often as it takes to hear that it does."""

    phase = Phase.HANDED_OVER
    frames: list[bytes] = field(default_factory=list)

    def do(self) -> Facts:
        """Ask until answered; the driver repeats us."""
        move = self.move
        move.reopen_memory()
        self.frames += move.caught_packets()
        move.peer.resume(self.frames)
        priority.favour_no_more()
        move.end_capture()
        return {}


class Finish(_Step):
    """End the frozen source, and let both sides drop what they kept for a second try."""

    phase = Phase.DONE

    def do(self) -> Mapping[str, object]:
        """Remove the container here. Its frozen processes die without running again."""
        move = self.move
        move.close_memory()
        if move.dump is not None:
            if move.dump.manifest.lazy:
                move.dump.abandon()  # the cgroup stays frozen, and is killed
            else:
                move.dump.finish()
            move.dump = None
        if move.container is not None:
            host, record = move.container.host, move.container.record
            move.container.remove(force=True, fenced_ok=True)
            events.note(host, record, "moved", migration=move.migration_id)
            move.container = None
        move.discard_images()
        move.peer.finish()
        return {"bytes": dict(move.counts)}
