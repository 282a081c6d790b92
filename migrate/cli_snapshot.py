"""The verb ``snapshot`` and its actions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.migrate import output
from pymigrate.migrate.retention import Policy
from pymigrate.runtime.container import Container
from pymigrate.runtime.errors import BadArchive, UsageError
from pymigrate.runtime.host import Host

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pymigrate.checkpoint.images import Process
    from pymigrate.checkpoint.repository import Repository
    from pymigrate.checkpoint.snapshot import Snapshot

RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_SHOWN = 200  # files of a diff that people want to see


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``snapshot``."""
    parser = verbs.add_parser(
        "snapshot",
        help="keep restore points of running containers, each page once",
        epilog="example: pymigrate snapshot create web --tag before-upgrade",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    def action(
        name: str, function: Callable[[argparse.Namespace], int], text: str, example: str
    ) -> argparse.ArgumentParser:
        added = actions.add_parser(
            name, help=text, epilog=f"example: pymigrate snapshot {name} {example}"
        )
        add_repository(added)
        added.set_defaults(run=function)
        return added

    making = action("create", create, "add one of a running container, which runs on", "web")
    making.add_argument("name", metavar="NAME", help="the container")
    making.add_argument("--tag", action="append", default=[], metavar="T", help="may be repeated")
    output.add_skip(making)
    listing = action("ls", ls, "list them, the oldest first", "web --tag nightly")
    listing.add_argument("name", metavar="NAME", nargs="?", help="of this container only")
    listing.add_argument("--tag", metavar="T", help="with this tag only")
    showing = action("show", show, "show what one is made of", "latest")
    _add_id(showing)
    loading = action(
        "restore", restore, "bring a container back", "4f1c --name web2 --ip 10.88.0.9"
    )
    _add_id(loading)
    loading.add_argument("--name", metavar="N", help="another name, for a second copy")
    loading.add_argument(
        "--in-place",
        action="store_true",
        help="put the running container back; what it is now is kept as a snapshot",
    )
    output.add_skip(loading)
    loading.add_argument(
        "--ip", metavar="A", help="another address; established connections are closed then"
    )
    loading.add_argument("--ip6", metavar="A", help="another IPv6 address")
    loading.add_argument("--mac", metavar="M", help="another MAC address")
    loading.add_argument(
        "--tcp", choices=("established", "close"), help="default: as it was dumped"
    )
    loading.add_argument(
        "--eager",
        action="store_true",
        help="have all memory there before it runs (default: what it needs first comes first)",
    )
    checking = action("verify", verify, "check that they can be restored", "--data")
    checking.add_argument("id", metavar="ID", nargs="?", help="this one only (default: everything)")
    checking.add_argument(
        "--data", action="store_true", help="read and check every byte (default: what is where)"
    )
    comparing = action("diff", diff, "compare files, processes and memory of two", "4f1c latest")
    comparing.add_argument("first", metavar="A", help="an id, its first digits, or latest")
    comparing.add_argument("second", metavar="B", help="the same")
    removing = action("rm", rm, "forget some; prune frees what only they used", "4f1c 77ab")
    removing.add_argument("ids", metavar="ID", nargs="+", help="its first digits, or latest")
    pruning = action(
        "prune",
        prune,
        "free what no snapshot uses, after forgetting what no keep rule keeps",
        "--keep-last 3 --keep-daily 7 --dry-run",
    )
    pruning.add_argument("--container", metavar="NAME", help="forget only snapshots of this one")
    add_rules(pruning)
    pruning.add_argument("-n", "--dry-run", action="store_true", help="only say what would go")


def _add_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="its first digits, or latest")


