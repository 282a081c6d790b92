"""Bring a container back from a file: everything is verified first, nothing is left on failure."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pymigrate.checkpoint import archive, fill_words, lazily, working_set
from pymigrate.checkpoint.archive_pages import FromArchive
from pymigrate.checkpoint.lazily import Filler, Skeleton, Told
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.protection import Trust
from pymigrate.checkpoint.requests import RestoreOptions
from pymigrate.checkpoint.staging import staging
from pymigrate.runtime import aside, lock, network
from pymigrate.runtime.beside import Beside
from pymigrate.runtime.container import KILL_SECONDS, Container
from pymigrate.runtime.errors import (
    AlreadyExists,
    BadArchive,
    HostError,
    IncompatibleHosts,
    NotFound,
    PymigrateError,
    RestoreFailed,
    UsageError,
    WrongState,
)
from pymigrate.runtime.host import Host, check_name
from pymigrate.runtime.launch import Launch
from pymigrate.runtime.state import NetworkSettings, Port, Record
from pymigrate.runtime.values import dataclass, field, replace

if TYPE_CHECKING:
    from pymigrate.checkpoint.restore import PreparedRestore

STUCK_SECONDS = 5.0
"""After a failure, until a supervisor that still prepares is left alone: most undo it sooner, and
only of one that is waited for nothing is left when the command ends."""

_NOTHING = "nothing was changed"


@dataclass(frozen=True)
class Wishes:
    """What is to be different from the checkpoint; ``tcp`` None: as it was dumped."""

    name: str | None = None
    address: str | None = None
    address6: str | None = None
    mac: str | None = None
    tcp: str | None = None
    eager: bool = False
    ports: tuple[Port, ...] | None = None  # of the host; None: those that it had
    debug: bool = False
    skip: tuple[str, ...] = ()  # findings in the present, in spite of which it is written down


@dataclass()
class Loaded:
    """The restored container, which runs, and the seconds that each phase took.

    If it is ``lazy``, a process still brings its memory.
    """

    container: Container
    pid: int = 0
    tcp: str = ""
    lazy: bool = False
    phases: dict[str, float] = field(default_factory=dict)


class Source(Protocol):
    """Where a checkpoint comes from: an archive, or a repository of snapshots."""

    @property
    def manifest(self) -> Manifest:
        """What the checkpoint was made from; nothing else may be trusted before `extract`."""

    def extract(self, into: Path) -> dict[str, str]:
        """Write its members into an empty directory, verified; return their SHA-256."""

    @property
    def memory(self) -> int:
        """Bytes of all files of pages."""

    @property
    def filler(self) -> str:
        """The module that is the filler of what was laid out; see `lazily`."""

    def lay_out(self, into: Path) -> Skeleton | None:
        """Do as `extract`, but without memory that can come later; None if it cannot be read so.

        The caller closes what is returned.
        """


def load(
    host: Host,
    path: Path,
    wishes: Wishes,
    trust: Trust | None = None,
    launch: Launch | None = None,
) -> Loaded:
    """Restore a container from a file and let it run; see `load_from`."""
    return load_from(host, FromArchive(archive.Archive.open(path, trust)), wishes, launch)


def load_from(host: Host, opened: Source, wishes: Wishes, launch: Launch | None = None) -> Loaded:
    """Restore a container and let it run.

    A container of the same id that is stopped under the same name is continued in its place;
    otherwise a new one is made, with a new id if it gets another name. ``launch`` is its
    supervisor, if that has been started; it is used up.

    Raises:
        BadArchive: the file is damaged or made to do harm.
        AlreadyExists: the name or the address is in use.
        NotFound: the image, a directory or the file itself is not there.
        RestoreFailed: CRIU could not; nothing runs.

    """
    manifest = opened.manifest.placed(host)
    record = wanted(manifest.record, wishes)
    tcp = wishes.tcp or manifest.tcp
    was = manifest.record.network
    moved = (record.network.address, record.network.address6) != (was.address, was.address6)
    if moved and wishes.tcp is None:
        tcp = "close"  # an established connection cannot change its address
    replaced = check(host, manifest, record)
    begun = time.monotonic()
    phases: dict[str, float] = {}
    with staging(host) as stage, ExitStack() as held:
        filler = None
        if not wishes.eager and lazily.is_possible(manifest, opened.memory):
            filler = held.enter_context(lazily.Filler.started(opened.filler))  # it takes longest
        # To ask the network takes about as long as all until it is restored; so what is loaded
        # after this costs nobody anything.
        asked = Beside(partial(network.address_in_use, record.network), "asking")
        held.callback(asked.wait)
        launch = launch or Launch(None)  # it loads what it needs meanwhile
        held.callback(launch.abandon)
        from pymigrate.checkpoint import criu

        _check_root(host, record)
        found = Beside(criu.find, "criu")  # what fails here is told by who needs it
        held.callback(found.wait)
        skeleton = opened.lay_out(stage) if filler is not None else None
        if skeleton is not None:
            held.callback(skeleton.close)
        sums = opened.extract(stage) if skeleton is None else skeleton.sums
        phases["unpack"] = time.monotonic() - begun
        options = replace(manifest.restore_options(debug=wishes.debug), tcp=tcp)
        with _container(host, manifest, record, replaced) as container, ExitStack() as undo:
            loaded = Loaded(container, tcp=tcp, lazy=skeleton is not None, phases=phases)
            launch.is_for(container.directory)
            _put_log(container, stage)
            found.wait()
            with _surroundings(container, launch, inside=options.inside) as surroundings:
                _put_files(container, stage, sums, undo)
                phases["files"] = time.monotonic() - begun - sum(phases.values())
                images = stage / archive.IMAGES
                told = skeleton.complete() if skeleton is not None else None
                prepared = surroundings.result()
                phases["prepare"] = time.monotonic() - begun - sum(phases.values())
                source = opened.manifest  # as it is there, and not placed here
                loaded.pid = _hold(container, images, options, prepared, filler, told, source)
            phases["restore"] = time.monotonic() - begun - sum(phases.values())
            # It is held, and its cable is out: nobody has seen it yet.
            if asked.result():
                raise AlreadyExists(
                    f"the address {record.network.address} is in use on this network; {_NOTHING}",
                    hint="give another one with --ip; established connections are closed then",
                )
            undo.pop_all()
        _let_run(container)
        phases["resume"] = time.monotonic() - begun - sum(phases.values())
    return loaded


@contextmanager
def _surroundings(
    container: Container, launch: Launch, *, inside: bool
) -> Iterator[Beside[PreparedRestore]]:
    """Make what a container runs in, and start a CRIU there, while the caller does other things.

    For most of that time both wait for the kernel. Its keeper is closed at the end of the block.
    """
    from pymigrate.checkpoint import criu, restore

    with ExitStack() as held:

        def make() -> PreparedRestore:
            held.enter_context(container.prepare(plugged=False, launch=launch))
            return held.enter_context(restore.prepare(container, inside=inside))

        made = Beside(make, "surroundings")
        try:
            criu.messages()  # slow to load
            yield made
        except BaseException:  # also Ctrl-C, which must not wait for a supervisor that is stuck
            ended = False
            try:
                ended = made.wait(STUCK_SECONDS)
            finally:  # also after a second Ctrl-C
                if not ended:
                    launch.give_up()
            raise
        finally:
            made.wait()


def _hold(
    container: Container,
    images: Path,
    options: RestoreOptions,
    prepared: PreparedRestore,
    filler: Filler | None,
    told: Told | None,
    manifest: Manifest,
) -> int:
    """Restore it; if its memory is to come, the filler has all processes when this returns."""
    from pymigrate.checkpoint import restore

    if filler is None or told is None:
        return restore.hold(container, images, options, prepared)
    restore.work_directory(container)
    filler.tell(container.directory, told, working_set.place(container.host, manifest))
    filler.await_word(fill_words.READY)
    try:
        pid = restore.hold(container, images, replace(options, lazy=True), prepared)
    except PymigrateError:
        filler.check()  # when it fails, it has everything killed that CRIU has made
        raise
    filler.await_word(fill_words.ATTACHED)
    return pid


def wanted(record: Record, wishes: Wishes) -> Record:
    """Return the record of the container to be made."""
    settings = record.network
    if (wishes.address, wishes.address6, wishes.mac) != (None, None, None):
        settings = _readdressed(settings, wishes)
    if wishes.ports is not None:
        if wishes.ports and not settings.has_cable:
            raise UsageError(f"-p: the container has no network of its own; {_NOTHING}")
        settings = replace(settings, ports=wishes.ports)
    name = record.name if wishes.name is None else check_name(wishes.name)
    identifier = record.id if name == record.name else os.urandom(32).hex()
    return replace(record, name=name, id=identifier, network=settings)


def _readdressed(settings: NetworkSettings, wishes: Wishes) -> NetworkSettings:
    from ipaddress import ip_interface

    from pymigrate.runtime import addresses

    if not settings.has_cable or settings.address is None:
        raise UsageError(f"the container has no network of its own to give an address; {_NOTHING}")
    before = ip_interface(settings.address)
    address = before
    if wishes.address is not None:
        try:
            length = "" if "/" in wishes.address else f"/{before.network.prefixlen}"
            address = ip_interface(str(addresses.parse_for_container(wishes.address + length)))
        except UsageError as error:
            raise UsageError(f"--ip {wishes.address}: {error}; {_NOTHING}") from error
    gateway = settings.gateway if address.network == before.network else None
    # Two containers must not share a MAC: without --mac it follows from the new address.
    mac = wishes.mac if wishes.mac is not None or address != before else settings.mac
    settings = replace(settings, address=str(address), gateway=gateway, mac=mac)
    if wishes.address6 is None:
        return settings
    try:
        second = addresses.parse_second(wishes.address6)
    except UsageError as error:
        raise UsageError(f"--ip6 {wishes.address6}: {error}; {_NOTHING}") from error
    return replace(settings, address6=str(second), gateway6=addresses.second_gateway(second))


def check(host: Host, manifest: Manifest, record: Record) -> Container | None:
    """Refuse what cannot work, before anything is made; return the container to be continued."""
    if manifest.lazy:
        raise BadArchive("the checkpoint has no memory in it: it was made to be moved")
    _check_machine(manifest)
    replaced = None
    if (host.containers / record.name).exists():
        replaced = Container.open(host, record.name)
        replaced.check_free()
        if replaced.record.id != record.id or not replaced.state().status.may_start:
            raise AlreadyExists(
                f"there is a container {record.name} already; {_NOTHING}",
                hint=f"give another name with --name, or remove it: pymigrate rm {record.name}",
            )
    _check_address(host, record)
    for volume in record.volumes:
        if (volume.local or Path(volume.source).is_file()) and not Path(volume.source).exists():
            raise NotFound(
                f"{record.name} wants this host's own {volume.source}, which does not exist; "
                f"{_NOTHING}",
                hint=f"make {volume.source} on this host",
            )
    return replaced


def _check_machine(manifest: Manifest) -> None:
    here = os.uname().machine
    if manifest.machine != here:
        raise IncompatibleHosts(f"the checkpoint is of a {manifest.machine}, this is a {here}")
    pages = os.sysconf("SC_PAGE_SIZE")
    if manifest.page_size != pages:
        raise IncompatibleHosts(
            f"the checkpoint has pages of {manifest.page_size} bytes, this kernel of {pages}"
        )


def _check_address(host: Host, record: Record) -> None:
    if not record.network.has_cable or record.network.address is None:
        return
    mine = _addresses(record)
    for other in Container.all(host):
        same = mine & _addresses(other.record)
        if same and other.name != record.name and not other.state().status.may_start:
            raise AlreadyExists(
                f"container {other.name} has the address {min(same)} of the checkpoint; {_NOTHING}",
                hint="give another one with --ip or --ip6; established connections are closed then",
            )


def _addresses(record: Record) -> frozenset[str]:
    both = (record.network.address, record.network.address6)
    return frozenset(each.partition("/")[0] for each in both if each is not None)


def _check_root(host: Host, record: Record) -> None:
    if record.rootfs is not None and not Path(record.rootfs).is_dir():
        raise NotFound(
            f"{record.name} runs on the directory {record.rootfs}, which is not here; {_NOTHING}",
            hint="import it as an image before the checkpoint, or put it there",
        )
    from pymigrate.runtime.images import Store

    missing = Store(host).missing(record.layers)
    if missing:
        raise NotFound(
            f"the image {record.image} of {record.name} is not on this host (layer "
            f"{missing[0][:19]} is missing); {_NOTHING}",
            hint=f"pymigrate image import SOURCE {record.image}, from the same source as before",
        )


@contextmanager
def _container(
    host: Host, manifest: Manifest, record: Record, replaced: Container | None
) -> Iterator[Container]:
    """Make the container, or take the stopped one; on an error that is undone."""
    if replaced is None:
        with lock.locked(host.containers):
            _check_address(host, record)
            container = Container.create(host, record, manifest.spec)
        try:
            yield container
        except BaseException as error:
            _undo(error, lambda: container.remove(force=True))
            raise
        return
    with aside.alone(replaced.directory) as mine:
        if not mine or not replaced.state().status.may_start:
            raise WrongState(
                f"{replaced.name} is being restored or was started just now; {_NOTHING}"
            )
        aside.begin(replaced.directory)
        try:
            yield replaced
        except BaseException as error:
            _undo(error, lambda: _put_back(replaced))
            raise
        aside.forget(replaced.directory)


def _put_back(container: Container) -> None:
    now = container.state()
    if now.status.is_alive:
        container.expect_end()
        container.cgroup.kill()
    if now.supervisor is not None:
        lock.await_end(now.supervisor, KILL_SECONDS)
    aside.put_back(container.directory)


def _undo(error: BaseException, action: Callable[[], None]) -> None:
    """Undo; should that fail too, both are told."""
    try:
        action()
    except (OSError, PymigrateError) as second:
        error.add_note(f"undoing failed too: {second}")
    else:
        if isinstance(error, PymigrateError) and _NOTHING not in error.message:
            error.message = f"{error.message}; nothing is left of the restore"


def _put_files(container: Container, stage: Path, sums: dict[str, str], undo: ExitStack) -> None:
    _unpack(stage / archive.FILES, container.upper, overlay=True)
    (stage / archive.FILES).unlink()
    for number, volume in enumerate(container.record.volumes):
        content = stage / f"volumes/{number}.tar"
        if content.exists():
            _put_volume(Path(volume.source), content, sums[f"volumes/{number}.tar"], undo)


def _put_log(container: Container, stage: Path) -> None:
    """Let it go on with its own log; to be called before its supervisor opens that."""
    saved_log = stage / archive.LOG
    if saved_log.exists() and not container.log.exists():
        import shutil

        shutil.copyfile(saved_log, container.log)
        container.log.chmod(0o600)


def _put_volume(source: Path, content: Path, digest: str, undo: ExitStack) -> None:
    """Fill a volume that is not there; one that is there must be as it was at the dump."""
    if source.exists() and any(source.iterdir()):
        from pymigrate.runtime import tree

        if tree.digest(source).digest != digest:
            raise AlreadyExists(
                f"the volume {source} is not what it was at the checkpoint",
                hint=f"move {source} away to get the checkpoint's",
            )
        return
    if not source.exists():
        source.mkdir(mode=0o755, parents=True)
        undo.callback(source.rmdir)
    undo.callback(_empty, source)
    _unpack(content, source, overlay=False)


def _empty(directory: Path) -> None:
    import shutil

    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _unpack(content: Path, into: Path, *, overlay: bool) -> None:
    from pymigrate.runtime import tree

    # Nothing in it is compressed: it cannot hold more than its own size.
    limits = tree.Limits(max_bytes=content.stat().st_size)
    with content.open("rb", buffering=0) as stream:
        tree.read(stream, into, limits=limits, overlay=overlay, devices=True, hashed=False)


def _let_run(container: Container) -> None:
    """Plug, announce, thaw; from here on it runs."""
    try:
        container.plug()
        settings = container.record.network
        if settings.has_cable and settings.address is not None:
            with container.supervision() as supervision:
                namespace = supervision.netns()
            from pymigrate.runtime.announcing import Announcer

            try:
                with Announcer(namespace, settings) as announcer:
                    announcer.tell()
            finally:
                os.close(namespace)
        container.thaw()
    except (OSError, HostError) as error:
        now = container.state()
        if now.failure is not None and not now.status.is_alive:
            raise RestoreFailed(f"{container.name} was ended: {now.failure}") from error
        raise HostError(
            f"{container.name} was restored but could not be let run: {error}; it is paused",
            hint=f"pymigrate resume {container.name}, or pymigrate rm -f {container.name}",
        ) from error
