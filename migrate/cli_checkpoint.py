"""The verbs ``checkpoint``, ``restore`` and ``archive``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pymigrate.migrate import output
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host
from pymigrate.runtime.launch import Launch

if TYPE_CHECKING:
    from pymigrate.checkpoint.archive import Archive
    from pymigrate.checkpoint.protection import Trust
    from pymigrate.runtime.state import Port


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``checkpoint``, ``restore`` and ``archive``."""
    saving = verbs.add_parser(
        "checkpoint",
        help="write a running container into one file",
        epilog="example: pymigrate checkpoint web -o /srv/web.tar.zst --leave-running",
    )
    saving.add_argument("name", metavar="NAME", help="the container")
    saving.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="default: NAME-TIME.tar.zst, here"
    )
    saving.add_argument(
        "-R", "--leave-running", action="store_true", help="let it go on (default: it ends)"
    )
    saving.add_argument(
        "--compress",
        default="zstd",
        metavar="HOW",
        help="zstd (the default), zstd:LEVEL from 1 to 19, or none",
    )
    saving.add_argument(
        "--encrypt",
        type=Path,
        metavar="KEYFILE",
        help="nobody can read it without this file (any bytes; the longer the better)",
    )
    saving.add_argument(
        "--sign",
        type=Path,
        metavar="KEYFILE",
        help="sign it with this private Ed25519 key, made by ssh-keygen, without passphrase",
    )
    saving.add_argument(
        "--tcp",
        choices=("established", "close", "skip"),
        default="established",
        help="keep established connections (the default), close them, or keep them and skip those "
        "that are just being made",
    )
    output.add_skip(saving)
    saving.set_defaults(run=checkpoint)
    loading = verbs.add_parser(
        "restore",
        help="bring a container back from a file, as often as you like",
        epilog="example: pymigrate restore /srv/web.tar.zst --name web2 --ip 10.88.0.77",
    )
    loading.add_argument("file", type=Path, metavar="FILE", help="what checkpoint has written")
    loading.add_argument("--name", metavar="N", help="another name, for a second copy")
    loading.add_argument(
        "--ip", metavar="A", help="another address; established connections are closed then"
    )
    loading.add_argument("--ip6", metavar="A", help="another IPv6 address")
    loading.add_argument("--mac", metavar="M", help="another MAC address")
    loading.add_argument(
        "-p", "--publish", action="append", metavar="[IP:]HOST:CTR[/udp]",
        help="these ports of this host instead of those it had; none: -p ''",
    )  # fmt: skip
    loading.add_argument(
        "--tcp", choices=("established", "close"), help="default: as it was dumped"
    )
    loading.add_argument(
        "--eager",
        action="store_true",
        help="have all memory there before it runs (default: what it needs first comes first)",
    )
    _add_trust(loading)
    loading.set_defaults(run=restore)
    _add_archive(verbs)