def add_repository(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a repository and its secret."""
    parser.add_argument(
        "--repo",
        metavar="DIR",
        help="the repository (default: snapshots/ below --root); on another host: "
        "ssh://[USER@]HOST[:PORT]/DIR",
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="the file with the secret of an encrypted repository (default: that named by "
        "$PYMIGRATE_PASSPHRASE_FILE); a repository made with one is encrypted",
    )


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Add the keep rules."""
    for name in RULES:
        text = "the newest N" if name == "last" else f"the newest of each of the last N ({name})"
        parser.add_argument(f"--keep-{name}", type=int, default=0, metavar="N", help=text)


def policy(arguments: argparse.Namespace) -> Policy:
    """Return the keep rules that were given."""
    return Policy(**{name: getattr(arguments, f"keep_{name}") for name in RULES})


def _opened(
    arguments: argparse.Namespace, *, make: bool = False
) -> AbstractContextManager[Repository]:
    from pymigrate.migrate import snapshots

    host = Host.open(arguments.root)
    where = snapshots.location(host, arguments.repo)
    secret = snapshots.read_secret(arguments.key_file)
    return snapshots.opened(where, secret, host.root, make=make)


def document(snapshot: Snapshot) -> dict[str, object]:
    """Return what is told of a snapshot in JSON."""
    return {
        "id": snapshot.id,
        "container": snapshot.container,
        "created": snapshot.created,
        "host": snapshot.host,
        "tags": list(snapshot.tags),
        **snapshot.statistics.to_document(),
    }


def create(arguments: argparse.Namespace) -> int:
    """Add a snapshot of a running container."""
    from pymigrate.checkpoint.requests import DumpOptions
    from pymigrate.migrate import snapshots

    container = Container.open(Host.open(arguments.root), arguments.name)
    skip = output.skipped(arguments)
    options = DumpOptions(leave_running=True, debug=arguments.debug, skip=skip)
    with _opened(arguments, make=True) as repository:
        made = snapshots.create(container, repository, arguments.tag, options)
    if arguments.json:
        output.emit(document(made))
        return 0
    output.say(made.id)
    done = made.statistics
    output.progress(
        f"{made.container}: {output.size(done.total_bytes)}, {output.size(done.new_bytes)} of it "
        f"new; it stood still for {output.duration(done.frozen_seconds)} and runs on",
        arguments,
    )
    return 0


def ls(arguments: argparse.Namespace) -> int:
    """List snapshots; those that cannot be read are told on stderr."""
    with _opened(arguments) as repository:
        listing = repository.listing()
    chosen = [
        one
        for one in listing.snapshots
        if arguments.name in (None, one.container) and arguments.tag in (None, *one.tags)
    ]
    if arguments.json:
        output.emit([document(one) for one in chosen])
    else:
        output.table(("ID", "CONTAINER", "CREATED", "SIZE", "NEW", "PAUSE", "TAGS"), _rows(chosen))
    if listing.damaged:
        raise BadArchive(
            "; ".join(listing.damaged.values()),
            hint="pymigrate snapshot rm removes what cannot be read",
        )
    return 0


def _rows(snapshots: list[Snapshot]) -> list[list[str]]:
    return [
        [
            one.short_id,
            one.container,
            one.created[:19].replace("T", " "),
            output.size(one.statistics.total_bytes),
            output.size(one.statistics.new_bytes),
            output.duration(one.statistics.frozen_seconds),
            ",".join(one.tags),
        ]
        for one in snapshots
    ]


def show(arguments: argparse.Namespace) -> int:
    """Show one snapshot."""
    with _opened(arguments) as repository:
        found = repository.snapshot(repository.find(arguments.id))
    record = found.manifest.record
    details = {
        **document(found),
        "image": record.image or record.rootfs,
        "command": " ".join(found.manifest.spec.process.args),
        "address": record.network.address,
        "software": found.manifest.software,
        "criu": found.manifest.criu,
        "kernel": found.manifest.kernel,
        "machine": found.manifest.machine,
    }
    members = {member.name: member.size for member in found.members}
    if arguments.json:
        output.emit({**details, "members": members})
        return 0
    for name, value in details.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        output.say(f"{name + ':':16} {'-' if shown in (None, '') else shown}")
    output.say("")
    output.table(("MEMBER", "SIZE"), [(name, output.size(n)) for name, n in members.items()])
    return 0


def restore(arguments: argparse.Namespace) -> int:
    """Bring a container back from a snapshot."""
    from pymigrate.checkpoint.load import Wishes
    from pymigrate.migrate import snapshots

    wishes = Wishes(
        name=arguments.name,
        address=arguments.ip,
        address6=arguments.ip6,
        mac=arguments.mac,
        tcp=arguments.tcp,
        eager=arguments.eager,
        debug=arguments.debug,
        skip=output.skipped(arguments),
    )
    host = Host.open(arguments.root)
    present = None
    if arguments.skip and not arguments.in_place:
        raise UsageError("--skip is about what --in-place writes down first; nothing was changed")
    if arguments.in_place and any((arguments.name, arguments.ip, arguments.ip6, arguments.mac)):
        raise UsageError("--in-place keeps the name and the addresses; nothing was changed")
    with _opened(arguments) as repository:
        identity = repository.find(arguments.id)
        if arguments.in_place:
            rewound = snapshots.rewind(host, repository, identity, wishes)
            loaded, present = rewound.loaded, rewound.present
        else:
            loaded = snapshots.restore(host, repository, identity, wishes)
    record = loaded.container.record
    seconds = sum(loaded.phases.values())
    if arguments.json:
        output.emit(
            {
                "snapshot": identity,
                "before": present and present.id,
                "name": record.name,
                "id": record.id,
                "pid": loaded.pid,
                "address": record.network.address,
                "tcp": loaded.tcp,
                "lazy": loaded.lazy,
                "seconds": round(seconds, 6),
                "phases": [
                    {"name": name, "seconds": round(spent, 6)}
                    for name, spent in loaded.phases.items()
                ],
            }
        )
        return 0
    output.say(record.name)
    output.progress(
        f"{record.name} runs again (PID {loaded.pid}), after {output.duration(seconds)}", arguments
    )
    if present is not None:
        output.progress(f"what it was before is snapshot {present.short_id}", arguments)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check one snapshot or the whole repository."""
    from pymigrate.checkpoint import repository_check

    with _opened(arguments) as repository:
        where = repository.disk.where
        identity = repository.find(arguments.id) if arguments.id else None
        report = repository_check.verify(repository, identity, data=arguments.data)
    if arguments.json:
        output.emit(
            {
                "repository": where,
                "sound": report.is_sound,
                "snapshots": report.snapshots,
                "packs": report.packs,
                "chunks": report.chunks,
                "data_bytes": report.data_bytes,
                "problems": report.problems,
                "broken": sorted(report.broken),
            }
        )
    elif report.is_sound:
        how = f"{output.size(report.data_bytes)} read" if arguments.data else "data not read"
        output.say(
            f"{report.snapshots} snapshots are sound: {report.chunks} chunks in {report.packs} "
            f"packs are there ({how})"
        )
    if report.is_sound:
        return 0
    broken = ", ".join(sorted(name[:8] for name in report.broken)) or "no snapshot"
    raise BadArchive(
        f"{where} is damaged, {broken} cannot be restored: " + "; ".join(report.problems[:20]),
        hint="snapshot rm removes what is broken; the next snapshot stores again what is missing",
    )


def diff(arguments: argparse.Namespace) -> int:
    """Compare two snapshots."""
    from pymigrate.migrate import snapshots

    with _opened(arguments) as repository:
        first, second = (
            repository.snapshot(repository.find(text))
            for text in (arguments.first, arguments.second)
        )
        found = snapshots.diff(repository, first, second)
    if arguments.json:
        output.emit(
            {
                "first": first.id,
                "second": second.id,
                "files": [{"path": path, "change": how} for path, how in found.files.items()],
                "processes": [
                    {"pid": pid, "before": _process(before), "after": _process(after)}
                    for pid, (before, after) in found.processes.items()
                ],
                "memory_bytes": list(found.memory),
                "changed_memory_bytes": found.changed_memory,
            }
        )
        return 0
    for path, how in list(found.files.items())[:_SHOWN]:
        output.say(f"{how} {path}")
    if len(found.files) > _SHOWN:
        output.say(f"… and {len(found.files) - _SHOWN} more files; --json has them all")
    for pid, (before, after) in found.processes.items():
        output.say(_sentence(pid, before, after))
    before_size, after_size = found.memory
    output.say(
        f"memory: {output.size(before_size)} → {output.size(after_size)}, "
        f"{output.size(found.changed_memory)} of it changed"
    )
    return 0


def _process(process: Process | None) -> dict[str, object] | None:
    if process is None:
        return None
    return {
        "command": process.command,
        "parent": process.parent,
        "threads": process.threads,
        "memory_bytes": process.memory,
    }


def _sentence(pid: int, before: Process | None, after: Process | None) -> str:
    if after is None:
        return f"process {pid} ({before.command if before else '?'}): ended"
    if before is None:
        return f"process {pid} ({after.command}): new, {output.size(after.memory)}"
    return (
        f"process {pid} ({after.command}): {output.size(before.memory)} → "
        f"{output.size(after.memory)}, {before.threads} → {after.threads} threads"
    )


def rm(arguments: argparse.Namespace) -> int:
    """Forget snapshots, also such that cannot be read."""
    with _opened(arguments) as repository:
        identities = list(dict.fromkeys(repository.find(text) for text in arguments.ids))
        repository.remove(identities)
    if arguments.json:
        output.emit({"removed": identities})
    else:
        for identity in identities:
            output.say(identity)
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """Forget what the rules do not keep, and free what nothing uses."""
    from pymigrate.migrate import snapshots

    with _opened(arguments) as repository:
        thinned = snapshots.thin(
            repository,
            policy(arguments),
            container=arguments.container,
            dry_run=arguments.dry_run,
        )
    pruned = thinned.pruned
    freed = pruned.plan.frees if arguments.dry_run else pruned.freed
    if arguments.json:
        output.emit(
            {
                "dry_run": arguments.dry_run,
                "removed": [one.id for one in thinned.removed],
                "kept": [{"id": one.id, "reasons": list(reasons)} for one, reasons in thinned.kept],
                "freed_bytes": freed,
                "rewritten_packs": len(pruned.plan.rewrite),
                "removed_packs": len(pruned.plan.remove) + len(pruned.plan.unreadable),
                "unused_bytes_left": pruned.plan.leaves,
            }
        )
        return 0
    rows = [
        (one.short_id, one.container, one.created[:19], "", "forget") for one in thinned.removed
    ]
    rows += [
        (one.short_id, one.container, one.created[:19], ",".join(reasons), "keep")
        for one, reasons in thinned.kept
        if reasons
    ]
    if rows:
        output.table(("ID", "CONTAINER", "CREATED", "RULES", ""), sorted(rows, key=lambda r: r[2]))
    would = "would free" if arguments.dry_run else "freed"
    output.say(
        f"{would} {output.size(freed)}; {len(thinned.removed)} snapshots "
        f"{'would be ' if arguments.dry_run else ''}forgotten, {len(thinned.kept)} kept"
    )
    return 0
