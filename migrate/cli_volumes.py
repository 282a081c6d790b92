"""The verb ``volume``: create, ls, inspect, rm and prune."""

from __future__ import annotations

import argparse
from typing import Any

from pymigrate.migrate import output
from pymigrate.runtime import volumes
from pymigrate.runtime.errors import AlreadyExists
from pymigrate.runtime.host import Host


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``volume`` and its own verbs."""
    parser = verbs.add_parser(
        "volume",
        help="make, list and remove volumes that containers share or leave behind",
        epilog="example: pymigrate run -v data:/srv/data web; pymigrate volume ls",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True, parser_class=type(parser))
    creating = actions.add_parser(
        "create",
        help="make an empty volume; run -v does it by itself",
        epilog="example: pymigrate volume create data",
    )
    creating.add_argument("name", metavar="NAME", help="what to call it")
    creating.set_defaults(run=create)
    listing = actions.add_parser(
        "ls", help="list the volumes", epilog="example: pymigrate volume ls"
    )
    listing.set_defaults(run=list_volumes)
    inspecting = actions.add_parser(
        "inspect",
        help="print where volumes are and who has them, as JSON",
        epilog="example: pymigrate volume inspect data",
    )
    inspecting.add_argument("names", nargs="+", metavar="NAME", help="a volume, or several")
    inspecting.set_defaults(run=inspect)
    removing = actions.add_parser(
        "rm",
        help="remove volumes that no container has, with all that is in them",
        epilog="example: pymigrate volume rm data",
    )
    removing.add_argument("names", nargs="+", metavar="NAME", help="a volume, or several")
    removing.set_defaults(run=remove)
    pruning = actions.add_parser(
        "prune",
        help="remove all volumes that no container has",
        epilog="example: pymigrate volume prune",
    )
    pruning.set_defaults(run=prune)


def create(arguments: argparse.Namespace) -> int:
    """Make a volume."""
    if not volumes.make(Host.open(arguments.root), arguments.name):
        raise AlreadyExists(
            f"there is a volume {arguments.name} already; {volumes.NOTHING}",
            hint=f"pymigrate volume inspect {arguments.name}",
        )
    _tell(arguments, [arguments.name])
    return 0


def list_volumes(arguments: argparse.Namespace) -> int:
    """List the volumes."""
    host = Host.open(arguments.root)
    rows = [_row(host, name) for name in volumes.names(host)]
    if arguments.json:
        output.emit(rows)
    else:
        output.table(
            ("NAME", "CONTAINERS", "DIRECTORY"),
            [
                (str(each["name"]), " ".join(each["containers"]) or "-", str(each["directory"]))
                for each in rows
            ],
        )
    return 0


def _row(host: Host, name: str) -> dict[str, Any]:
    directory = volumes.place(host, name)
    return {
        "name": name,
        "directory": str(directory),
        "containers": volumes.users(host).get(name, []),
    }


def inspect(arguments: argparse.Namespace) -> int:
    """Print all that is known about volumes."""
    host = Host.open(arguments.root)
    for name, directory in [(name, volumes.check(host, name)) for name in arguments.names]:
        status = directory.stat()
        output.emit(
            {
                **_row(host, name),
                "uid": status.st_uid,
                "gid": status.st_gid,
                "mode": f"{status.st_mode & 0o7777:o}",
            }
        )
    return 0


def remove(arguments: argparse.Namespace) -> int:
    """Remove volumes; the first that cannot be ends it."""
    host = Host.open(arguments.root)
    for name in arguments.names:
        volumes.remove(host, name)
        _tell(arguments, [name])
    return 0


def prune(arguments: argparse.Namespace) -> int:
    """Remove the volumes that no container has."""
    _tell(arguments, volumes.prune(Host.open(arguments.root)))
    return 0


def _tell(arguments: argparse.Namespace, names: list[str]) -> None:
    if arguments.json:
        output.emit({"volumes": names})
        return
    for name in names:
        output.say(name)
