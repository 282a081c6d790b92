"""The guests, the image of the containers, and the table of results."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

import guest_images
from guest_lab import Lab, sweep
from guests import GUESTS
from tests.cluster import lent as lending
from tests.cluster import programs
from tests.cluster.cluster import Machine, Outside
from tests.cluster.matrix import FULL
from tests.cluster.results import Results
from tests.cluster.travellers import CLEAN, Give
from tests.lab.images import CachedImage

collect_ignore = [] if FULL else ["test_arm.py", "test_services.py", "test_vagrant.py"]

FOUND = pytest.StashKey[Results]()


def found(config: pytest.Config) -> Results:
    """Return what this run has found so far."""
    return config.stash.setdefault(FOUND, Results())


@pytest.fixture(scope="session")
def guests(request: pytest.FixtureRequest) -> Iterator[dict[str, Machine]]:
    """Start all guests that the chosen tests need, at once: they boot side by side.

    The lab ends with this process, even if it is killed; the next run removes its directory.
    """
    sweep()
    wanted = [GUESTS[name] for name in sorted({n for i in request.session.items for n in named(i)})]
    lab = Lab(f"test-{os.getpid()}")
    try:
        with found(request.config).phase("images"):
            guest_images.provide_programs(guest.release for guest in wanted)
            images = guest_images.build_all(guest.release for guest in wanted)
            programs.archives()
            borrowing = any("lent" in getattr(i, "fixturenames", ()) for i in request.session.items)
            large = lending.bootstrap().values() if borrowing else ()
            disks = [lending.disk(image) for image in large]
        with found(request.config).phase("boot"):
            lab.up(wanted, leash=True, disks=disks)
        yield {guest.name: Machine(lab, guest, images[guest.release]) for guest in wanted}
    finally:
        lab.down()


def named(item: pytest.Item) -> list[str]:
    """List the guests of a test: they are the values of its parameters `source` and `target`."""
    call = getattr(item, "callspec", None)
    values = call.params.values() if call else ()
    return [name for name in values if isinstance(name, str) and name in GUESTS]


@pytest.fixture(scope="session")
def outside(guests: dict[str, Machine]) -> Outside:
    """Return where clients run: neither guest."""
    return Outside(next(iter(guests.values())).lab)


@pytest.fixture(scope="session")
def image(guests: dict[str, Machine]) -> Give:
    """Return a function that gives a guest an image of programs.py, once, and returns its name."""
    archives = programs.archives()
    have: set[tuple[str, str]] = set()

    def give(machine: Machine, name: str) -> str:
        if (machine.name, name) not in have:
            machine.give(archives[name], f"/root/{name}.tar")
            machine.pymigrate("image", "import", f"/root/{name}.tar", name)
            have.add((machine.name, name))
        return name

    return give


@pytest.fixture(scope="session")
def lent(guests: dict[str, Machine]) -> Callable[[Machine, str], CachedImage]:
    """Return a function that lets a guest have an image of tests/lab/services.py, once."""
    large = lending.bootstrap()
    have: set[tuple[str, str]] = set()

    def lend(machine: Machine, name: str) -> CachedImage:
        if (machine.name, name) not in have:
            lending.lend(large[name], machine)
            have.add((machine.name, name))
        return large[name]

    return lend


@pytest.fixture
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """Collect what was found; the tables are written after each test, in case of a killed run."""
    yield found(request.config)
    found(request.config).write()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the tables of this run, and where its time went."""
    results = found(config)
    for name, seconds in results.phases.items():
        terminalreporter.write_line(f"{name}: {seconds:.0f} s")
    for table, rows in results.tables():
        if rows:
            terminalreporter.section(f"{table.name}; also in docs/kernels.md")
            terminalreporter.write_line("\n".join([table.head, *rows]))


@pytest.fixture
def clean(guests: dict[str, Machine], source: str, target: str) -> Iterator[None]:
    """Remove what a test leaves on its two guests."""
    yield
    for name in (source, target):
        guests[name].sh(CLEAN)
