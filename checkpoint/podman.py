"""The files of a checkpoint that podman's tools read: config.dump, spec.dump, network.status. Pure.

The fields are those that checkpointctl shows (checkpointctl: lib/metadata.go,
internal/container.go) and their names are libpod's (podman: libpod/container_config.go).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from pymigrate.checkpoint.manifest import Manifest
from pymigrate.runtime import spec

# Selects how checkpointctl reads the rest: it knows no other engine with a network.status.
_MANAGER = {"io.container.manager": "libpod"}


def documents(manifest: Manifest, deleted: Sequence[str]) -> dict[str, object]:
    """Return the JSON documents by member name; `deleted` are paths that the container removed."""
    return {
        "config.dump": _config(manifest),
        "spec.dump": _spec(manifest),
        "network.status": _network(manifest),
        "deleted.files": list(deleted),
    }


def _config(manifest: Manifest) -> dict[str, object]:
    record = manifest.record
    return {
        "id": record.id,
        "name": record.name,
        "rootfsImage": record.image_digest or "",
        "rootfsImageRef": record.image_digest or "",
        "rootfsImageName": record.image or record.rootfs or "",
        "runtime": "pymigrate",
        "createdTime": record.created,
        "checkpointedTime": manifest.created,
        "restored": False,
    }


def _spec(manifest: Manifest) -> dict[str, object]:
    document = dict(spec.to_document(manifest.spec))
    annotations = document.get("annotations")
    document["annotations"] = {
        **(annotations if isinstance(annotations, dict) else {}),
        **_MANAGER,
        "io.podman.annotations.checkpoint.runtime.name": "pymigrate",
    }
    return document


def _network(manifest: Manifest) -> dict[str, object]:
    settings = manifest.record.network
    if settings.address is None:
        return {}
    subnet: dict[str, object] = {"ipnet": str(ipaddress.ip_interface(settings.address))}
    if settings.gateway is not None:
        subnet["gateway"] = settings.gateway
    interface = {"subnets": [subnet], "mac_address": settings.mac or ""}
    return {settings.bridge: {"interfaces": {settings.interface: interface}}}
