"""Several links that carry one conversation in turn: each piece goes by the next one.

::

    source                     by link 0    1         2                  target
    DATA 0, 1, 2 … 6    ────▶       0 3 6   1 4 END   2 5   ────▶        takes one from each in turn
                        ◀────       EVENT                   ◀────

What takes a processor, encryption and decryption, is then done for all of them at once: at the
source a thread for each sends, at the target each link's reader reads ahead. Since both sides know
which link a piece goes by, all pieces keep their order, and nothing has to be sorted. The end of
one link is the end of all, for what it carried is missing between what the others carry.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from pymigrate.runtime.errors import ProtocolError, PymigrateError, Unreachable
from pymigrate.transport import messages
from pymigrate.transport.frames import Frame, Kind
from pymigrate.transport.link import READ_AHEAD, Link

WAITING = 1  # frames that a link has to send beside the one that it is sending


def read_ahead(links: int) -> int:
    """Return how many frames each of so many links reads ahead: all together as many as one."""
    return max(1, READ_AHEAD // links)


def bind(links: Sequence[Link]) -> None:
    """Have what ends one of the links end all of them, with the reason that it has.

    Who sends or receives by any of them has it raised. To close them stays their owner's.
    """
    for link in links:
        link.when_lost(partial(_end_others, links, link))


def _end_others(links: Sequence[Link], lost: Link, error: PymigrateError) -> None:
    error = lost.last_word() or error
    for link in links:
        if link is not lost:
            link.give_up(error)
            link.channel.close()  # wakes who sends to a peer that does not read


class Rotation:
    """The source's end: a thread for each link. Close it in the end, after the links.

    `send` and `finish` are for one thread.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        """Send by these, of which the first is also heard, by somebody else."""
        bind(links)
        self._senders = [_Sender(link, is_heard=not at) for at, link in enumerate(links)]

    def send(self, number: int, frame: Frame, done: Callable[[], None]) -> None:
        """Have the piece of this number sent; waits while that link has WAITING others to send.

        ``done`` is called by another thread when the frame's memory may be used again; it is not if
        the frame cannot be sent. Raises what ended any of the links.
        """
        self._senders[number % len(self._senders)].put(frame, done)

    def finish(self) -> None:
        """Wait until all has been sent. Raises what ended any of the links."""
        for sender in self._senders:
            sender.finish()

    def close(self) -> None:
        """Wait for the threads, which end with their links; may be repeated."""
        for sender in self._senders:
            sender.close()


class _Sender:
    """Sends by one link."""

    def __init__(self, link: Link, *, is_heard: bool) -> None:
        self._link = link
        self._is_heard = is_heard
        self._frames: deque[tuple[Frame, Callable[[], None]]] = deque()  # the first is being sent
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="stream-sender", daemon=True)
        self._thread.start()

    def put(self, frame: Frame, done: Callable[[], None]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._over or len(self._frames) <= WAITING)
            self._check()
            self._frames.append((frame, done))
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._frames)
            self._check()

    def _check(self) -> None:
        self._link.check()
        if self._over:
            message = f"{self._link.peer}: nobody sends by this connection any more"
            raise Unreachable(message)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._over or self._frames)
                    if self._over:
                        return
                    frame, done = self._frames[0]
                if not self._is_heard and self._link.waiting:
                    self._refuse()
                self._link.send(frame)
                done()
                with self._changed:
                    self._frames.popleft()
                    self._changed.notify_all()
        except PymigrateError as error:
            self._link.give_up(error)  # and so all links, and whoever uses one
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _refuse(self) -> None:
        """Raise what they said by a connection on which nothing but an error is to be heard."""
        frame = self._link.receive(timeout=0)
        if frame.kind is Kind.ERROR:
            raise messages.unpack_error(frame.payload)[1]
        message = f"{self._link.peer} sent {frame.kind.name} by a connection that only takes pieces"
        raise ProtocolError(message)

    def close(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()
