"""The target as the source sees it: typed calls, and a connection that is made anew when lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from pymigrate.migrate.connecting import (
    ANSWER_SECONDS,
    Connect,
    Connected,
    Connecting,
    connected,
)
from pymigrate.runtime import priority
from pymigrate.runtime.errors import PeerError, PymigrateError, Unreachable
from pymigrate.transport import messages as m
from pymigrate.transport import stream_count
from pymigrate.transport.channel import Timeout
from pymigrate.transport.rpc import Client, Source

if TYPE_CHECKING:
    from pymigrate.migrate.lane_process import LaneProcess
    from pymigrate.migrate.memory_sender import MemorySender

T = TypeVar("T")


class Peer:
    """The agent at the target, spoken to about one migration.

    A connection that broke is made anew by the next call; whether that call may be repeated is the
    caller's to know: release, resume, finish and status may.
    """

    def __init__(self, connect: Connect, migration_id: str) -> None:
        """Keep how to connect; nothing happens before the first call, or `expect`."""
        self._connect = connect
        self._undo = ExitStack()
        self._id = migration_id
        self._client: Client | None = None
        self._memory_undo = ExitStack()
        self._memory_client: Client | None = None
        self._lane: LaneProcess | None = None
        self._expected: Connecting | None = None
        self._expected_for_memory: Connecting | None = None
        self._expected_lane: LaneProcess | None = None
        self._reply = m.HelloReply()
        self._sent_before = 0
        self.streams = 1
        """By how many connections memory went the last time."""

    @property
    def bytes_sent(self) -> int:
        """Bytes put on the wire so far, by every connection."""
        clients = (self._client, self._memory_client)
        lane = 0 if self._lane is None else self._lane.sent
        sent = sum(each.traffic.sent for each in clients if each is not None)
        return self._sent_before + sent + lane

    def expect(self) -> None:
        """Begin to connect; who asks first waits for the rest of it, and gets what went wrong."""
        if self._client is None and self._expected is None:
            self._expected = Connecting(self._connect, self._id)

    def expect_memory(self, *, tls: bool) -> None:
        """Begin to make the connection that `open_memory` will need; ``tls`` if it may be that."""
        if self._memory_client is None and self._expected_for_memory is None:
            self._expected_for_memory = Connecting(
                self._connect_for_memory, self._id, for_memory=True
            )
            self._expected_lane = _lane() if tls else None

    def hello(self) -> m.HelloReply:
        """Return who the target is and what it can do, as it said when we connected."""
        self._connected()
        return self._reply

    def reserve(self, request: m.Reserve) -> tuple[str, ...]:
        """Hold a name and room; returns the digests of the layers that the target lacks."""
        request.migration_id = self._id
        reply = self._call(lambda client: client.call(request, timeout=ANSWER_SECONDS))
        return tuple(reply.missing_layers)

    def open_data(self) -> str:
        """Have streams take a TLS connection of their own; return why not, or ""."""
        return self._call(lambda client: client.open_data(self._id))

    def open_memory(
        self,
        *,
        tls: bool,
        scratch: Path,
        ahead: bool = False,
        after: MemorySender | None = None,
        streams: int | None = None,
    ) -> MemorySender:
        """Open a connection of its own for the container's memory, and begin to speak on it.

        It is closed by `close_memory`, and with this one; ``after`` is one that was cut. For
        ``ahead`` and ``scratch`` see `MemorySender`. What is waited for has a second connection
        where it can: over SSH there is none, and a limit is for one process. By TLS so many
        ``streams`` are taken in turn, by default what suits both hosts; see `self.streams` then.
        """
        expected, self._expected_for_memory = self._expected_for_memory, None
        lane, self._expected_lane = self._expected_lane, None
        with ExitStack() as undo:
            if lane is None and tls:
                lane = _lane()
            if lane is not None:
                undo.callback(lane.release)
                undo.callback(lane.close)
            self.close_memory()
            line = self._connected_for_memory() if expected is None else expected.take()
            undo.push(line.undo)
            if not tls and not line.client.has_line:
                # By SSH, memory would be in the way of the words that are said by the same line.
                undo.pop_all().close()
                line = self._connected_for_memory()
                undo.push(line.undo)
            client = line.client
            from pymigrate.migrate.memory_sender import MemorySender  # numpy takes 100 ms to load

            limited = client.limit is not None
            usual = stream_count.usual(priority.processors(), limited=limited)
            if tls and (
                why_not := client.open_data(
                    self._id,
                    lane=not limited,
                    streams=usual if streams is None else streams,
                    insists=streams is not None,
                )
            ):
                raise Unreachable(f"there is no TLS connection for the memory: {why_not}")
            way = client.lane
            if lane is not None and (not tls or way is None or not lane.connect(way)):
                lane.close()
                lane = None
            with_lane = lane is not None
            # A target that waits for a lane would take the next caller for it.
            if tls and (with_lane or way is None):
                client.widen()
            self.streams = client.streams
            request = m.Pages(migration_id=self._id, lane=with_lane, hears_placed=with_lane)
            speaker = client.converse(request)
            memory = MemorySender(
                speaker,
                lambda: client.conclude(timeout=ANSWER_SECONDS),
                self._without_memory,
                limit=None if client.limit is None else client.limit.rate,
                ahead=ahead,
                after=after,
                lane=lane,
                scratch=scratch,
                streams=client.streams,
            )
            undo.callback(memory.close)
            self._memory_undo = undo.pop_all()
            self._memory_client = client
            self._lane = lane
        return memory

    def _connected_for_memory(self) -> Connected:
        return connected(self._connect_for_memory, self._id, for_memory=True)

    def _connect_for_memory(self, undo: ExitStack) -> Client:
        client = self._connect(undo)
        from pymigrate.migrate import memory_sender  # noqa: F401 - as `open_memory` will

        return client

    def _without_memory(self, error: BaseException) -> None:
        """Let nobody wait for an answer that cannot come without memory, as to a restore."""
        client = self._client
        if client is not None:
            reason = error.message if isinstance(error, PymigrateError) else str(error)
            client.give_up(Unreachable(f"the memory cannot be sent any more: {reason}"))

    def close_memory(self) -> None:
        """Give up the connection for the memory; may be repeated."""
        expected, self._expected_for_memory = self._expected_for_memory, None
        if expected is not None:
            expected.close()
        expected_lane, self._expected_lane = self._expected_lane, None
        if expected_lane is not None:
            expected_lane.close()
            expected_lane.release()
        client, self._memory_client = self._memory_client, None
        lane, self._lane = self._lane, None
        self._sent_before += 0 if lane is None else lane.sent
        if client is not None:
            self._sent_before += client.traffic.sent
            self._memory_undo.close()

    def put_layer(self, digest: str, stream: Source) -> int:
        """Send one layer; returns its size in bytes."""
        request = m.PutLayer(migration_id=self._id, digest=digest)
        return self._call(lambda client: client.call(request, stream)).bytes

    def prepare(self) -> None:
        """Have the target's supervisor, network and cgroup made ready."""
        request = m.Prepare(migration_id=self._id)
        self._call(lambda client: client.call(request, timeout=ANSWER_SECONDS))

    def put_images(self, manifest: bytes, stream: Source) -> int:
        """Send CRIU's images; returns their size in bytes."""
        request = m.PutImages(migration_id=self._id, manifest_json=manifest)
        return self._call(lambda client: client.call(request, stream)).bytes

    def put_image_files(self, manifest: bytes, files: Mapping[str, int], stream: Source) -> int:
        """Send CRIU's images, whose sizes are given by name, one after the other."""
        listed = (m.PutImageFiles.File(name=name, size=size) for name, size in files.items())
        request = m.PutImageFiles(migration_id=self._id, manifest_json=manifest, files=listed)
        return self._call(lambda client: client.call(request, stream)).bytes

    def put_files(self, tree: str, stream: Source) -> int:
        """Send a tree: "upper" or the destination of a volume; returns its size in bytes."""
        request = m.PutFiles(migration_id=self._id, tree=tree)
        return self._call(lambda client: client.call(request, stream)).bytes

    def serves(self, request: type[m.Message]) -> bool:
        """Say whether the target knows a request that not every version knows."""
        return request.DESCRIPTOR.name in self.hello().serves

    def put_changes(self, tree: str, number: int, stream: Source) -> int:
        """Send what changed in a tree since round ``number`` - 1; returns the size in bytes."""
        request = m.PutChanges(migration_id=self._id, tree=tree, round=number)
        return self._call(lambda client: client.call(request, stream)).bytes

    def restore(self) -> float:
        """Have the container restored and held; returns the seconds it took there."""
        return self._call(lambda client: client.call(m.Restore(migration_id=self._id))).seconds

    def resume(self, frames: Sequence[bytes]) -> None:
        """Let it run, and deliver what came for it meanwhile; may be repeated."""
        request = m.Resume(migration_id=self._id, frames=frames)
        self._call(lambda client: client.call(request, timeout=ANSWER_SECONDS))

    def release(self) -> None:
        """Have everything undone that does not run; may be repeated."""
        request = m.Release(migration_id=self._id)
        self._call(lambda client: client.call(request, timeout=ANSWER_SECONDS))

    def finish(self) -> None:
        """Let the target drop what it kept for a second try; may be repeated."""
        request = m.Finish(migration_id=self._id)
        self._call(lambda client: client.call(request, timeout=ANSWER_SECONDS))

    def status(self) -> m.StatusReply:
        """Ask how far the migration has come there; may be repeated."""
        request = m.Status(migration_id=self._id)
        return self._call(lambda client: client.call(request, timeout=ANSWER_SECONDS))

    def _call(self, ask: Callable[[Client], T]) -> T:
        client = self._connected()
        try:
            return ask(client)
        except (PeerError, Timeout):
            raise  # the line is as it was
        except BaseException:
            self.drop()
            raise

    def _connected(self) -> Client:
        if self._client is None:
            expected, self._expected = self._expected, None
            line = connected(self._connect, self._id) if expected is None else expected.take()
            self._reply = line.reply
            self._undo, self._client = line.undo, line.client
        return self._client

    def drop(self) -> None:
        """Hang up; the next call connects anew."""
        expected, self._expected = self._expected, None
        if expected is not None:
            expected.close()
        client, self._client = self._client, None
        if client is not None:
            self._sent_before += client.traffic.sent
            self._undo.close()

    def __enter__(self) -> Self:
        """Hang up at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Hang up."""
        self.close_memory()
        self.drop()


def _lane() -> LaneProcess:
    from pymigrate.migrate.lane_process import LaneProcess  # loads what a plan does not need

    return LaneProcess.start()
