"""Send the memory of a container: in rounds while it runs, what is wanted first, then the rest.

::

    source                                        target
    rounds, while it runs       ── EARLY ──▶      lie aside
    ═══ frozen ═══
    all pages, one behind the other ─ FINAL ─▶    lie aside for good; or "the same as lies aside"
                                ◀─ ATTACHED ─     its processes are restored: put in place
    the page of an address      ◀─ WANTED ──      a process waits for it, and it was not sent yet
                                ── FINAL ──▶      put in place, at once
                                ◀─ TAKEN ───      so much of it is dealt with
                                ◀─ PLACED ──      these came by the lane, and need not go again

Older targets are sent nothing FINAL before they are ATTACHED. Where there is a lane, WANTED and
what answers it take that, by a process of its own (``lane_process.py``), which tells us of it. Else
never more than a window of bytes is on its way, so a wanted page waits behind little. One thread
reads (``memory_reader.py``), a pool compresses, one sends, one hears; all end with the
conversation.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pymigrate.checkpoint.known_pages import Addresses, KnownPages
from pymigrate.migrate.batching import addresses_in
from pymigrate.migrate.lane_process import LaneProcess
from pymigrate.migrate.memory_reader import MemoryReader
from pymigrate.migrate.outbox import Outbox, Piece, buffers
from pymigrate.migrate.pace import Pace
from pymigrate.migrate.progress import Sent
from pymigrate.runtime import priority
from pymigrate.runtime.errors import PymigrateError
from pymigrate.runtime.memory import Memories
from pymigrate.transport import compression, pages
from pymigrate.transport import messages as m
from pymigrate.transport.conversation import PATIENCE, Speaker
from pymigrate.transport.pages import PAGE, Kind, News, Run, Runs, Stage

SIZE = pages.MAX_PAGES * PAGE + pages.TRAILER
WORKERS = 2  # threads that compress


class MemorySender:
    """Sends the memory of one container through one conversation. Close it in the end.

    `round`, `freeze`, `begin` and `wait` are for one thread. What goes wrong in ours is raised
    there: Unreachable and others of the conversation, MigrationError.
    """

    def __init__(
        self,
        speaker: Speaker,
        conclude: Callable[[], m.PagesTaken],
        failed: Callable[[BaseException], None] = lambda _: None,
        *,
        limit: float | None = None,
        ahead: bool = False,
        after: MemorySender | None = None,
        lane: LaneProcess | None = None,
        scratch: Path | None = None,
        streams: int = 1,
    ) -> None:
        """Take over a conversation that has just begun; ``conclude`` waits for its reply.

        ``failed`` is told, in a thread of ours, what ended the conversation once it is frozen.
        ``limit`` is the bytes a second that it may send. ``ahead`` says that the target takes FINAL
        pages before it has processes for them. ``after`` is one that was cut, and closed:
        what its target has taken does not go again if it is still there. ``lane`` is the process
        that answers what is wanted, from then on ours; without one we do. ``scratch`` is a
        directory on whose disk large tables may be. ``streams`` is how many connections the
        conversation takes in turn.
        """
        self.sent: Sent = Sent() if after is None else after.sent
        self._speaker = speaker
        self._ahead = ahead
        self._lane = lane
        self._pids: Sequence[int] = ()
        self._lane_asked = self._lane_bytes = 0
        self._conclude = conclude
        self._tell_failed = failed
        known = KnownPages(scratch) if after is None else after._confirmed()
        self._reader = MemoryReader(self, self.sent, known)
        self._held: set[int] = set()
        self._total = 0  # bytes of all batches that were put into the outbox
        self._unconfirmed: deque[tuple[int, int, Addresses]] = deque()  # sent with this total
        self._outbox = Outbox(SIZE, buffers(streams))
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="memory-compress")
        self._changed = threading.Condition()
        self._wanted: deque[tuple[int, int]] = deque()
        self._placed: deque[tuple[int, int, int]] = deque()  # there by the lane: address, pages
        self._work: Iterator[None] | None = None
        self._pace = Pace(
            limit, lane=lane is not None, processors=priority.processors(), streams=streams
        )
        self._begun = False
        self._ends = False  # all was begun, and the target is to be told when it has gone
        self._all_read = False
        self._end_said = False
        self._frozen = False
        self._ended = False
        self._attached = False
        self._complete = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(act,), name=name, daemon=True)
            for name, act in (
                ("memory-reader", self._read),
                ("memory-sender", self._send),
                ("memory-news", self._hear),
            )
        ]
        for thread in self._threads:
            thread.start()
        if lane is not None:
            act = partial(self._guarded, partial(self._hear_lane, lane))
            self._lane_thread = threading.Thread(target=act, name="memory-lane", daemon=True)
            self._lane_thread.start()

    # For the one who moves the container.

    def await_pager(self) -> None:
        """Wait until the target is there to take memory: a restore must find it listening.

        It says so by taking a batch, of nothing; or of what it is asked to hold from before.
        """
        processes = self._reader.known.processes()
        self._begin(self._ask(processes))
        self._await(lambda: (self._has_gone and self._pace.all_taken) or self._complete)
        for inner in set(processes) - self._held:
            self._reader.known.forget_process(inner)

    def _ask(self, processes: Sequence[int]) -> Iterator[None]:
        self.say(self.take_buffer(), 0, Stage.EARLY, 0, Runs.of(()))
        yield
        for inner in processes:
            self.say(self.take_buffer(), 0, Stage.EARLY, inner, Runs.of([Run(0, 1, Kind.SAME)]))
            yield

    def _confirmed(self) -> KnownPages:
        """Give what is known but for what the target has not said that it took."""
        for _, inner, addresses in self._unconfirmed:
            self._reader.known.forget(inner, addresses)
        return self._reader.known

    def round(self, pids: Sequence[int]) -> int:
        """Send what has changed since the last round; the processes run. Return pages sent.

        On return the target has taken all of it, so that the time was the link's too.
        """
        before = self.sent.early
        self._pace.somebody_waits = False
        self._reader.watch(pids)
        with Memories.of(pids) as memories:
            self._begin(self._reader.walk(memories, Stage.EARLY))
            self._await(lambda: self._has_gone)
        self._reader.mistrust()
        started = time.monotonic()
        self._await(lambda: self._pace.all_taken)
        self.sent.sending += time.monotonic() - started
        return self.sent.early - before

    def freeze(self, pids: Sequence[int], *, traced: bool = False) -> None:
        """From now on what is wanted is sent: the processes are frozen.

        ``traced`` says that CRIU is about to write them down. Until `release` only memory is looked
        at that nobody writes to meanwhile: see `quiet` in runtime/memory.py.

        Raises what ended the conversation, if it has ended.
        """
        with self._changed:
            self._frozen = True
            self._pace.somebody_waits = True
            self._check()
            self._reader.freeze(pids, traced=traced)
            self._pids = pids
            self._changed.notify_all()
        if not traced:
            self._serve()

    def release(self) -> None:
        """Look at all memory from now on: CRIU is done with the processes."""
        with self._changed:
            self._reader.release()
            self._changed.notify_all()
        self._serve()

    def _serve(self) -> None:
        """Have what is wanted answered: nobody writes to any of the memory any more."""
        if self._lane is not None:
            self._lane.serve(self._pids)

    def begin(self) -> None:
        """Send everything, as soon as the target has processes for it; see `wait`.

        A second time does nothing.
        """
        if self._begun:
            return
        self._begun = True
        self._begin(self._reader.walk(self._reader.memories, Stage.FINAL))

    @property
    def has_failed(self) -> bool:
        """Whether nothing more can be sent by this conversation."""
        return self._failure is not None

    @property
    def _has_gone(self) -> bool:
        """Whether all that was begun is on its way."""
        return self._work is None and self._outbox.is_idle

    def _begin(self, work: Iterator[None]) -> None:
        with self._changed:
            self._pace.resumes()
            self._work = work
            self._changed.notify_all()

    def await_attached(self) -> None:
        """Wait until the target's pager and its supervisor hold the memory of every process.

        Before that a process that ran could read zeros, if the pager died.
        """
        self._await(lambda: self._attached or self._complete)

    def wait(self) -> m.PagesTaken:
        """Wait until the target has all of it and nothing is missing there."""
        self._await(lambda: (self._work is None and self._attached) or self._complete)
        # The thread that reads may be amid a page that is wanted; after that nothing is.
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        # The thread that hears ends by this word, and then the reply is ours.
        self._await(lambda: self._complete and self._end_said)
        self._stop()
        return self._conclude()

    def _await(self, done: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: done() or self._failure is not None)
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _stop(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        # Not before: for the target its end amid the conversation is a failure, which who hears the
        # target would take for one of the line.
        if self._lane is not None:
            self._lane.close()
            self._lane_thread.join()
        self._pool.shutdown()

    def close(self) -> None:
        """Send nothing more; the conversation ends with its connection. May be repeated."""
        self._stop()
        self._reader.close()
        if self._lane is not None:
            self._lane.release()

    # The threads.

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:
            with self._changed:
                first = self._failure is None
                self._failure = self._failure or error
                self._ended = True
                self._changed.notify_all()
            if first and self._frozen:
                self._tell_failed(error)

    def _hear(self) -> None:
        while not (self._ended or self._complete):
            heard = self._speaker.hear(PATIENCE)
            if heard is None:
                continue
            with self._changed:
                for kind, inner, value in pages.parse_news(heard):
                    if kind is News.WANTED:
                        self._wanted.append((inner, value))
                        self._pace.wanted(time.monotonic())
                    elif kind is News.TAKEN:
                        self._pace.taken(value, time.monotonic())
                        while self._unconfirmed and self._unconfirmed[0][0] <= value:
                            self._unconfirmed.popleft()
                    elif kind is News.HELD:
                        self._held.add(inner)
                    elif kind is News.PLACED:
                        self._placed.append((inner, *pages.placed_pages(value)))
                    elif kind is News.ATTACHED:
                        self._attached = True
                    else:
                        self._complete = True
                self._changed.notify_all()

    def _hear_lane(self, lane: LaneProcess) -> None:
        """Hear of what was wanted; the end of the lane is ours until all has been sent.

        After that the target needs nobody any more, and hangs up first.
        """
        try:
            while (asked := lane.hear()) is not None:
                with self._changed:
                    self.sent.wanted += asked.times - self._lane_asked
                    self.sent.wire += asked.bytes - self._lane_bytes
                    self._lane_asked, self._lane_bytes = asked.times, asked.bytes
                    self._pace.wanted(time.monotonic())
        except PymigrateError:
            if not (self._all_read or self._complete):
                raise

    def _read(self) -> None:
        while True:
            with self._changed:
                blocked = self._work is not None and not self._outbox.has_room
                self._pace.waits(time.monotonic(), blocked=blocked)
                started = time.monotonic()
                self._wait_for(self._may_go_on)
                self.sent.sending += (time.monotonic() - started) if blocked else 0.0
                if self._ended:
                    return
                wanted, self._wanted = self._wanted, deque()
                placed, self._placed = self._placed, deque()
                work = self._work
                ends = self._is_at_end
            for inner, address, count in placed:
                self._reader.pass_over(inner, address, count)
            for inner, address in wanted:
                self._reader.send_wanted(inner, address)
            if ends:
                with self._changed:
                    self._all_read = True
                    self._changed.notify_all()
                return
            if not wanted and work is not None and next(work, False) is False:
                with self._changed:
                    self._work = None
                    self._changed.notify_all()

    @property
    def _is_at_end(self) -> bool:
        return self._ends and (self._work is None or self._complete)

    def _may_go_on(self) -> bool:
        if self._ended or self._is_at_end or (self._wanted and self._reader.memories.by_inner):
            return True
        return self._work is not None and self._outbox.has_room and not self._holds

    @property
    def _holds(self) -> float:
        """For how many seconds what nobody waits for is held back."""
        return self._pace.holds(time.monotonic())

    def _wait_for(self, may_go_on: Callable[[], bool]) -> None:
        while True:
            rest = self._holds  # before it is asked: who is held back by it wakes up by it
            if may_go_on():
                return
            self._changed.wait(rest or None)

    def _send(self) -> None:
        while True:
            with self._changed:
                self._wait_for(self._may_send)
                if self._ended:
                    return
                if not self._outbox.has_piece:
                    break
                piece = self._outbox.next()
            late = piece.packing is not None and not piece.packing.done()
            packed = None if piece.packing is None else piece.packing.result()
            wire = piece.length if packed is None else len(packed)
            with self._changed:
                # First: the other side may say that it was taken at once.
                self._pace.gone(piece.length, wire, time.monotonic(), late=late)
            gone = partial(self._has_left, piece.buffer)
            self.sent.wire += self._speaker.say(piece.plain, packed, gone)
        self._speaker.end()
        with self._changed:
            self._end_said = True
            self._changed.notify_all()

    def _has_left(self, buffer: bytearray) -> None:
        with self._changed:
            self._outbox.give_back(buffer)
            self._changed.notify_all()

    def _may_send(self) -> bool:
        if self._ended:
            return True
        if self._outbox.has_piece:
            # Who has all of it does not say any more what it takes.
            may_go = self._outbox.is_urgent or not self._holds
            return self._complete or (may_go and self._pace.may_send)
        return self._all_read

    # For the one who reads.

    @property
    def is_complete(self) -> bool:
        """Whether the target misses nothing any more."""
        return self._complete

    @property
    def takes_final(self) -> bool:
        """Whether the target takes FINAL pages by now."""
        return self._ahead or self._attached

    def batch_pages(self) -> int:
        """Return how many pages the next batch may have."""
        return min(pages.MAX_PAGES, self._pace.batch // PAGE)

    def pause(self, until: Callable[[], bool]) -> None:
        """Wait until then, or until a page is wanted, or nothing more is to be said."""
        with self._changed:
            self._changed.wait_for(lambda: until() or self._complete or self._ended or self._wanted)

    def take_buffer(self) -> bytearray:
        """Take a buffer for a batch, to `say` it or to `give_back`."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._outbox.has_any)
            # At the end nobody sends, and the piece goes nowhere.
            return self._outbox.take() if self._outbox.has_any else bytearray(SIZE)

    def give_back(self, buffer: bytearray) -> None:
        """Give back a buffer of which nothing is said."""
        with self._changed:
            self._outbox.give_back(buffer)

    def say(
        self,
        buffer: bytearray,
        count: int,
        stage: Stage,
        inner: int,
        said: Runs,
        *,
        urgent: bool = False,
    ) -> None:
        """Have a batch sent; ``count`` pages of content are in place."""
        length = pages.seal(buffer, count, stage, inner, said)
        piece = Piece(buffer, length)
        if count and (level := self._pace.level) is not None:
            packing = self._pool.submit(compression.compress, piece.plain, level=level)
            piece = Piece(buffer, length, packing)
        with self._changed:
            self._total += length
            if stage is Stage.EARLY:
                self._unconfirmed.append((self._total, inner, addresses_in(said)))
            self._outbox.put(piece, urgent=urgent)
            self._changed.notify_all()
