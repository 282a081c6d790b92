"""Real programs in containers: an image that has them, two hosts, and two ways to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab import Host, Lab, images
from tests.lab.images import CachedImage
from tests.lab.services import IMAGES

PACKAGES = IMAGES["programs"]
Relocate = Callable[[str], Host]


MODES = ("stop", "pre", "post", "hybrid")
LONG = (pytest.mark.long, pytest.mark.timeout(900))
PATIENCE = 300  # seconds for a move, on a machine that has much else to do


def by_mode(*quick: str) -> pytest.MarkDecorator:
    """Run a test in every mode; all but the quick ones only in the long run."""
    return pytest.mark.parametrize(
        "mode",
        [pytest.param(mode, marks=() if mode in quick else LONG) for mode in MODES],
    )


def move_and_back(lab: Lab, name: str, mode: str, used: Callable[[], object]) -> None:
    """Move a container from alpha to beta and back, each time in this mode, and use it there."""
    alpha, beta = lab["alpha"], lab["beta"]
    for source, target in ((alpha, beta), (beta, alpha)):
        words = ("migrate", name, target.ssh_destination, "--mode", mode)
        report = source.pymigrate_json(*words, timeout=PATIENCE)
        assert ("moved", mode) == (report["result"], report["mode"])
        used()


def until_it_says(host: Host, name: str, word: str) -> None:
    """Wait until a container has written a line with this word."""
    host.sh(f"until pymigrate logs {name} | grep -q {word}; do sleep 0.1; done", timeout=120)


@pytest.fixture(scope="session")
def programs() -> CachedImage:
    """Make a Debian image with the programs."""
    return images.bootstrap("programs", PACKAGES)


@pytest.fixture(scope="module")
def lab(programs: CachedImage) -> Iterator[Lab]:
    """Make two hosts that have the image."""
    with Lab(("alpha", "beta")) as lab:
        for host in lab.hosts.values():
            images.lend(programs, host)
        yield lab


@pytest.fixture
def containers(lab: Lab) -> Iterator[None]:
    """Remove every container that the test left on any host."""
    yield
    for host in lab.hosts.values():
        names = host.pymigrate("ps", "-a", "-q").stdout.split()
        if names:
            host.pymigrate("rm", "-f", *names)
        host.sh("rm -f /srv/*.tar*")


@pytest.fixture(params=["restored", "migrated"])
def relocate(request: pytest.FixtureRequest, lab: Lab, containers: None) -> Relocate:
    """Return a function that takes a container through a file, or to the other host.

    It returns the host on which the container runs then.
    """
    alpha, beta = lab["alpha"], lab["beta"]

    def restored(name: str) -> Host:
        archive = f"/srv/{name}.tar.zst"
        alpha.pymigrate("checkpoint", name, "-o", archive)
        alpha.pymigrate("rm", name)
        alpha.pymigrate("restore", archive)
        return alpha

    def migrated(name: str) -> Host:
        alpha.pymigrate("migrate", name, beta.ssh_destination)
        return beta

    return {"restored": restored, "migrated": migrated}[request.param]
