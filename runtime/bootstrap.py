"""Make an image of Debian from packages with mmdebstrap(1), from the machine's own apt sources."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

from pymigrate.runtime import apt_sources, image_record
from pymigrate.runtime.errors import HostError, MissingFeature, UsageError
from pymigrate.runtime.image_record import Image, ImageConfig
from pymigrate.runtime.images import Store
from pymigrate.runtime.settings import DEFAULT_PATH

SUITE = "bookworm"
_SUITE = re.compile(r"[a-z][a-z0-9]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?")  # Debian policy 5.6.7
# As root mmdebstrap mounts in the namespace it is in: of one of its own nothing is left when it is
# killed, neither a mount through which removing its directory would remove the host's files, nor
# a process.
_APART = (
    "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child",
    "--mount-proc",
)  # fmt: skip
_SECONDS_PER_DAY = 86_400
_SECONDS_TO_END = 5
# dpkg remembers these in the image, so packages installed later leave them out too.
_LEFT_OUT = (
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-include=/usr/share/man/man[1-9]",  # where a JDK's set-up wants to put links
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/groff/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
)
# What only says when and where the image was made, or can be made again. A constant: nothing that
# anybody gave us goes through the shell that mmdebstrap runs it with.
_TRIM = (
    'rm -rf -- "$1"/var/log/apt "$1"/var/log/dpkg.log "$1"/var/log/alternatives.log'
    ' "$1"/var/log/bootstrap.log "$1"/var/cache/ldconfig/aux-cache'
    ' "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old'
    ' "$1"/etc/resolv.conf "$1"/etc/hostname'
)


def bootstrap(
    store: Store, reference: str, *, suite: str = SUITE, include: Sequence[str] = ()
) -> Image:
    """Make an image of Debian's minimal system and the packages asked for, and name it.

    No service is started, recommended packages stay out. Twice on one day from an unchanged
    mirror gives the same image; SOURCE_DATE_EPOCH in the environment fixes the day.

    Raises:
        UsageError: the suite or a package has no possible name.
        MissingFeature: mmdebstrap is not installed, or apt has no Debian source.
        HostError: mmdebstrap failed, with its own words; nothing is left behind.

    """
    reference = image_record.parse_reference(reference)
    for package in include:
        if not _PACKAGE.fullmatch(package):
            raise UsageError(f"{package!r} is not the name of a package")
    if not _SUITE.fullmatch(suite):
        raise UsageError(
            f"{suite!r} is not a suite of Debian", hint="for example bookworm, trixie or sid"
        )
    if shutil.which("mmdebstrap") is None:
        raise MissingFeature("mmdebstrap is not installed", hint="apt-get install mmdebstrap")
    sources = apt_sources.turned_to(suite, apt_sources.read())
    if not sources:
        raise MissingFeature(
            f"no source of Debian packages for {suite} in {apt_sources.APT}",
            hint="add a Debian mirror to the machine's apt sources, or import a root made "
            "elsewhere: pymigrate image import",
        )
    config = ImageConfig(env=(f"PATH={DEFAULT_PATH}",), cmd=("/bin/bash",))
    arguments = command(suite, include, sources)
    with store.scratch() as scratch, tempfile.TemporaryFile() as log:
        # mmdebstrap inherits the lock, so nobody sweeps its directory while it lives.
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(scratch.lock,),
            process_group=0,  # when it is stopped, it sends a hang-up to its whole group
            env=_environment(os.environ, str(scratch.path)),
        )
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        with process.stdout as pipe:
            try:
                output = _Output(process, pipe, log)
                return store.import_stream(output, reference, config, source=f"Debian {suite}")
            finally:
                _end(process)


def command(
    suite: str, include: Sequence[str], sources: Sequence[apt_sources.AptSource]
) -> list[str]:
    """Return mmdebstrap's arguments; the tar goes to its standard output."""
    return [
        *_APART,
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=tar",
        *(f"--dpkgopt={option}" for option in _LEFT_OUT),
        f"--customize-hook={_TRIM}",
        *([f"--include={','.join(include)}"] if include else []),
        suite,
        "-",
        *(source.line() for source in sources),
    ]


def _environment(environment: Mapping[str, str], temporary: str) -> dict[str, str]:
    midnight = int(time.time()) // _SECONDS_PER_DAY * _SECONDS_PER_DAY
    return {
        **environment,
        "TMPDIR": temporary,
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "SOURCE_DATE_EPOCH": environment.get("SOURCE_DATE_EPOCH", str(midnight)),
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that mmdebstrap and what it started are gone; all of it is one process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:  # by itself, if all went well
            return
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_END if number == signal.SIGTERM else None)


class _Output:
    """mmdebstrap's tar; at its end the program must have succeeded, or the tar is worth nothing."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: IO[bytes], log: IO[bytes]) -> None:
        self._process = process
        self._pipe = pipe
        self._log = log

    def read(self, size: int, /) -> bytes:
        data = os.read(self._pipe.fileno(), size)
        if not data and self._process.wait() != 0:
            self._log.seek(0)
            lines = self._log.read().decode("utf-8", "replace").splitlines()
            said = [line[3:] for line in lines if line.startswith("E: ")] or lines[-1:]
            raise HostError(
                "mmdebstrap could not make the root file system: "
                f"{said[0] if said else 'it said nothing'}; nothing was imported",
                hint="check the suite, the names of the packages, and that apt-get update works",
            )
        return data
