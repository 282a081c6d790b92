"""What this runtime can do, as runtime-spec's features.md has it."""

from __future__ import annotations

from pymigrate.runtime import capabilities, mount_options
from pymigrate.runtime.settings import HOOKS, KINDS, OCI_VERSION


def document() -> dict[str, object]:
    """Return the features document; what it does not name is not supported or not known."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": sorted(mount_options.WORDS),
        "linux": {
            "namespaces": sorted(KINDS),
            "capabilities": list(capabilities.NAMES),
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": False,
                "systemdUser": False,
                "rdma": False,
            },
            "seccomp": {"enabled": True},
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {},
        "potentiallyUnsafeConfigAnnotations": [],
    }
