"""The border to nftables: whole tables of ours, replaced and removed in one transaction each.

By nft(8), which every distribution has: libnftables would need ctypes, and its JSON the same
grammar. What is put into a script here are numbers, addresses and names that were checked.
"""

from __future__ import annotations

import os
import re

from pymigrate.runtime.errors import HostError, MissingFeature

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_WORDS = 4096


def replace_table(name: str, body: str) -> None:
    """Make a table of family inet, in place of one of this name.

    Raises:
        MissingFeature: there is no nft.
        HostError: the kernel refuses it; what was there stays.

    """
    _run(f"table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{body}}}\n")


def remove_table(name: str) -> None:
    """Remove a table; it need not be there, nor nft."""
    try:
        # Made first, for there is no other way to remove what may be missing in one transaction.
        _run(f"table inet {name}\ndelete table inet {name}\n")
    except MissingFeature:
        return  # so nobody has made it


def checked_name(name: str) -> str:
    """Return a name that needs no quotes in a script; MissingFeature for one that would."""
    if not _NAME.fullmatch(name):
        raise MissingFeature(f"an interface called {name!r} cannot be named to nft")
    return name


def _run(script: str) -> None:
    """Feed nft a script; by posix_spawn and memory files, since a supervisor forks with care."""
    stdin, output = os.memfd_create("nft"), os.memfd_create("nft-says")
    try:
        os.write(stdin, script.encode("ascii"))
        os.lseek(stdin, 0, os.SEEK_SET)
        actions = [
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ]
        environment = {"PATH": "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin", "LC_ALL": "C"}
        try:
            pid = os.posix_spawn(_program(), ["nft", "-f", "-"], environment, file_actions=actions)
        except FileNotFoundError as error:
            raise MissingFeature(
                "published ports need nft, which is not here", hint="apt-get install nftables"
            ) from error
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 0:
            words = os.pread(output, _MOST_WORDS, 0).decode(errors="replace").strip()
            raise HostError(f"nft ended with {status}: {words.splitlines()[0] if words else ''}")
    finally:
        os.close(stdin)
        os.close(output)


def _program() -> str:
    for directory in ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"):
        if os.access(f"{directory}/nft", os.X_OK):
            return f"{directory}/nft"
    return "/usr/sbin/nft"
