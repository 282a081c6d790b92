"""One snapshot as a versioned document: a manifest, and where its members are. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from pymigrate.checkpoint.chunking import Cut
from pymigrate.checkpoint.manifest import Manifest
from pymigrate.checkpoint.sealing import ID_BYTES, NAME_BYTES, Damaged
from pymigrate.runtime.errors import PymigrateError

FORMAT = 1
MAX_BYTES = 64 << 20
MAX_LEVELS = 8


@dataclass(frozen=True)
class Member:
    """A file of the checkpoint: a tree of lists of chunks, ``levels`` lists high.

    With no levels the root is the content itself; an empty file has no root. ``sha256`` is of the
    whole content, where somebody will ask for it.
    """

    name: str
    size: int
    cut: Cut
    levels: int
    root: bytes
    sha256: str = ""

    def to_document(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "name": self.name,
            "size": self.size,
            "cut": self.cut.value,
            "levels": self.levels,
            "root": self.root.hex(),
            "sha256": self.sha256,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Member:
        """Read it; raises KeyError or ValueError."""
        root = bytes.fromhex(str(document["root"]))
        found = cls(
            str(document["name"]),
            int(str(document["size"])),
            Cut(str(document["cut"])),
            int(str(document["levels"])),
            root,
            str(document["sha256"]),
        )
        if found.size < 0 or not 0 <= found.levels <= MAX_LEVELS:
            raise ValueError(f"{found.name} has impossible numbers")
        if len(root) != (ID_BYTES if found.size else 0):
            raise ValueError(f"{found.name} has no root")
        return found


@dataclass(frozen=True)
class Statistics:
    """What making it cost: seconds, and bytes that the repository grew by."""

    frozen_seconds: float = 0.0
    seconds: float = 0.0
    new_bytes: int = 0
    new_chunks: int = 0
    total_bytes: int = 0

    def to_document(self) -> dict[str, float | int]:
        """Return it for JSON."""
        return {
            "frozen_seconds": round(self.frozen_seconds, 6),
            "seconds": round(self.seconds, 6),
            "new_bytes": self.new_bytes,
            "new_chunks": self.new_chunks,
            "total_bytes": self.total_bytes,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, float | int]) -> Statistics:
        """Read it; raises KeyError or ValueError."""
        return cls(
            float(document["frozen_seconds"]),
            float(document["seconds"]),
            int(document["new_bytes"]),
            int(document["new_chunks"]),
            int(document["total_bytes"]),
        )


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint that is kept in a repository; ``created`` is ISO 8601, UTC."""

    id: str
    created: str
    host: str
    manifest: Manifest
    members: tuple[Member, ...]
    tags: tuple[str, ...] = ()
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def container(self) -> str:
        """The name of the container it is of."""
        return self.manifest.record.name

    @property
    def short_id(self) -> str:
        """What is shown: the first eight digits."""
        return self.id[:8]

    @property
    def size(self) -> int:
        """Bytes of all members together."""
        return sum(member.size for member in self.members)

    def to_json(self) -> bytes:
        """Return it as JSON; the id is the name of its file."""
        document = {
            "format": FORMAT,
            "created": self.created,
            "host": self.host,
            "tags": list(self.tags),
            "statistics": self.statistics.to_document(),
            "members": [member.to_document() for member in self.members],
            "manifest": json.loads(self.manifest.to_json()),
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, identity: str, data: bytes) -> Snapshot:
        """Read it; raises Damaged for what is none, or a newer one."""
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}, this pymigrate reads {FORMAT}")
            members = tuple(Member.from_document(entry) for entry in document["members"])
            return cls(
                identity,
                str(document["created"]),
                str(document["host"]),
                Manifest.from_json(json.dumps(document["manifest"]).encode()),
                members,
                tuple(str(tag) for tag in document["tags"]),
                Statistics.from_document(document["statistics"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise Damaged(f"snapshot {identity[:8]} cannot be read: {error}") from error
        except PymigrateError as error:
            raise Damaged(f"snapshot {identity[:8]} cannot be read: {error.message}") from error


def is_identity(name: str) -> bool:
    """Say whether this is the name of a snapshot or pack: 32 hex digits."""
    return len(name) == 2 * NAME_BYTES and all(digit in "0123456789abcdef" for digit in name)
