"""What a container's settings remember of its image, as annotations of config.json.

Names are those of the OCI image specification's conversion.md; labels stand under their own.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping

from pymigrate.runtime.image_record import ImageConfig

STOP_SIGNAL = "org.opencontainers.image.stopSignal"
EXPOSED_PORTS = "org.opencontainers.image.exposedPorts"
VOLUMES = "io.pymigrate.volumes"


def of_image(config: ImageConfig) -> dict[str, str]:
    """Return what is worth remembering of an image's configuration."""
    found = dict(config.labels)
    if config.stop_signal:
        found[STOP_SIGNAL] = config.stop_signal
    if config.exposed_ports:
        found[EXPOSED_PORTS] = ",".join(config.exposed_ports)
    if config.volumes:
        found[VOLUMES] = json.dumps(config.volumes)
    return found


def stop_signal(annotations: Mapping[str, str]) -> int:
    """Return the signal that asks a container to end: SIGTERM unless its image names another."""
    text = annotations.get(STOP_SIGNAL, "").upper()
    if text.isdecimal() and 0 < int(text) <= signal.SIGRTMAX:
        return int(text)
    name = text if text.startswith("SIG") else f"SIG{text}"
    first, _, offset = name.partition("+")
    if first == "SIGRTMIN" and offset.isdecimal() and signal.SIGRTMIN + int(offset) <= 64:
        return signal.SIGRTMIN + int(offset)  # systemd in a container asks for SIGRTMIN+3
    found = getattr(signal.Signals, name, None)
    return int(found) if isinstance(found, signal.Signals) else int(signal.SIGTERM)


def volumes(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return the directories that an image declares to hold data.

    They are part of the container's own files, so they travel with it.
    """
    try:
        found = json.loads(annotations.get(VOLUMES, "[]"))
    except ValueError:
        return ()
    if not isinstance(found, list):
        return ()
    return tuple(each for each in found if isinstance(each, str) and each.startswith("/"))
