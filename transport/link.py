"""A channel that is watched: both ends say something at least every few seconds.

A thread reads ahead (which also notices the other side's death while we are busy sending), another
sends a PING whenever nothing else was sent for a while. So a host that lost its power, a cut cable
or a stopped process is noticed within SILENCE seconds, although TCP would wait for hours.

Three things are no silence of theirs: the time that they take to begin, for an interpreter and what
it imports were seen to take 3 s on an emulated host; a frame that takes long to arrive, for a slow
line carries no PING in the middle of it; and time in which we did not run ourselves (our virtual
machine was stopped, or its processor had other work): what arrived meanwhile is still unread then.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pymigrate.runtime.errors import Corrupted, ProtocolError, PymigrateError, Unreachable
from pymigrate.transport import messages
from pymigrate.transport.channel import Channel, Timeout
from pymigrate.transport.frames import HEADER_SIZE, Frame, Kind

INTERVAL = 1.0  # seconds without a frame of ours before we send a PING
SILENCE = 8.0  # seconds without a frame of theirs before it counts as cut: clients may be waiting
OVERSLEPT = 1.0  # seconds that a wait may take longer than asked before it was we who did not run
BEGINNING = 4  # times as long may the first frame take: nothing is frozen yet
READ_AHEAD = 8  # frames kept for whoever receives; then the other side has to wait
_PARTING_TIMEOUT = 2.0  # seconds spent on telling the other side why we hang up


@dataclass
class Traffic:
    """Bytes on the wire so far, headers included; without PING and what SSH or TLS add."""

    sent: int = 0
    received: int = 0


class Link:
    """Owns a channel; gives its frames in order, except PING, which it handles itself."""

    def __init__(
        self,
        channel: Channel,
        *,
        interval: float = INTERVAL,
        silence: float = SILENCE,
        ahead: int = READ_AHEAD,
    ) -> None:
        """Start watching. ``interval`` must be well under the other side's ``silence``.

        So many frames are kept ``ahead`` of whoever receives.
        """
        self.channel = channel
        self.peer = channel.peer
        self.traffic = Traffic()
        self._interval = interval
        self._silence = silence
        self._ahead = ahead
        self._met = False  # a frame of theirs has arrived
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._failure: PymigrateError | None = None
        self._when_lost: Callable[[PymigrateError], None] | None = None
        self._closing = threading.Event()
        self._last_sent = time.monotonic()
        self._threads = [
            threading.Thread(target=self._read_ahead, name="link-reader", daemon=True),
            threading.Thread(target=self._keep_alive, name="link-heartbeat", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, frame: Frame) -> None:
        """Send one frame; waits as long as the other side is alive but does not read."""
        self.check()
        try:
            self.channel.send(frame)
        except Unreachable as error:
            # Let the reader come to the end: the other side's last word is there, if it said one.
            self._threads[0].join(_PARTING_TIMEOUT)
            self._fail(error)
            self.check()
        self._last_sent = time.monotonic()
        self.traffic.sent += HEADER_SIZE + frame.size

    def receive(self, *, timeout: float | None = None) -> Frame:
        """Take the oldest frame; Timeout after ``timeout`` seconds, by default only by silence."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._failure, timeout)
            if self._frames:
                frame = self._frames.popleft()
                self._changed.notify_all()
                return frame
        self.check()
        message = f"{self.peer} did not answer within {timeout:.3g} s"
        raise Timeout(message)

    @property
    def waiting(self) -> bool:
        """A frame can be received at once."""
        return bool(self._frames)

    def check(self) -> None:
        """Raise what ended this link, if anything did."""
        failure = self._failure
        if failure is not None:
            raise copy.copy(failure) from failure  # several threads may raise it

    def _fail(self, error: PymigrateError) -> None:
        """Remember the first failure, and wake everybody who waits for this link."""
        with self._changed:
            tell = self._when_lost if self._failure is None else None
            if self._failure is None:
                self._failure = error
            self._changed.notify_all()
        self._closing.set()
        if tell is not None:
            tell(error)

    def when_lost(self, tell: Callable[[PymigrateError], None]) -> None:
        """Have ``tell`` called with what ends this link: once, by any thread, or at once."""
        with self._changed:
            self._when_lost = tell
            failure = self._failure
        if failure is not None:
            tell(failure)

    def last_word(self) -> PymigrateError | None:
        """Return the error that they said last, if they did and nobody has received it yet."""
        with self._changed:
            frame = self._frames[-1] if self._frames else None
        if frame is None or frame.kind is not Kind.ERROR:
            return None
        try:
            return messages.unpack_error(frame.payload)[1]
        except ProtocolError as error:
            return error

    def _read_ahead(self) -> None:
        failure: PymigrateError = Unreachable(f"{self.peer}: nobody reads the connection any more")
        try:
            while not self._closing.is_set():
                frame = self._next_frame()
                if frame.kind is Kind.PING:
                    continue
                self.traffic.received += HEADER_SIZE + frame.size
                with self._changed:
                    self._changed.wait_for(
                        lambda: len(self._frames) < self._ahead or self._closing.is_set()
                    )
                    self._frames.append(frame)
                    self._changed.notify_all()
        except (ProtocolError, Corrupted) as error:
            failure = error
            self._part(error)
        except PymigrateError as error:
            failure = error
        finally:
            self._fail(failure)
            # Wakes a thread that is sending to a peer which will never read again.
            self.channel.close()

    def _next_frame(self) -> Frame:
        """Wait for a frame for as long as they are not silent."""
        allowed = self._silence if self._met else self._silence * BEGINNING
        patience = allowed
        while True:
            asked = time.monotonic()
            try:
                frame = self.channel.receive(timeout=patience)
            except Timeout:
                now = time.monotonic()
                quiet = now - max(asked, self.channel.heard)
                if now - asked > patience + OVERSLEPT:
                    patience = self._interval  # for what has come by now to be read
                elif quiet < patience:
                    patience = allowed - quiet
                else:
                    message = f"{self.peer}: no sign of life for {allowed:g} s"
                    raise Unreachable(message) from None
            else:
                self._met = True
                return frame

    def _part(self, error: PymigrateError) -> None:
        """Tell the other side why we hang up; its own view of the failure is only a closed line."""
        frame = Frame(Kind.ERROR, messages.pack_error(0, error))
        try:
            self.channel.send(frame, timeout=_PARTING_TIMEOUT)
        except PymigrateError as lost:
            error.add_note(f"the other side could not be told: {lost.message}")

    def _keep_alive(self) -> None:
        while not self._closing.wait(self._interval):
            if time.monotonic() - self._last_sent < self._interval / 2:
                continue
            try:
                self.channel.send(Frame(Kind.PING))
            except PymigrateError as error:
                self._fail(error)
                return
            self._last_sent = time.monotonic()

    def give_up(self, error: PymigrateError) -> None:
        """Raise this in whoever uses the link from now on; to close it stays its owner's."""
        self._fail(error)

    def close(self) -> None:
        """Close the channel and wait for both threads; may be repeated."""
        self._fail(Unreachable(f"the connection to {self.peer} is closed"))
        self.channel.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def __enter__(self) -> Link:
        """Close at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
