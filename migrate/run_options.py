"""The options of ``run`` and ``create``: what each value must look like.

Limits are in limit_options.py, the network in network_options.py.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from pymigrate.migrate.amounts import NOTHING, seconds, size
from pymigrate.runtime import log, restarting
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.health import Health
from pymigrate.runtime.host import NAME
from pymigrate.runtime.settings import KINDS, IdMapping, Mount, Namespace, TimeOffset
from pymigrate.runtime.state import Volume
from pymigrate.runtime.values import replace

USERS = "100000:100000:65536"
_NO_ID = 0xFFFFFFFF  # (uid_t) -1 is nobody's
_VARIABLE = re.compile(r"[^\s=\0][^=\0]*")
_SYSCTL = re.compile(r"[a-z][a-z0-9_-]*(\.[A-Za-z0-9_-]+)+")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_SHORT_KINDS = {"mnt": "mount", "net": "network"}


def environment(
    given: Sequence[str], files: Sequence[str], host: Mapping[str, str]
) -> dict[str, str]:
    """Read ``-e`` and ``--env-file``; a name without a value takes the host's."""
    found: dict[str, str] = {}
    for path in files:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--env-file {path}: {error}; {NOTHING}") from error
        for line in text.splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                _add_variable(found, line.strip(), f"--env-file {path}", host)
    for word in given:
        _add_variable(found, word, "-e", host)
    return found


def _add_variable(found: dict[str, str], word: str, option: str, host: Mapping[str, str]) -> None:
    name, equals, value = word.partition("=")
    if not _VARIABLE.fullmatch(name) or "\0" in value:
        raise UsageError(f"{option} {word!r}: not NAME=VALUE; {NOTHING}", hint="such as -e LEVEL=3")
    if equals:
        found[name] = value
    elif name in host:
        found[name] = host[name]


def volume(text: str) -> Volume:
    """Read ``SRC:DST[:ro,local]``: a directory of the host that must exist, or a volume's name.

    Where the volume is that is named is for volumes.py.
    """
    source, colon, rest = text.partition(":")
    destination, _, words = rest.partition(":")
    options = words.split(",") if words else []
    unknown = [word for word in options if word not in ("ro", "rw", "local")]
    named = NAME.fullmatch(source)
    if not colon or not (named or source.startswith("/")) or destination[:1] != "/" or unknown:
        raise UsageError(
            f"-v {text}: not SRC:DST[:ro,local]; {NOTHING}",
            hint="an absolute path or a volume's name, such as -v /srv/data:/data:ro, -v db:/data",
        )
    _check_destination(destination, f"-v {text}")
    if named:
        return Volume("", destination, "ro" in options, "local" in options, source)
    if not os.path.exists(source):  # noqa: PTH110 - a text, which is kept as it was given
        raise UsageError(f"-v {text}: there is no {source} on this host; {NOTHING}")
    return Volume(source, destination, readonly="ro" in options, local="local" in options)


def bind(given: Volume) -> Mount:
    """Return the mount that a volume is in a container that starts."""
    words = ["rbind", "rprivate", "ro" if given.readonly else "rw"]
    if given.name is not None and not given.readonly:
        words.append("tmpcopyup")  # an empty one begins with what the image has there
    return Mount(given.destination, "bind", given.source, tuple(words))


def tmpfs(text: str) -> Mount:
    """Read ``DST[:OPTIONS]`` into a mount."""
    destination, _, words = text.partition(":")
    if not destination.startswith("/"):
        raise UsageError(
            f"--tmpfs {text}: not DST[:OPTIONS]; {NOTHING}", hint="such as /tmp:size=64m"
        )
    _check_destination(destination, f"--tmpfs {text}")
    options = tuple(word for word in words.split(",") if word)
    return Mount(destination, "tmpfs", "tmpfs", ("nosuid", "nodev", *options))


def _check_destination(path: str, option: str) -> None:
    if path.rstrip("/") == "" or ".." in path.split("/"):
        raise UsageError(f"{option}: cannot mount at {path}; {NOTHING}")