def _add_archive(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = verbs.add_parser(
        "archive",
        help="look into checkpoint files",
        epilog="example: pymigrate archive verify /srv/web.tar.zst",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, function, text in (
        ("inspect", inspect, "show what a checkpoint was made of and on"),
        ("verify", verify, "read all of it and compare the checksums"),
    ):
        action = actions.add_parser(
            name, help=text, epilog=f"example: pymigrate archive {name} /srv/web.tar.zst"
        )
        action.add_argument("file", type=Path, metavar="FILE", help="the checkpoint")
        _add_trust(action)
        action.set_defaults(run=function)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-file", type=Path, metavar="FILE", help="the key file that it was encrypted with"
    )
    parser.add_argument(
        "--signed-by",
        type=Path,
        metavar="FILE",
        help="refuse it unless it is signed by one of these public keys, as in id_ed25519.pub",
    )


def _trust(arguments: argparse.Namespace) -> Trust:
    from pymigrate.checkpoint import signing
    from pymigrate.checkpoint.protection import Trust

    return Trust(
        _secret(arguments.key_file),
        None if arguments.signed_by is None else signing.read_public(arguments.signed_by),
    )


def _secret(key_file: Path | None) -> bytes | None:
    if key_file is None:  # $PYMIGRATE_PASSPHRASE_FILE is for repositories
        return None
    from pymigrate.migrate import snapshots

    return snapshots.read_secret(key_file)


def checkpoint(arguments: argparse.Namespace) -> int:
    """Write a container into one file."""
    from pymigrate.checkpoint.archive_writer import Compression
    from pymigrate.checkpoint.protection import Protection
    from pymigrate.checkpoint.requests import DumpOptions
    from pymigrate.checkpoint.save import save
    from pymigrate.checkpoint.signing import Signer

    compression = Compression.parse(arguments.compress)
    protection = Protection(
        _secret(arguments.encrypt), None if arguments.sign is None else Signer.read(arguments.sign)
    )
    options = DumpOptions(
        tcp=arguments.tcp,
        leave_running=arguments.leave_running,
        debug=arguments.debug,
        skip=output.skipped(arguments),
    )
    container = Container.open(Host.open(arguments.root), arguments.name)
    suffix = ".tar" if compression.level is None else ".tar.zst"
    suffix += "" if arguments.encrypt is None else ".sealed"
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = arguments.output or Path(f"{container.name}-{stamp}{suffix}")
    saved = save(container, path.absolute(), options, compression, protection)
    if arguments.json:
        output.emit(
            {
                "name": container.name,
                "file": str(saved.path),
                "bytes": saved.size,
                "left_running": arguments.leave_running,
                "frozen_seconds": round(saved.frozen, 6),
                "phases": _phases(saved.phases),
            }
        )
        return 0
    output.say(str(saved.path))
    end = "runs on" if arguments.leave_running else "has ended"
    output.progress(
        f"{container.name}: {output.size(saved.size)}, frozen for "
        f"{output.duration(saved.frozen)}; it {end}",
        arguments,
    )
    return 0


def _ports(texts: list[str] | None) -> tuple[Port, ...] | None:
    if texts is None:
        return None
    from pymigrate.migrate.network_options import ports

    return ports([text for text in texts if text])


def restore(arguments: argparse.Namespace) -> int:
    """Bring a container back from a file."""
    # Its supervisor loads what it needs while we load the rest; whose it is, the file will say.
    launch = Launch(None, fork=True)
    try:
        return _restore(arguments, launch)
    finally:
        launch.abandon()  # if it was not used


def _restore(arguments: argparse.Namespace, launch: Launch) -> int:
    from pymigrate.checkpoint.load import Wishes, load

    wishes = Wishes(
        name=arguments.name,
        address=arguments.ip,
        address6=arguments.ip6,
        mac=arguments.mac,
        tcp=arguments.tcp,
        eager=arguments.eager,
        ports=_ports(arguments.publish),
        debug=arguments.debug,
    )
    host, file = Host.open(arguments.root), arguments.file.absolute()
    loaded = load(host, file, wishes, _trust(arguments), launch)
    record = loaded.container.record
    if arguments.json:
        output.emit(
            {
                "name": record.name,
                "id": record.id,
                "pid": loaded.pid,
                "address": record.network.address,
                "tcp": loaded.tcp,
                "lazy": loaded.lazy,
                "seconds": round(sum(loaded.phases.values()), 6),
                "phases": _phases(loaded.phases),
            }
        )
        return 0
    output.say(record.name)
    seconds = output.duration(sum(loaded.phases.values()))
    output.progress(f"{record.name} runs again (PID {loaded.pid}), after {seconds}", arguments)
    return 0


def _phases(phases: dict[str, float]) -> list[dict[str, object]]:
    return [{"name": name, "seconds": round(spent, 6)} for name, spent in phases.items()]


def inspect(arguments: argparse.Namespace) -> int:
    """Show the manifest of a checkpoint; its checksums are not compared."""
    from pymigrate.checkpoint.archive import Archive

    found = Archive.open(arguments.file.absolute(), _trust(arguments))
    document = _document(found)
    if arguments.json:
        output.emit(document)
        return 0
    for name, value in document.items():
        if not isinstance(value, (dict, list)):
            output.say(f"{name + ':':16} {'-' if value is None else value}")
    output.say("")
    rows = [(name, output.size(size)) for name, size in sorted(found.manifest.members.items())]
    output.table(("MEMBER", "SIZE"), rows)
    return 0


def _document(found: Archive) -> dict[str, object]:
    manifest, record = found.manifest, found.manifest.record
    members = manifest.members
    return {
        "file": str(found.path),
        "bytes": found.path.stat().st_size,
        "encrypted": found.is_encrypted,
        "signed": found.is_signed,
        "name": record.name,
        "id": record.id,
        "image": record.image or record.rootfs,
        "image_digest": record.image_digest,
        "command": " ".join(manifest.spec.process.args),
        "hostname": manifest.spec.hostname,
        "address": record.network.address,
        "mac": record.network.mac,
        "created": manifest.created,
        "software": manifest.software,
        "criu": manifest.criu,
        "kernel": manifest.kernel,
        "machine": manifest.machine,
        "page_size": manifest.page_size,
        "cgroup": manifest.cgroup,
        "tcp": manifest.tcp,
        "memory_bytes": sum(n for name, n in members.items() if "checkpoint/pages-" in name),
        "files_bytes": members.get("rootfs-diff.tar", 0),
        "volumes": [volume.destination for volume in record.volumes],
        "layers": list(record.layers),
        "members": dict(members),
    }


def verify(arguments: argparse.Namespace) -> int:
    """Read a checkpoint to its end."""
    from pymigrate.checkpoint import signing
    from pymigrate.checkpoint.archive import Archive

    found = Archive.open(arguments.file.absolute(), _trust(arguments))
    verified = found.examine()
    signer = None if verified.signer is None else signing.fingerprint(verified.signer)
    if arguments.json:
        output.emit(
            {
                "file": str(found.path),
                "sound": True,
                "encrypted": found.is_encrypted,
                "signed_by": signer,
                "sha256": verified.sums,
            }
        )
        return 0
    count = len(found.manifest.members)
    output.say(f"{found.path} is sound: {count} members as they were written")
    if signer is not None:
        output.say(f"signed by {signer}")
    return 0
