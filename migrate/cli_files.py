"""The verbs about a container's files: cp, diff."""

from __future__ import annotations

import argparse
import contextlib
import sys

from pymigrate.migrate import output
from pymigrate.runtime import changes, copying, errors, reaping
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import NAME, Host
from pymigrate.runtime.tree_format import shown

_IDENTITY = ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
_WORDS = {changes.ADDED: "added", changes.CHANGED: "changed", changes.DELETED: "deleted"}


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add cp and diff."""
    copy_parser = verbs.add_parser(
        "cp",
        usage="pymigrate cp [-a] NAME:PATH PATH|-   or   pymigrate cp [-a] PATH|- NAME:PATH",
        help="copy files into and out of a container, whether it runs or not",
        description="- is a tar on stdin or stdout. PATH/. is what a directory holds. Of a "
        "container that does not run, volumes are not seen.",
        epilog="example: pymigrate cp web:/etc/nginx ./nginx",
    )
    copy_parser.add_argument(
        "-a", "--archive", action="store_true",
        help="keep owners, set-user-id bits and capabilities (else they are root's, without)",
    )  # fmt: skip
    copy_parser.add_argument("source", metavar="FROM", help="NAME:PATH, PATH, or -")
    copy_parser.add_argument("target", metavar="TO", help="NAME:PATH, PATH, or -")
    copy_parser.set_defaults(run=copy)
    diff_parser = verbs.add_parser(
        "diff",
        help="list what a container has added (A), changed (C) and deleted (D) in its root",
        epilog="example: pymigrate diff web",
    )
    diff_parser.add_argument("name", metavar="NAME", help="a container")
    diff_parser.set_defaults(run=diff)


def copy(arguments: argparse.Namespace) -> int:
    """Copy; one side at least is a container."""
    host = Host.open(arguments.root)
    name, path = _split(arguments.source)
    target_name, target_path = _split(arguments.target)
    if name is None and target_name is None:
        raise errors.UsageError(
            "neither side is in a container; nothing was copied",
            hint="such as pymigrate cp web:/etc/hosts .",
        )
    with contextlib.ExitStack() as undo:
        source = _root(undo, host, name)
        target = source if name == target_name else _root(undo, host, target_name)
        if target_name is None and target_path == "-":
            copying.write_tar(source, path, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return 0
        if name is None and path == "-":
            count = copying.read_tar(
                sys.stdin.buffer, target, target_path, archive=arguments.archive
            )
        else:
            count = copying.copy(source, path, target, target_path, archive=arguments.archive)
    if arguments.json:
        output.emit({"files": count})
    return 0


def _root(undo: contextlib.ExitStack, host: Host, name: str | None) -> copying.Root:
    if name is None:
        return copying.HOST
    return undo.enter_context(copying.container_root(Container.open(host, name)))


def _split(text: str) -> tuple[str | None, str]:
    """Tell NAME:PATH from a path of this host, which may be written ./a:b."""
    name, colon, path = text.partition(":")
    if colon and NAME.fullmatch(name):
        return name, path or "/"
    return None, text


def diff(arguments: argparse.Namespace) -> int:
    """List the changes."""
    container = Container.open(Host.open(arguments.root), arguments.name)
    if not container.spec.private("mount"):
        raise errors.WrongState(f"{container.name} has no root of its own: it uses the host's")
    ours = (*_IDENTITY, reaping.INSIDE, *(each.destination for each in container.spec.mounts))
    found = changes.changes(container.upper, container.lower, ours)
    if arguments.json:
        output.emit(
            {
                word: [each.path.decode(errors="replace") for each in found if each.kind == kind]
                for kind, word in _WORDS.items()
            }
        )
        return 0
    for each in found:
        output.say(f"{each.kind} {shown(each.path)}")
    return 0
