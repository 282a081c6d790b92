"""Ask for pages that processes wait for, and put them in place, by a connection of their own.

What comes by it is put in place by the thread that hears it, before anything else. The source reads
it from what is frozen, so it is right at any time, and that the same pages also come with the rest
changes nothing: what is in place stays as it is. But they need not: the source is told of them, and
only once they are here, for a connection may lose what was sent by it.
"""

from __future__ import annotations

import threading

from pymigrate.checkpoint.pager import Pager
from pymigrate.runtime import priority
from pymigrate.runtime.errors import ProtocolError, PymigrateError, Unreachable
from pymigrate.transport import pages
from pymigrate.transport.conversation import Listener
from pymigrate.transport.frames import Kind as Frames
from pymigrate.transport.lane import Lane
from pymigrate.transport.pages import PAGE, Batch, Kind, News, Stage

MOST = 64
"""Pages that one answer may have, of content or of zeros."""

TOLD = 4096
"""Words at most that say at once what is in place: an event has room for four times as many."""


class WantedReceiver:
    """Takes what somebody waits for, from one lane, in a thread of its own."""

    def __init__(self, lane: Lane, listener: Listener) -> None:
        """Ask by the lane; what breaks it is raised in who hears the ``listener``."""
        self._lane = lane
        self._listener = listener
        self._pager: Pager | None = None
        self._placing = threading.Lock()
        self._placed: list[bytes] = []  # words of which nobody was told yet
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="wanted-receiver", daemon=True)

    def start(self, pager: Pager) -> None:
        """Put in place by this pager from now on."""
        self._pager = pager
        self._thread.start()

    def want(self, inner: int, address: int) -> None:
        """Ask for a page; for the thread that hears the processes.

        What breaks the lane breaks off the conversation, which tells who waits for it.
        """
        try:
            self._lane.say(Frames.EVENT, pages.news(News.WANTED, inner=inner, value=address))
        except PymigrateError as error:
            self._break_off(error)

    def _break_off(self, error: PymigrateError) -> None:
        if not self._closing:
            self._listener.give_up(
                Unreachable(f"what is waited for cannot be asked for any more: {error.message}")
                if isinstance(error, Unreachable)
                else error
            )

    def _run(self) -> None:
        priority.favour()
        try:
            while True:
                self._take(pages.decode(self._lane.hear(Frames.DATA)))
        except PymigrateError as error:
            self._break_off(error)

    def _take(self, batch: Batch) -> None:
        check(batch)
        at = 0
        for run in batch.runs:
            length = run.pages * PAGE
            content = None
            if run.kind is Kind.CONTENT:
                content = batch.content[at : at + length]
                at += length
            with self._placing:
                if self._pager is not None:
                    self._pager.answer(batch.inner, run.address, length, content)
                    self._placed.append(pages.placed(batch.inner, run.address, run.pages))

    def placed(self) -> bytes:
        """Return words for the source of what was put in place, each once; not all if many."""
        with self._placing:
            words, self._placed = self._placed[:TOLD], self._placed[TOLD:]
        return b"".join(words)

    def stop(self) -> None:
        """Put nothing more in place, and go on being there: the source may not have ended yet."""
        with self._placing:
            self._pager = None

    def close(self) -> None:
        """Hang up; may be repeated."""
        self._closing = True
        self.stop()
        self._lane.close()
        if self._thread.is_alive():
            self._thread.join()


def check(batch: Batch) -> None:
    """Raise ProtocolError for what is no answer to who waits for a page."""
    said = sum(batch.runs.pages.tolist())
    if batch.stage is not Stage.FINAL or not 0 < said <= MOST:
        message = f"{said} pages of stage {batch.stage.name} where pages are waited for"
        raise ProtocolError(message)
    if (batch.runs.kinds == Kind.SAME).any():
        message = "pages that are waited for are said to lie here"
        raise ProtocolError(message)
