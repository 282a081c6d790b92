"""The index of a host's images: which there are, and by what names; apart, for each start reads it.

::

    ROOT/images/index.json         images by digest, digests by name
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pymigrate.runtime import image_record
from pymigrate.runtime.errors import ImageError, NotFound
from pymigrate.runtime.image_record import Image
from pymigrate.runtime.state import write_document
from pymigrate.runtime.values import dataclass, replace


@dataclass(frozen=True)
class Index:
    """The index as it is on the disk: images without their names, and digests by name."""

    images: Mapping[str, Image]
    references: Mapping[str, str]

    def get(self, text: str) -> Image:
        """Return an image by its name, its digest or the first 12 or more digits of that.

        Raises:
            NotFound: there is none.

        """
        digest = text.removeprefix("sha256:")
        if image_record.is_abbreviated_digest(digest):
            found = [image for key, image in self.images.items() if key.startswith(digest)]
            if len(found) == 1:
                return self.named(found[0])
        reference = image_record.parse_reference(text)
        digest = self.references.get(reference, "")
        if digest not in self.images:
            raise NotFound(
                f"there is no image {text}", hint="pymigrate image ls shows those that are here"
            )
        return replace(self.images[digest], reference=reference)

    def named(self, image: Image) -> Image:
        """Return the image with the first of its names, if it has one."""
        names = sorted(name for name, digest in self.references.items() if digest == image.digest)
        return replace(image, reference=names[0] if names else None)


def read(path: Path) -> Index:
    """Read the index; one that is not there is empty.

    Raises:
        ImageError: it is damaged.

    """
    try:
        document = json.loads(path.read_bytes())
        images = [image_record.from_document(each) for each in document["images"]]
        references = document["references"]
        return Index({image.digest: image for image in images}, references)
    except FileNotFoundError:
        return Index({}, {})
    except (ValueError, KeyError, TypeError, ImageError) as error:
        raise ImageError(
            f"{path} is damaged",
            hint="restore it from a backup, or remove it and import the images again",
        ) from error


def write(path: Path, index: Index) -> None:
    """Replace the index; the caller has locked the images."""
    write_document(
        path,
        {
            "images": [image_record.to_document(image) for image in index.images.values()],
            "references": dict(index.references),
        },
    )
