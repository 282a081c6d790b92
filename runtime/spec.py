"""A container's settings: the OCI runtime specification's config.json as frozen dataclasses.

``parse`` reads a document once at the edge and names the JSON path of what is wrong; beyond it
nobody looks into a dict. Source of names and rules: github.com/opencontainers/runtime-spec 1.2,
config.md and config-linux.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pymigrate.runtime import capabilities as capability_names
from pymigrate.runtime.defaults import default_process, default_spec
from pymigrate.runtime.document import Node, each_of, or_else, some, strings_of
from pymigrate.runtime.errors import UsageError
from pymigrate.runtime.settings import (
    DEFAULT_PATH,
    HOOKS,
    KINDS,
    OCI_VERSION,
    Capabilities,
    Device,
    DeviceRule,
    Hook,
    IdMapping,
    IoRate,
    Mount,
    Namespace,
    Process,
    Resources,
    Rlimit,
    Spec,
    TimeOffset,
    User,
    check,
)
from pymigrate.runtime.spec_resources import (
    parse_resources,
    resources_document,
    weight_of_shares,
)

__all__ = [
    "DEFAULT_PATH",
    "KINDS",
    "OCI_VERSION",
    "Capabilities",
    "Device",
    "DeviceRule",
    "Hook",
    "IdMapping",
    "IoRate",
    "Mount",
    "Namespace",
    "Process",
    "Resources",
    "Rlimit",
    "Spec",
    "TimeOffset",
    "User",
    "check",
    "default_process",
    "default_spec",
    "load",
    "parse",
    "parse_process",
    "save",
    "to_document",
    "weight_of_shares",
]

_ID = (0, (1 << 32) - 2)
PROPAGATIONS = tuple(
    prefix + kind for kind in ("private", "slave", "shared", "unbindable") for prefix in ("", "r")
)


def _user(node: Node) -> User:
    return User(
        uid=or_else(node.get("uid"), lambda each: each.number(*_ID), 0),
        gid=or_else(node.get("gid"), lambda each: each.number(*_ID), 0),
        additional_gids=each_of(node.get("additionalGids"), lambda each: each.number(*_ID)),
        umask=or_else(node.get("umask"), lambda each: each.number(0, 0o777), User().umask),
    )


def _capability_set(node: Node | None) -> frozenset[str]:
    return frozenset(each_of(node, lambda each: each.one_of(capability_names.NAMES)))


def _capabilities(node: Node) -> Capabilities:
    read = Capabilities(
        bounding=_capability_set(node.get("bounding")),
        effective=_capability_set(node.get("effective")),
        permitted=_capability_set(node.get("permitted")),
        inheritable=_capability_set(node.get("inheritable")),
        ambient=_capability_set(node.get("ambient")),
    )
    if not read.effective <= read.permitted:
        raise UsageError(f"{node.path}.effective: must be among those permitted")
    if not read.ambient <= read.permitted & read.inheritable:
        raise UsageError(f"{node.path}.ambient: must be both permitted and inheritable")
    return read


def _rlimit(node: Node) -> Rlimit:
    name = node.need("type").text()
    if not name.startswith("RLIMIT_"):
        raise node.need("type").wrong("a name like RLIMIT_NOFILE")
    soft, hard = node.need("soft").number(0), node.need("hard").number(0)
    if soft > hard:
        raise node.need("soft").wrong(f"at most the hard limit {hard}")
    return Rlimit(name, soft, hard)


def parse_process(node: Node) -> Process:
    """Read the ``process`` object, of config.json or of an ``exec``."""
    args = node.need("args").strings()
    if not args or not args[0]:
        raise node.need("args").wrong("a command")
    env = strings_of(node.get("env"))
    for index, item in enumerate(env):
        if item.find("=") < 1:
            raise Node(item, f"{node.path}.env[{index}]").wrong("NAME=VALUE")
    _refuse_unsupported(node, _UNSUPPORTED_IN_PROCESS)
    size = node.get("consoleSize")
    return Process(
        args=args,
        env=env,
        cwd=node.need("cwd").absolute(),
        user=or_else(node.get("user"), _user, User()),
        terminal=or_else(node.get("terminal"), Node.flag, False),
        capabilities=or_else(node.get("capabilities"), _capabilities, Capabilities()),
        rlimits=each_of(node.get("rlimits"), _rlimit),
        no_new_privileges=or_else(node.get("noNewPrivileges"), Node.flag, False),
        oom_score_adj=or_else(node.get("oomScoreAdj"), lambda each: each.number(-1000, 1000), None),
        console_size=None if size is None else _console_size(size),
        apparmor_profile=or_else(node.get("apparmorProfile"), _label, None),
        selinux_label=or_else(node.get("selinuxLabel"), _label, None),
    )


def _label(node: Node) -> str | None:
    text = node.text()
    if not text.isprintable() or " " in text:
        raise node.wrong("a name without spaces")
    return text or None


def _console_size(node: Node) -> tuple[int, int]:
    return node.need("height").number(0, 65535), node.need("width").number(0, 65535)


# What changes how a container is confined must not be dropped in silence.
_UNSUPPORTED_IN_PROCESS = ("scheduler", "ioPriority", "execCPUAffinity")
_UNSUPPORTED_IN_LINUX = ("intelRdt", "memoryPolicy", "mountLabel", "netDevices")


def _refuse_unsupported(node: Node, names: Sequence[str]) -> None:
    for name in names:
        child = node.get(name)
        if child is not None and child.value not in ("", {}, []):
            raise UsageError(f"{child.path}: is not supported", hint="take it out of config.json")


def _hook(node: Node) -> Hook:
    return Hook(
        path=node.need("path").absolute(),
        args=strings_of(node.get("args")),
        env=strings_of(node.get("env")),
        timeout=or_else(node.get("timeout"), lambda each: each.number(1, 1 << 31), None),
    )


def _hooks(node: Node) -> Mapping[str, tuple[Hook, ...]]:
    found = {name: each_of(node.get(name), _hook) for name in HOOKS}
    return {name: hooks for name, hooks in found.items() if hooks}


def _personality(node: Node) -> None:
    flags = node.get("flags")
    if node.need("domain").text() != "LINUX" or (flags is not None and flags.value):
        raise node.wrong("LINUX without flags: no other is supported")


def _mount(node: Node) -> Mount:
    options = strings_of(node.get("options"))
    bind = {"bind", "rbind"} & set(options)
    default = "bind" if bind else node.need("type").text()
    mount = Mount(
        destination=node.need("destination").absolute(),
        type="bind" if bind else default,
        source=or_else(node.get("source"), Node.text, default),
        options=options,
    )
    if mount.type == "bind" and not mount.source.startswith("/"):
        raise node.need("source").wrong("an absolute path")
    return mount


def _namespace(node: Node) -> Namespace:
    kind = node.need("type").one_of(KINDS)
    return Namespace(kind, or_else(node.get("path"), lambda each: each.absolute(), None))


def _mapping(node: Node) -> IdMapping:
    return IdMapping(
        container_id=node.need("containerID").number(*_ID),
        host_id=node.need("hostID").number(*_ID),
        size=node.need("size").number(1, _ID[1]),
    )


def _device(node: Node) -> Device:
    kind = "c" if node.need("type").text() == "u" else node.need("type").one_of(("c", "b", "p"))
    return Device(
        path=node.need("path").absolute(),
        type=kind,
        major=0 if kind == "p" else node.need("major").number(0, 4095),
        minor=0 if kind == "p" else node.need("minor").number(0, (1 << 20) - 1),
        file_mode=or_else(node.get("fileMode"), lambda each: each.number(0, 0o7777), 0o666),
        uid=or_else(node.get("uid"), lambda each: each.number(*_ID), 0),
        gid=or_else(node.get("gid"), lambda each: each.number(*_ID), 0),
    )


def _time_offsets(node: Node) -> tuple[TimeOffset, ...]:
    offsets = []
    for clock in ("monotonic", "boottime"):
        child = node.get(clock)
        if child is not None:
            nanosecs = or_else(child.get("nanosecs"), lambda each: each.number(0, 999_999_999), 0)
            secs = or_else(child.get("secs"), lambda each: each.number(), 0)
            offsets.append(TimeOffset(clock, secs, nanosecs))
    return tuple(offsets)


def parse(document: Mapping[str, object]) -> Spec:
    """Return the settings in a config.json; UsageError names the JSON path of what is wrong."""
    top = Node(document, "")
    root = top.get("root") or Node({"path": "rootfs"}, "root")
    linux = top.get("linux") or Node({}, "linux")
    seccomp = linux.get("seccomp")
    if seccomp is not None:
        seccomp.need("defaultAction")
    _refuse_unsupported(linux, _UNSUPPORTED_IN_LINUX)
    if (personality := linux.get("personality")) is not None:
        _personality(personality)
    spec = Spec(
        oci_version=top.need("ociVersion").text(),
        hostname=or_else(top.get("hostname"), Node.text, None) or None,
        process=parse_process(top.need("process")),
        root_path=root.need("path").text(),
        root_readonly=or_else(root.get("readonly"), Node.flag, False),
        mounts=each_of(top.get("mounts"), _mount),
        namespaces=each_of(linux.get("namespaces"), _namespace),
        uid_mappings=each_of(linux.get("uidMappings"), _mapping),
        gid_mappings=each_of(linux.get("gidMappings"), _mapping),
        devices=each_of(linux.get("devices"), _device),
        resources=or_else(linux.get("resources"), parse_resources, Resources()),
        masked_paths=each_of(linux.get("maskedPaths"), Node.absolute),
        readonly_paths=each_of(linux.get("readonlyPaths"), Node.absolute),
        sysctl=or_else(linux.get("sysctl"), Node.dictionary, {}),
        seccomp=dict(document["linux"]["seccomp"]) if seccomp is not None else None,  # type: ignore[index]
        annotations=or_else(top.get("annotations"), Node.dictionary, {}),
        time_offsets=or_else(linux.get("timeOffsets"), _time_offsets, ()),
        domainname=or_else(top.get("domainname"), Node.text, None) or None,
        hooks=or_else(top.get("hooks"), _hooks, {}),
        cgroups_path=or_else(linux.get("cgroupsPath"), Node.text, None) or None,
        rootfs_propagation=or_else(
            linux.get("rootfsPropagation"), lambda each: each.one_of(PROPAGATIONS), None
        ),
    )
    check(spec)
    return spec


def process_from_document(document: object) -> Process:
    """Read a process.json, as `exec` of the OCI command line is given one."""
    return parse_process(Node(document, "process"))


def resources_from_document(document: object) -> Resources:
    """Read an object like ``linux.resources`` that changes limits: -1 takes one away."""
    node = Node(document, "resources")
    node.get("")  # an object?
    return parse_resources(node, no_limit=-1)


def load(path: Path) -> Spec:
    """Read a config.json; UsageError when it is not one."""
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path}: must hold a JSON object")
    return parse(document)


def save(spec: Spec, path: Path) -> None:
    """Write config.json through a file beside it, fsynced, so that it is old or new, never half."""
    beside = path.with_name(path.name + ".new")
    # A line for each setting: indented, it would be encoded in Python, ten times as slow.
    settings = to_document(spec).items()
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in settings)
    text = f"{{\n{lines}\n}}\n"
    with beside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def _process_document(process: Process) -> dict[str, object]:
    user, sets = process.user, process.capabilities
    return {
        "terminal": process.terminal,
        "user": {"uid": user.uid, "gid": user.gid}
        | some(additionalGids=list(user.additional_gids))
        | ({} if user.umask == User().umask else {"umask": user.umask}),
        "args": list(process.args),
        "env": list(process.env),
        "cwd": process.cwd,
        "capabilities": {name: sorted(values) for name, values in vars(sets).items()},
        "noNewPrivileges": process.no_new_privileges,
    } | some(
        rlimits=[vars(each) for each in process.rlimits],
        oomScoreAdj=process.oom_score_adj,
        consoleSize=process.console_size
        and dict(zip(("height", "width"), process.console_size, strict=True)),
        apparmorProfile=process.apparmor_profile,
        selinuxLabel=process.selinux_label,
    )


def _mapping_document(mapping: IdMapping) -> dict[str, object]:
    return {
        "containerID": mapping.container_id,
        "hostID": mapping.host_id,
        "size": mapping.size,
    }


def _hook_document(hook: Hook) -> dict[str, object]:
    return some(path=hook.path, args=list(hook.args), env=list(hook.env), timeout=hook.timeout)


def _device_document(device: Device) -> dict[str, object]:
    return {
        "path": device.path,
        "type": device.type,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.file_mode,
        "uid": device.uid,
        "gid": device.gid,
    }


def to_document(spec: Spec) -> dict[str, object]:
    """Return the config.json that ``parse`` reads as the same settings."""
    offsets = {
        each.clock: {"secs": each.secs, "nanosecs": each.nanosecs} for each in spec.time_offsets
    }
    linux = some(
        namespaces=[some(type=each.kind, path=each.path) for each in spec.namespaces],
        uidMappings=[_mapping_document(each) for each in spec.uid_mappings],
        gidMappings=[_mapping_document(each) for each in spec.gid_mappings],
        devices=[_device_document(each) for each in spec.devices],
        resources=resources_document(spec.resources),
        maskedPaths=list(spec.masked_paths),
        readonlyPaths=list(spec.readonly_paths),
        sysctl=dict(spec.sysctl),
        seccomp=None if spec.seccomp is None else dict(spec.seccomp),
        timeOffsets=offsets,
        cgroupsPath=spec.cgroups_path,
        rootfsPropagation=spec.rootfs_propagation,
    )
    return {
        "ociVersion": spec.oci_version,
        "process": _process_document(spec.process),
        "root": {"path": spec.root_path, "readonly": spec.root_readonly},
        **some(
            hostname=spec.hostname,
            domainname=spec.domainname,
            hooks={name: list(map(_hook_document, each)) for name, each in spec.hooks.items()},
            mounts=[vars(each) | {"options": list(each.options)} for each in spec.mounts],
            annotations=dict(spec.annotations),
        ),
        "linux": linux,
    }
