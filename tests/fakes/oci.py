"""OCI layouts and docker archives made by hand: nothing is shared with the code under test."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Layout:
    """An OCI layout that grows in a directory."""

    directory: Path
    manifests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.directory / "blobs/sha256").mkdir(parents=True)
        (self.directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = sha256(data)
        (self.directory / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def path(self, descriptor: dict[str, Any]) -> Path:
        return self.directory / "blobs/sha256" / str(descriptor["digest"]).partition(":")[2]

    def image(
        self,
        layers: Sequence[bytes],
        config: dict[str, Any] | None = None,
        *,
        packed: Callable[[bytes], bytes] = lambda data: gzip.compress(data, mtime=0),
        suffix: str = "+gzip",
        architecture: str = MACHINE,
        diff_ids: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Add an image, not yet to the index; return the descriptor of its manifest."""
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {
                "type": "layers",
                "diff_ids": list(diff_ids or (f"sha256:{sha256(each)}" for each in layers)),
            },
        }
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(
                json.dumps(document).encode(), "application/vnd.oci.image.config.v1+json"
            ),
            "layers": [self.blob(packed(each), LAYER + suffix) for each in layers],
        }
        return self.blob(json.dumps(manifest).encode(), MANIFEST) | {
            "platform": {"architecture": architecture, "os": "linux"}
        }

    def index(self, *manifests: dict[str, Any]) -> Path:
        """Write index.json; return the directory."""
        self.manifests += manifests
        document = {"schemaVersion": 2, "manifests": self.manifests}
        (self.directory / "index.json").write_text(json.dumps(document))
        return self.directory


def named(descriptor: dict[str, Any], name: str) -> dict[str, Any]:
    return descriptor | {"annotations": {"org.opencontainers.image.ref.name": name}}


def docker_archive(
    layers: Sequence[bytes], config: dict[str, Any], tags: Sequence[str]
) -> dict[str, bytes]:
    """Return the files of what `docker save` wrote before it wrote OCI layouts too."""
    document = {
        "architecture": MACHINE,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(each)}" for each in layers]},
    }
    text = json.dumps(document).encode()
    files = {f"{sha256(text)}.json": text}
    paths = []
    for number, layer in enumerate(layers):
        paths.append(f"{number:064x}/layer.tar")
        files[paths[-1]] = layer
    entry = {"Config": f"{sha256(text)}.json", "RepoTags": list(tags), "Layers": paths}
    files["manifest.json"] = json.dumps([entry]).encode()
    return files


def tar(files: dict[str, bytes] | Path) -> bytes:
    """Return a tar of these files, or of a directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        if isinstance(files, Path):
            archive.add(files, ".")
            files = {}
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def bundle(
    directory: Path, rootfs: Path, *command: str, change: Callable[[Any], object] = lambda _: None
) -> Path:
    """Write an OCI runtime bundle, as `runc spec` writes it; ``change`` may alter its config."""
    capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    shared = ["nosuid", "noexec", "nodev"]
    config: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "noNewPrivileges": True,
        },
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "bundled",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {
                "destination": "/sys",
                "type": "sysfs",
                "source": "sysfs",
                "options": [*shared, "ro"],
            },
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": each} for each in ("pid", "network", "ipc", "uts", "mount")],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    }
    change(config)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    return directory
