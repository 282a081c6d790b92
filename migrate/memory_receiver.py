"""Take the memory of a container that arrives, and put it into its processes."""

from __future__ import annotations

import numpy as np

from pymigrate.checkpoint.pager import Pager
from pymigrate.checkpoint.ready import Content
from pymigrate.migrate.incoming import Arriving
from pymigrate.migrate.wanted_receiver import WantedReceiver
from pymigrate.runtime import priority
from pymigrate.runtime.supervision import Supervision
from pymigrate.transport import messages as m
from pymigrate.transport import pages
from pymigrate.transport.conversation import Listener
from pymigrate.transport.pages import PAGE, Batch, Kind, News, Runs, Stage

TOLD = 4 << 20  # bytes after which it is told at the latest that they were taken


def receive(arriving: Arriving, listener: Listener, *, tells_placed: bool = False) -> m.PagesTaken:
    """Take everything until the source ends the conversation; then nothing is missing.

    If it is cut, the processes wait for what is missing, and another conversation goes on. With
    ``tells_placed`` the source is told what came by the lane.
    """
    if arriving.complete:
        listener.tell(pages.news(News.COMPLETE))
        while listener.hear() is not None:
            pass
        return m.PagesTaken()

    def want(inner: int, address: int) -> None:
        listener.tell(pages.news(News.WANTED, inner=inner, value=address))

    def attached(count: int) -> None:
        priority.give_way()  # they run now, or are about to
        listener.tell(pages.news(News.ATTACHED, value=count))

    lane = None if listener.lane is None else WantedReceiver(listener.lane, listener)
    with Supervision.connect(arriving.directory) as keeper:
        pager = Pager(
            arriving.directory / "criu",
            keeper,
            wanted=want if lane is None else lane.want,
            attached=attached,
            room=arriving.room,
        )
        if lane is not None:
            lane.start(pager)
        try:
            taken = told = 0

            def tell() -> None:
                nonlocal told
                words = lane.placed() if lane is not None and tells_placed else b""
                if taken > told:
                    words += pages.news(News.TAKEN, value=taken)
                    told = taken
                if words:
                    listener.tell(words)

            # Of what waits here already the next word will tell, unless that is much.
            while (piece := listener.hear(idle=tell)) is not None:
                batch = pages.decode(piece)
                if batch.stage is Stage.FINAL:
                    priority.come_back()  # it is frozen, and clients wait
                with pager.ready.arriving():
                    _take(pager, batch)
                if _asks(batch) and pager.holds(batch.inner):
                    listener.tell(pages.news(News.HELD, inner=batch.inner))
                pager.check()
                taken += len(piece)
                if taken - told >= TOLD:
                    tell()
            if lane is not None:
                lane.stop()  # all is here, and the pager is about to let go of it
            pager.finish()
        finally:
            if lane is not None:
                lane.close()
            pager.close()
    listener.tell(pages.news(News.COMPLETE))
    return m.PagesTaken(pages=pager.filled, early=pager.ready.placed, wanted=pager.faults)


def _asks(batch: Batch) -> bool:
    return batch.stage is Stage.EARLY and bool((batch.runs.kinds == Kind.SAME).any())


def _take(pager: Pager, batch: Batch) -> None:
    is_final = batch.stage is Stage.FINAL
    here, others = batch.runs.only(Kind.CONTENT), batch.runs.only(Kind.ZERO, Kind.SAME)
    if is_final and pager.ready.is_attached:
        pager.fill_all(batch.inner, here.addresses, here.pages, batch.content)
    else:
        at = 0
        for run in here:
            pager.put_aside(batch.inner, run.address, batch.content[at : at + run.pages * PAGE])
            at += run.pages * PAGE
        if is_final:
            _settle(pager, batch.inner, here, soon=True)
    if is_final and not len(batch.runs):
        pager.ready.all_is_said()
    elif is_final:
        _settle(pager, batch.inner, others, soon=False)


def _settle(pager: Pager, inner: int, runs: Runs, *, soon: bool) -> None:
    if len(runs):
        contents = np.where(runs.kinds == Kind.ZERO, Content.ZERO, Content.ASIDE)
        given = runs.addresses, runs.pages, contents.astype(np.uint64)
        pager.ready.settle_all(inner, *given, soon=soon)
