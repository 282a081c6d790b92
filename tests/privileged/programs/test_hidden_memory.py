"""Memory that CRIU is not shown in a lazy dump: every byte of every kind comes back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from pymigrate.checkpoint import dump, hidden_memory, images, preload
from pymigrate.checkpoint.requests import DumpOptions
from pymigrate.migrate import cli
from pymigrate.runtime.container import Container
from pymigrate.runtime.host import Host as Root
from pymigrate.runtime.memory import Area
from tests.lab import Host, Lab
from tests.lab.images import CachedImage
from tests.privileged.tool import Tool, until

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.criu,
    pytest.mark.requires("userfaultfd"),
]

KINDS = Path(__file__).with_name("kinds.py").read_text()
GOOD = "looked 36 good"
RUN = ("--name", "tree", "programs", "python3", "-c", KINDS)
SAID = "containers/tree/upper/said"


def looked(root: Path, look: Callable[[], object], name: str = "tree") -> str:
    """Have the program look at its memory; return what it says of it."""
    said = root / "containers" / name / "upper/said"
    before = said.read_text()
    look()
    until(lambda: said.read_text() != before)
    return said.read_text().removeprefix(before).strip()


def checked(host: Host) -> str:
    root = host.outside("/srv/pymigrate")
    return looked(root, lambda: host.pymigrate("kill", "-s", "USR1", "tree"))


@pytest.mark.parametrize("mode", ["post", "hybrid"])
def test_memory_of_every_kind_moves_there_and_back(lab: Lab, containers: None, mode: str) -> None:
    alpha, beta = lab["alpha"], lab["beta"]
    alpha.pymigrate("run", "-d", *RUN)
    said = alpha.outside("/srv/pymigrate") / SAID
    until(lambda: said.exists() and "ready" in said.read_text())

    alpha.pymigrate("migrate", "tree", "root@beta", "--mode", mode)
    assert GOOD == checked(beta)
    beta.pymigrate("migrate", "tree", "root@alpha", "--mode", mode)
    assert GOOD == checked(alpha)


@pytest.fixture
def tool(tmp_path: Path, programs: CachedImage) -> Iterator[Tool]:
    """Run the program."""
    made = Tool(tmp_path)
    (layer,) = programs.layers
    made.rootfs = programs.root / "images" / "layers" / layer
    made.run("-d", "--name", "tree", *RUN[3:])
    until(lambda: (made.root / SAID).exists() and "ready" in (made.root / SAID).read_text())
    yield made
    names = made("ps", "-a", "-q").stdout.split()
    made("rm", "-f", *names)


@pytest.mark.parametrize("way", [(), ("--eager",)], ids=["lazily", "at once"])
def test_memory_of_every_kind_comes_back_from_a_snapshot(tool: Tool, way: Sequence[str]) -> None:
    tool("snapshot", "create", "tree")

    tool("snapshot", "restore", "latest", "--name", "copy", *way)

    for name in ("copy", "tree"):
        assert GOOD == looked(tool.root, partial(tool, "kill", "-s", "USR1", name), name)


@dataclass(frozen=True)
class Seen:
    """What a lazy dump of the tree was like: of CRIU, its descriptors; of each process, pages."""

    descriptors: int | None
    hidden: int
    entries: dict[str, list[images.Entry]]
    areas: dict[int, tuple[Area, ...]]

    @property
    def shown(self) -> int:
        """Bytes of lazy pages that CRIU has seen."""
        lazy = (entry for found in self.entries.values() for entry in found if entry.lazy)
        return sum(entry.pages * images.PAGE for entry in lazy)


@contextmanager
def frozen(tool: Tool) -> Iterator[Container]:
    container = Container.open(Root.open(tool.root), "tree")
    container.freeze()
    try:
        yield container
    finally:
        container.thaw()


def dumped(tool: Tool, directory: Path) -> Seen:
    """Dump it lazily, and look at CRIU while it waits."""
    directory.mkdir()
    with frozen(tool) as container, dump.prepare(container, lazy=True) as prepared:
        opened = Path(f"/proc/{prepared.pid}/fd")
        with dump.hold(container, directory, DumpOptions(lazy=True), prepared) as held:
            # If it had to be dumped once more, the first CRIU has ended.
            descriptors = len([*opened.iterdir()]) if opened.exists() else None
            hidden = held.hidden
    return Seen(
        descriptors,
        sum(area.end - area.start for each in hidden for area in each.areas),
        {
            path.name: images.pagemap(path.read_bytes(), path.name)[1]
            for path in directory.glob("pagemap-[0-9]*.img")
        },
        {each.inner: each.areas for each in hidden},
    )


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compile the library from the source that is here."""
    if not any(map(shutil.which, preload.COMPILERS)):
        pytest.skip("there is no C compiler here")
    path = tmp_path / "preload.so"
    preload.build(path)
    monkeypatch.setattr(preload, "LIBRARY", path)
    return path


def without_pagemap_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have CRIU read /proc/PID/pagemap, as it does before Linux 6.7."""
    wrapped = preload.wrapped
    fault = "CRIU_FAULT=135"  # FI_DONT_USE_PAGEMAP_SCAN
    monkeypatch.setattr(
        preload, "wrapped", lambda *words: ["/usr/bin/env", fault, *wrapped(*words)]
    )


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "read"])
def test_criu_takes_no_page_that_it_need_not_see(
    tool: Tool, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, scan: bool
) -> None:
    if not scan:
        without_pagemap_scan(monkeypatch)

    with_it = dumped(tool, tmp_path / "with")
    library.unlink()
    without = dumped(tool, tmp_path / "without")

    assert (0, {}) == (without.hidden, without.areas)
    assert without.shown > 200 << 20
    assert with_it.shown < 40 << 20
    assert with_it.descriptors is not None
    assert without.descriptors is not None
    assert with_it.descriptors + 200 < without.descriptors
    for name, entries in with_it.entries.items():
        areas = with_it.areas[int(name.split("-")[1].split(".")[0])]
        assert not [
            entry
            for entry in entries
            for area in areas
            if entry.address < area.end and area.start < entry.address + entry.pages * images.PAGE
        ]


def test_what_is_hidden_and_would_not_come_later_is_dumped_once_more(
    tool: Tool, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = hidden_memory.qualifying
    monkeypatch.setattr(hidden_memory, "qualifying", lambda maps, _: chosen(maps, "VmLck:\t0 kB\n"))

    seen = dumped(tool, tmp_path / "images")

    assert 0 == seen.hidden
    assert seen.shown > 200 << 20
    tool("kill", "-s", "USR1", "tree")
    until(lambda: GOOD in (tool.root / SAID).read_text())


def test_library_that_answers_nothing_costs_no_memory(
    tool: Tool, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that does not know this CRIU."""
    monkeypatch.setattr(hidden_memory, "table", lambda _: b"")
    assert 0 == cli.main(["--root", str(tool.root), "snapshot", "create", "tree"])

    tool("snapshot", "restore", "latest", "--name", "copy")

    assert GOOD == looked(tool.root, lambda: tool("kill", "-s", "USR1", "copy"), "copy")
