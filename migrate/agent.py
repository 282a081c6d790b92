"""The far end of a migration: a table of handlers behind ``pymigrate agent``, on stdin and stdout.

A source that goes away before its container was restored leaves nothing behind; afterwards only
the source may decide, and what was restored waits for it, frozen and unplugged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pymigrate.migrate import facts
from pymigrate.migrate.incoming import Incoming, Waiting, check_free, parse_json
from pymigrate.migrate.journal import Journal, read
from pymigrate.migrate.phases import Phase
from pymigrate.runtime import priority, spec, state, syscalls, volumes
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import MigrationError, NotFound, ProtocolError, WrongState
from pymigrate.runtime.host import Host
from pymigrate.runtime.images import Store
from pymigrate.transport import messages as m
from pymigrate.transport.conversation import Listener
from pymigrate.transport.rpc import Handler, Reader

MEMORY_NAME = "pymigrate-pager"
"""Of an agent's process that takes memory: one that is killed costs another thing than the first's
end, so who looks at processes should know which is which."""
Act = Callable[[Incoming, Any, Reader], m.Message]


class Agent:
    """What sources ask of this host; one connection's worth of state."""

    def __init__(self, host: Host) -> None:
        """Serve migrations to `host`."""
        self.host = host
        self.store = Store(host)
        self._waiting = Waiting()
        self._touched: set[str] = set()

    def handlers(self) -> Mapping[type[m.Message], Handler]:
        """List which request is answered by what."""
        return {
            m.Hello: self._hello,
            m.Reserve: self._reserve,
            m.PutLayer: self._journalled(_put_layer),
            m.Prepare: self._journalled(_prepare),
            m.PutImages: self._journalled(_put_images),
            m.PutImageFiles: self._journalled(_put_image_files),
            m.PutFiles: self._journalled(_put_files),
            m.Pages: self._pages,
            m.PutChanges: self._journalled(_put_changes),
            m.Restore: self._journalled(_restore),
            m.Resume: self._journalled(_resume),
            m.Release: self._release,
            m.Finish: self._journalled(_finish),
            m.Status: self._status,
            m.Keepalive: lambda request, stream: m.KeptAlive(),  # noqa: ARG005 - the table's form
        }

    def close(self) -> None:
        """Let go, at the end of a connection, of what was not yet restored."""
        for migration_id in sorted(self._touched):
            with self._incoming(migration_id) as incoming:
                if incoming.journal.history.begun < Phase.RESTORED:
                    incoming.release()

    def _hello(self, request: m.Hello, _: Reader) -> m.HelloReply:
        if request.for_memory:
            syscalls.set_name(MEMORY_NAME)
            # The source has more to say before it asks for Pages; and it had the facts before.
            threading.Thread(target=_load_for_memory, name="loading", daemon=True).start()
            return m.HelloReply(host_id=self.host.id)
        here = facts.host_facts(self.host)
        return m.HelloReply(
            host_id=here.host_id,
            hostname=here.hostname,
            root=str(self.host.root),
            facts=m.Facts(
                kernel=here.kernel,
                machine=here.machine,
                criu_version=here.criu_version,
                cgroup=here.cgroup,
                cpu_features=sorted(here.cpu_features),
                features=sorted(here.features),
                memory_available=here.memory_available,
                disk_available=here.disk_available,
                page_size=here.page_size,
                boot_id=state.boot_id(),
                realtime_ns=time.time_ns(),
            ),
        )

    def _reserve(self, request: m.Reserve, _: Reader) -> m.Reserved:
        record = state.record_from_document(parse_json(request.record_json, "record"))
        if record.name != request.name:
            raise ProtocolError(f"the record of {request.name} is that of {record.name}")
        arriving = spec.parse(parse_json(request.spec_json, "spec"))
        record, arriving = volumes.placed(self.host, record, arriving)
        path = self._path(request.migration_id)
        if not path.exists():
            check_free(self.host, record)
            with Journal.create(path) as journal:
                journal.note(
                    role="target",
                    name=record.name,
                    container=record.id,
                    source=request.source_host,
                    announced_bytes=request.memory_bytes + request.disk_bytes,
                )
        self._touched.add(request.migration_id)
        with self._incoming(request.migration_id) as incoming:
            missing = incoming.reserve(record, arriving, request.image_json)
        return m.Reserved(missing_layers=missing)

    def _release(self, request: m.Release, _: Reader) -> m.Released:
        if not self._path(request.migration_id).exists():
            return m.Released(existed=False)
        self._break_off_restore(request.migration_id)
        with self._incoming(request.migration_id) as incoming:
            incoming.release()
        return m.Released(existed=True)

    def _break_off_restore(self, migration_id: str) -> None:
        """End a restore that waits for memory which does not come, and holds the journal's lock.

        Once its processes are the supervisor's, the supervisor refuses: then it is complete.
        """
        history = read(self._path(migration_id))
        if history.begun is not Phase.RESTORED or history.reached is Phase.RESTORED:
            return
        container = Container.open(self.host, str(history.facts().get("name", "")))
        if container.fenced_by == migration_id:
            with suppress(WrongState), container.supervision() as supervision:
                supervision.release()

    def _status(self, request: m.Status, _: Reader) -> m.StatusReply:
        path = self._path(request.migration_id)
        if not path.exists():
            return m.StatusReply(phase="unknown")
        history = read(path)
        return m.StatusReply(
            phase="rolled-back" if history.rolled_back else history.reached.label,
            name=str(history.facts().get("name", "")),
            running=history.reached >= Phase.HANDED_OVER,
        )

    def _pages(self, request: m.Pages, listener: Listener) -> m.PagesTaken:
        """Take memory for as long as the source speaks, while another connection acts."""
        receive = _load_receiver()
        with self._incoming(request.migration_id) as incoming:
            arriving = incoming.arriving()
        taken = receive(arriving, listener, tells_placed=request.hears_placed)
        if not arriving.complete:
            with self._incoming(request.migration_id) as incoming:
                incoming.journal.note(memory_complete=True)
        return taken

    def _journalled(self, act: Act) -> Handler:
        """Give a handler the migration it is about, its journal locked while it acts."""

        def handler(request: Any, stream: Reader) -> m.Message:
            with self._incoming(request.migration_id) as incoming:
                return act(incoming, request, stream)

        return handler

    @contextmanager
    def _incoming(self, migration_id: str) -> Iterator[Incoming]:
        path = self._path(migration_id)
        if not path.exists():
            raise NotFound(f"this host knows no migration {migration_id}")
        with Journal.open_existing(path, wait=True) as journal:
            if journal.history.facts().get("role") != "target":
                raise MigrationError(f"migration {migration_id} leaves this host")
            yield Incoming(self.host, self.store, migration_id, journal, self._waiting)

    def _path(self, migration_id: str) -> Path:
        return self.host.migrations / migration_id / "journal"