def sysctls(texts: Sequence[str]) -> dict[str, str]:
    """Read each ``NAME=VALUE``; whether a namespace of the container has it is for spec.check."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _SYSCTL.fullmatch(name) or not value.isascii() or "\n" in value:
            raise UsageError(
                f"--sysctl {text}: not NAME=VALUE; {NOTHING}",
                hint="such as net.core.somaxconn=1024",
            )
        found[name] = value
    return found


def hostname(text: str) -> str:
    """Check a name for sethostname(2)."""
    if not _HOSTNAME.fullmatch(text):
        raise UsageError(
            f"--hostname {text}: not a name for a host; {NOTHING}",
            hint="letters, digits, '-' and '.', at most 64",
        )
    return text


def log_size(texts: Sequence[str]) -> int | None:
    """Read ``--log-opt max-size=SIZE``."""
    found = None
    for text in texts:
        name, _, value = text.partition("=")
        if name != "max-size":
            raise UsageError(f"--log-opt {text}: unknown; {NOTHING}", hint="max-size=SIZE")
        found = size(value, "--log-opt max-size")
        if found < log.LEAST_SIZE:
            raise UsageError(
                f"--log-opt {text}: too little; {NOTHING}", hint=f"{log.LEAST_SIZE} is the least"
            )
    return found


def restart(text: str, *, removed: bool) -> str:
    """Read ``--restart``; what is removed when it has ended cannot be run again."""
    try:
        policy = restarting.Policy.parse(text)
    except ValueError as error:
        raise UsageError(f"--restart {error}; {NOTHING}") from error
    if removed and policy.when != restarting.NEVER:
        raise UsageError(f"--restart and --rm do not go together; {NOTHING}")
    return text


def health(given: argparse.Namespace) -> Health | None:
    """Read ``--health-cmd`` and how often it is to be run."""
    rest = (given.health_interval, given.health_retries, given.health_timeout)
    if given.health_cmd is None:
        if rest != (None, None, None):
            raise UsageError(f"--health-…: there is no --health-cmd; {NOTHING}")
        return None
    usual = Health(("/bin/sh", "-c", given.health_cmd))
    interval, retries, timeout = rest
    if retries is not None and not 0 < retries < 1 << 31:
        raise UsageError(f"--health-retries {retries}: not a number from 1 on; {NOTHING}")
    return replace(
        usual,
        interval=usual.interval if interval is None else seconds(interval, "--health-interval"),
        retries=usual.retries if retries is None else retries,
        timeout=usual.timeout if timeout is None else seconds(timeout, "--health-timeout"),
    )


def namespaces(share: Sequence[str], join: Sequence[str], mode: str) -> tuple[Namespace, ...]:
    """Decide every namespace: a new one, another's, or (left out) the host's."""
    shared = {_kind(word, "--share") for words in share for word in words.split(",")}
    joined: dict[str, str] = {}
    for text in join:
        name, colon, path = text.partition(":")
        kind = _kind(name, "--join")
        if not colon or not path.startswith("/"):
            raise UsageError(
                f"--join {text}: not NS:PATH; {NOTHING}", hint="such as --join ipc:/proc/123/ns/ipc"
            )
        joined[kind] = path
    if mode == "host":
        shared.add("network")
    both = shared & set(joined)
    if both:
        raise UsageError(f"{', '.join(both)}: both shared and joined; {NOTHING}")
    return tuple(
        Namespace(kind, joined.get(kind))
        for kind in KINDS
        if kind not in shared and (kind != "user" or kind in joined)
    )


def time_offsets(given: argparse.Namespace, kinds: Container[str]) -> tuple[TimeOffset, ...]:
    """Read ``--monotonic`` and ``--boottime``, for a time namespace of the container's own."""
    asked = (("monotonic", given.monotonic), ("boottime", given.boottime))
    found = tuple(TimeOffset(clock, seconds) for clock, seconds in asked if seconds is not None)
    if found and "time" not in kinds:
        raise UsageError(f"--{found[0].clock} needs a time namespace of its own; {NOTHING}")
    return found


def _kind(word: str, option: str) -> str:
    kind = _SHORT_KINDS.get(word, word)
    if kind not in KINDS:
        raise UsageError(
            f"{option} {word}: no such namespace; {NOTHING}", hint="one of " + ", ".join(KINDS)
        )
    return kind


def capability(word: str, option: str, known: Sequence[str]) -> frozenset[str]:
    """Read the name of a capability, with or without CAP_, or ``all``."""
    upper = word.upper()
    if upper == "ALL":
        return frozenset(known)
    name = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if name not in known:
        raise UsageError(
            f"{option} {word}: no such capability; {NOTHING}", hint="see capabilities(7)"
        )
    return frozenset({name})


def users(text: str | None) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
    """Read ``UID:GID:SIZE`` or "auto": the maps of users and of groups, () without any."""
    if text is None:
        return (), ()
    fields = (USERS if text == "auto" else text).split(":")
    if len(fields) == 3 and all(field.isascii() and field.isdigit() for field in fields):
        uid, gid, count = map(int, fields)
        if count > 0 and max(uid, gid) + count <= _NO_ID:
            return (IdMapping(0, uid, count),), (IdMapping(0, gid, count),)
    raise UsageError(
        f"--userns {text}: not UID:GID:SIZE; {NOTHING}", hint=f"such as {USERS}, which auto means"
    )


def absolute(path: str) -> str:
    """Check a working directory."""
    if not path.startswith("/"):
        raise UsageError(f"-w {path}: not an absolute path; {NOTHING}")
    return path


def apparmor(name: str) -> str:
    """Read the name of a profile."""
    if not name.isprintable() or " " in name:
        raise UsageError(f"--security-opt apparmor={name}: not the name of a profile; {NOTHING}")
    return name


_CONTEXT = {"user": "system_u", "role": "system_r", "type": "container_t", "level": "s0"}


def selinux(words: Sequence[str]) -> str | None:
    """Read each ``label=``: ``disable``, or one part of a context; the other parts are podman's."""
    if not words or "disable" in words:
        return None
    parts = dict(_CONTEXT)
    for word in words:
        part, _, value = word.partition(":")
        if part not in parts or not value.isprintable() or not value or " " in value:
            raise UsageError(
                f"--security-opt label={word}: unknown; {NOTHING}",
                hint="label=disable, label=type:TYPE; also user:, role:, level:",
            )
        parts[part] = value
    return ":".join(parts.values())
