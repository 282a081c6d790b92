"""Put in place what lies ready for restored processes: what they wait for first, then the rest.

What the source has said to hold lies here, or is zeros. It needs nobody else any more, so a thread
of its own puts it in place from when there are processes; but what has just come goes before it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pymigrate.checkpoint.early_pages import EarlyPages
from pymigrate.checkpoint.placing import PIECE, Hole, Places
from pymigrate.checkpoint.ready import PAGE, Content, Ready
from pymigrate.runtime import syscalls
from pymigrate.runtime.errors import ProtocolError

if TYPE_CHECKING:
    from pymigrate.checkpoint.known_pages import Addresses
    from pymigrate.checkpoint.ready_pages import ReadyPages

_AROUND = 64 << 10  # bytes of which all that is ready is put in place with a page waited for


class ReadyPlacer:
    """Knows what is ready in one container, and which pages its processes wait for.

    ``settle`` and ``all_is_said`` are for the thread that hears the source, ``want`` and ``clear``
    for the one that hears the processes, ``has_come`` for any. Start it once; it ends by `finish`
    or by `stop`, after which it is to be joined.
    """

    def __init__(
        self,
        places: Places,
        early: EarlyPages,
        failed: Callable[[BaseException], None],
        *,
        room: int,
    ) -> None:
        """Place what lies aside in ``early``; ``room`` bounds of how many bytes it may be said.

        ``failed`` is called in its thread, with what ended it.
        """
        self.placed = 0  # pages that were ready and are in place
        self._places = places
        self._early = early
        self._failed = failed
        self._most = room // PAGE
        self._ready: ReadyPages | None = None
        self._waited: set[tuple[int, int]] = set()  # pages that are not ready yet
        self._windows: set[tuple[int, int]] = set()  # in which pages were waited for
        self._urgent: deque[Ready | Hole] = deque()
        self._changed = threading.Condition()
        self._is_attached = False
        self._is_arriving = False
        self._all_is_said = False
        self._is_ending = False
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="pager-placer", daemon=True)

    def start(self) -> None:
        """Begin, with what is waited for; `attach` says from when on the rest may be placed."""
        self._thread.start()

    def attach(self) -> None:
        """All memory is registered now: what is put in place before that could be passed over."""
        with self._changed:
            self._is_attached = True
            self._changed.notify_all()

    @property
    def is_attached(self) -> bool:
        """Whether it was said that all memory is registered."""
        return self._is_attached

    # What the source says.

    def settle(self, inner: int, address: int, length: int, content: Content) -> None:
        """Say that pages which lie aside, or are zeros, hold for good: they are put in place.

        Raises ProtocolError if nothing of that process lies aside; single pages that do not are an
        error of the thread.
        """
        if content is Content.ASIDE and not self._early.holds(inner):
            raise ProtocolError(f"pages at {address:#x} were never sent")
        with self._changed:
            self._readies().add(Ready(inner, address, length, content))
            self._catch_up(inner)

    def settle_all(
        self,
        inner: int,
        addresses: Addresses,
        pages: Addresses,
        contents: Addresses,
        *,
        soon: bool = False,
    ) -> None:
        """Do so for many runs of pages of one process, by ascending addresses.

        What will be needed ``soon`` goes before all that is not.
        """
        if (contents == Content.ASIDE).any() and not self._early.holds(inner):
            raise ProtocolError(f"pages of process {inner} were never sent")
        with self._changed:
            self._readies().add_all(inner, addresses, pages, contents, soon=soon)
            self._catch_up(inner)

    def all_is_said(self) -> None:
        """Take what is neither there nor ready for zeros: all else was spoken of."""
        with self._changed:
            self._all_is_said = True
            self._urgent.extend(Ready(*key, PAGE, Content.ZERO) for key in self._waited)
            self._waited.clear()
            self._changed.notify_all()

    def _readies(self) -> ReadyPages:
        """Return what lies ready; it needs numpy, which a filler, that has none of it, has not."""
        if self._ready is None:
            from pymigrate.checkpoint.ready_pages import ReadyPages

            self._ready = ReadyPages(self._most)
        return self._ready

    def _catch_up(self, inner: int) -> None:
        """Put in place soon what was asked for when it was on its way already."""
        for key in [key for key in self._waited if key[0] == inner]:
            if ready := self._find(*key):
                self._waited.remove(key)
                self._urgent.extend(ready)
        self._changed.notify_all()

    @contextlib.contextmanager
    def arriving(self) -> Iterator[None]:
        """Put in place what has just come before anything that only is ready."""
        self._is_arriving = True
        try:
            yield
        finally:
            with self._changed:
                self._is_arriving = False
                self._changed.notify_all()

    def has_come(self, inner: int, address: int) -> None:
        """Note that a page is in place by another way, and not waited for any more."""
        if (inner, address) in self._waited:
            with self._changed:
                self._waited.discard((inner, address))

    # What processes wait for.

    def want(self, inner: int, address: int) -> bool:
        """Put a page in place soon if it is ready, else when it is; returns whether it is."""
        with self._changed:
            ready = self._ready_around(inner, address)
            if ready:
                self._put_soon(ready)
            else:
                self._waited.add((inner, address))
        return bool(ready)

    def clear(self, hole: Hole) -> None:
        """Have zeros soon where nothing of the source is."""
        self._put_soon([hole])

    def _put_soon(self, what: Sequence[Ready | Hole]) -> None:
        with self._changed:
            self._urgent.extend(what)
            self._changed.notify_all()

    def _ready_around(self, inner: int, address: int) -> list[Ready]:
        """Return what can be put in place for who waits for a page, that page first."""
        window = (inner, address // _AROUND)
        # Before all memory is registered, a page beside this one could be passed over; and what was
        # put in place with another is not tried again.
        is_first = self._is_attached and window not in self._windows
        ready = self._find(inner, address, _AROUND if is_first else PAGE)
        if ready and is_first:
            self._windows.add(window)
        if not ready and self._all_is_said:
            ready = [Ready(inner, address, PAGE, Content.ZERO)]
        return ready

    def _find(self, inner: int, address: int, around: int = PAGE) -> list[Ready]:
        return [] if self._ready is None else self._ready.find(inner, address, around)

    # The thread.

    def _run(self) -> None:
        """Put in place what is ready, what is waited for first; ends when asked to and done."""
        buffer = memoryview(bytearray(PIECE))
        try:
            while True:
                urgent = run = None
                with self._changed:
                    if self._is_stopped:
                        return
                    if self._urgent:
                        urgent = self._urgent.popleft()
                    elif self._is_attached and not self._is_arriving:
                        run = None if self._ready is None else self._ready.take(PIECE)
                    if urgent is None and run is None:
                        if self._is_ending:
                            return
                        self._changed.wait()
                if isinstance(urgent, Hole):
                    self._places.clear(urgent)
                elif urgent is not None:
                    self._put(urgent, buffer, is_urgent=True)
                elif run is not None:
                    self._put(run, buffer)
                    if run.content is Content.ASIDE:
                        # So that the memory of a container is not there twice in the end.
                        self._early.drop(run.inner, run.address, run.length)
                    self.placed += run.length // PAGE
        except BaseException as error:
            self._failed(error)

    def _put(self, run: Ready, buffer: memoryview, *, is_urgent: bool = False) -> None:
        """Put pages in place that are ready.

        What was in place already stays as it is: so pages that were waited for may come once more
        with the rest, though nothing lies aside of them by then.
        """
        if run.content is Content.ZERO:
            self._places.place(run.inner, run.address, run.length, None, is_urgent=is_urgent)
            return
        view = buffer[: run.length]
        self._early.read(run.inner, run.address, view)
        source = syscalls.address_of(view)
        self._places.place(run.inner, run.address, run.length, source, is_urgent=is_urgent)

    # The end.

    def finish(self) -> None:
        """Put in place all that is ready, and end; what is not ready is zeros.

        Raises ProtocolError if there are no processes yet.
        """
        self.all_is_said()
        with self._changed:
            # Whoever says that all was sent before the restore has sent something else.
            if not self._is_attached:
                raise ProtocolError("the memory ended before there were processes that have it")
            self._is_ending = True
            self._changed.notify_all()
        self._thread.join()

    def stop(self) -> None:
        """Put nothing more in place, after what is being put there; in any thread."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until nothing is put in place any more."""
        self._thread.join()