def _load_for_memory() -> None:
    _load_receiver()
    from pymigrate.transport import direct  # noqa: F401 - which the source will ask for first


def _load_receiver() -> Callable[..., m.PagesTaken]:
    from pymigrate.migrate.memory_receiver import receive  # numpy takes 50 ms to load

    return receive


def _put_layer(incoming: Incoming, request: m.PutLayer, stream: Reader) -> m.Received:
    incoming.store.read_layer(request.digest, stream)
    return m.Received(bytes=stream.finish())


def _prepare(incoming: Incoming, _: m.Prepare, __: Reader) -> m.Prepared:
    incoming.prepare()
    # There is little to do for us now until it is frozen, and then clients wait.
    priority.come_back()
    return m.Prepared()


def _put_images(incoming: Incoming, request: m.PutImages, stream: Reader) -> m.Received:
    incoming.put_images(request.manifest_json, stream)
    return m.Received(bytes=stream.finish())


def _put_image_files(incoming: Incoming, request: m.PutImageFiles, stream: Reader) -> m.Received:
    sizes = {file.name: file.size for file in request.files}
    incoming.put_image_files(request.manifest_json, sizes, stream)
    return m.Received(bytes=stream.finish())


def _put_files(incoming: Incoming, request: m.PutFiles, stream: Reader) -> m.Received:
    incoming.put_files(request.tree, stream, upper=request.tree == m.UPPER)
    return m.Received(bytes=stream.finish())


def _put_changes(incoming: Incoming, request: m.PutChanges, stream: Reader) -> m.Received:
    incoming.put_changes(request.tree, stream, request.round, upper=request.tree == m.UPPER)
    return m.Received(bytes=stream.finish())


def _restore(incoming: Incoming, _: m.Restore, __: Reader) -> m.Restored:
    started = time.monotonic()
    pid = incoming.restore()
    return m.Restored(pid=pid, seconds=time.monotonic() - started)


def _resume(incoming: Incoming, request: m.Resume, _: Reader) -> m.Resumed:
    already = incoming.resume(request.frames)
    return m.Resumed(already=already, realtime_ns=time.time_ns())


def _finish(incoming: Incoming, _: m.Finish, __: Reader) -> m.Finished:
    incoming.finish()
    return m.Finished()
