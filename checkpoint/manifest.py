"""The description of one checkpoint, as versioned JSON: what it was made from, by, and on. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pymigrate.checkpoint.block_table import is_table
from pymigrate.checkpoint.requests import RestoreOptions, node_mounts
from pymigrate.checkpoint.tmpfs import MOST, Tmpfs
from pymigrate.runtime import spec, state, volumes
from pymigrate.runtime.errors import BadArchive, PymigrateError
from pymigrate.runtime.host import Host
from pymigrate.runtime.values import dataclass, replace

FORMAT = 1
FORMAT_WITH_TMPFS = 2
"""An older version would ask CRIU for what is not in its images."""
FORMAT_WITH_TABLES = 3
"""An older version would miss a checksum of the memory: blocks have them; see block_table.py."""
_FORMATS = (FORMAT, FORMAT_WITH_TMPFS, FORMAT_WITH_TABLES)

MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class Manifest:
    """What a restore must know.

    ``members`` are the sizes, in bytes, of the files of an archive; empty where there is none.
    """

    created: str
    software: str
    criu: str
    kernel: str
    machine: str
    page_size: int
    cgroup: str
    tcp: str
    descriptors: tuple[str, ...]
    record: state.Record
    spec: spec.Spec
    members: Mapping[str, int]
    lazy: bool = False  # private memory is not in the images: whoever restores it has a pager
    inside: bool = False  # by a CRIU in the container's network: only one that is there restores it
    tmpfs: tuple[Tmpfs, ...] = ()  # whose contents lie beside CRIU's images; see tmpfs_contents.py

    @property
    def external_mounts(self) -> tuple[str, ...]:
        """The mount points of the container that CRIU does not write down: its volumes."""
        return tuple(volume.destination for volume in self.record.volumes)

    def placed(self, host: Host) -> Manifest:
        """Return the same with its volumes where this host has them."""
        record, settings = volumes.placed(host, self.record, self.spec)
        return replace(self, record=record, spec=settings)

    def restore_options(self, *, debug: bool = False) -> RestoreOptions:
        """Say what CRIU must be told to restore this."""
        return RestoreOptions(
            tcp=self.tcp,
            network=self.record.network.is_own,
            inside=self.inside,
            descriptors=self.descriptors,
            mounts=(
                *((v.destination, v.source) for v in self.record.volumes),
                *node_mounts(self.spec),
            ),
            tmpfs=self.tmpfs,
            own_users=self.spec.private("user"),
            lazy=self.lazy,
            debug=debug,
        )

    def with_members(self, members: Mapping[str, int]) -> Manifest:
        """Return the same with the files that will be written."""
        return replace(self, members=dict(members))

    @property
    def _format(self) -> int:
        if any(map(is_table, self.members)):
            return FORMAT_WITH_TABLES
        return FORMAT_WITH_TMPFS if self.tmpfs else FORMAT

    def to_json(self) -> bytes:
        """Return it as JSON."""
        document = {
            "format": self._format,
            "created": self.created,
            "software": self.software,
            "criu": self.criu,
            "kernel": self.kernel,
            "machine": self.machine,
            "page_size": self.page_size,
            "cgroup": self.cgroup,
            "tcp": self.tcp,
            "descriptors": list(self.descriptors),
            "record": state.record_to_document(self.record),
            "spec": spec.to_document(self.spec),
            "members": dict(self.members),
            "lazy": self.lazy,
            "inside": self.inside,
            "tmpfs": [each.to_document() for each in self.tmpfs],
        }
        return json.dumps(document, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read a manifest from anywhere; raises BadArchive for what is none, or a newer one."""
        if len(data) > MAX_BYTES:
            raise BadArchive(f"a manifest of {len(data)} bytes is not one of ours")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadArchive(f"the manifest is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise BadArchive("the manifest is not a JSON object")
        if document.get("format") not in _FORMATS:
            raise BadArchive(
                f"the checkpoint has format {document.get('format')!r}, this pymigrate reads "
                f"those up to {_FORMATS[-1]}",
                hint="restore it with the version that made it",
            )
        try:
            return cls(
                created=_text(document, "created"),
                software=_text(document, "software"),
                criu=_text(document, "criu"),
                kernel=_text(document, "kernel"),
                machine=_text(document, "machine"),
                page_size=int(document["page_size"]),
                cgroup=_text(document, "cgroup"),
                tcp=_text(document, "tcp"),
                descriptors=tuple(str(link) for link in document["descriptors"]),
                record=state.record_from_document(document["record"]),
                spec=spec.parse(document["spec"]),
                members={str(name): int(size) for name, size in document["members"].items()},
                lazy=document.get("lazy", False) is True,
                inside=document.get("inside", False) is True,
                tmpfs=_tmpfs(document.get("tmpfs", [])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadArchive(f"the manifest is damaged: {error!r}") from error
        except PymigrateError as error:
            raise BadArchive(f"the manifest is damaged: {error.message}") from error


def _tmpfs(documents: object) -> tuple[Tmpfs, ...]:
    if not isinstance(documents, list) or len(documents) > MOST:
        raise TypeError("tmpfs is no list of them")
    found = tuple(Tmpfs.from_document(each) for each in documents)
    if len({each.place for each in found}) != len(found):
        raise ValueError("two tmpfs at one place")
    return found


def _text(document: Mapping[str, object], name: str) -> str:
    value = document[name]
    if not isinstance(value, str) or len(value) > 4096:
        raise TypeError(f"{name} is no text")
    return value
