"""Whether to compress what goes by a link, and how much: from what became of the last. Pure.

Where sending is the bottleneck, compression is tried, and kept if more pages arrive by it than
before: on a fast link, or where the CPUs are busy, fewer do. A limit is a slow link. On a link that
may be a fast one, whose beginning was slow, it is tried later and given up now and then. One that
is slow from its first bytes is tried at once, and given up as soon as the link carries more than it
was taken for.

The slower the link the more CPU time is spent on each byte, until the link has to wait for that.
"""

from __future__ import annotations

from collections import deque

LEVEL = 1  # zstd's; on a process's memory some 400 MB/s for a thread
SAMPLES = 64  # batches, of which the last are looked at
BUSY = 0.5  # part of the batches that had to wait for the link, above which they are compressed
IDLE = 0.1  # and below which they are not
LATE = 0.5  # part of the batches that the link had to wait for, above which the level is too much
SOME = 16  # batches, of which that is seen
CALM = 4  # times in turn that hardly any was late, after which more is tried again
SURELY = 150e6  # bytes a second; on a slower link zstd gains far more than looking again costs
WORTHWHILE = (
    200e6  # bytes a second; on a faster link zstd, beside the rest of the work, gains nothing
)
LEVELS = (  # bytes a second that a link carries, and the level on one that is slower
    (20e6, 6),  # 115 MB/s, 3.5 % less than by LEVEL; 9 would be 4.2 % at 65 MB/s
    (60e6, 3),  # 340 MB/s, 1.6 % less; at 1 Gbit/s two processors for both hosts are too few for it
)
HIGHEST = max(level for _, level in LEVELS)
MORE = 1.3  # times what a link was taken for in its beginning: then it was not the link
AGAIN = 3  # times in turn that it carries that; after a pause a burst comes once
TRIAL = 24  # batches taken, after which it is seen what compression gave
GAIN = 1.1  # times as many pages as before, at least, or it is given up
REST = 512  # batches until it is tried again


class Compressing:
    """Chooses zstd's level for the batches of one conversation."""

    def __init__(self, limit: float | None = None) -> None:
        """Begin with what is known: that no more than ``limit`` bytes a second may go, or nothing.

        With a limit the wait is ours, before the link, and says nothing of it.
        """
        self._limited = limit is not None and limit < WORTHWHILE
        self._rate = limit if limit is not None and self._limited else 0.0
        self._is_certain = False
        self._most = HIGHEST
        self.level: int | None = self._fitting() if self._limited else None
        self._blocked: deque[bool] = deque(maxlen=SAMPLES)
        self._late: list[bool] = []
        self._calm = 0
        self._began: tuple[float, int] | None = None  # a time, and what was taken by then
        self._taken = 0
        self._trial: float | None = None  # the rate of pages before it
        self._since_change = 0  # batches taken
        self._resting = 0
        self._look_again = False  # whether it is still better, after a while of compressing
        self._taken_for: float | None = None  # what the link was, when its beginning was judged
        self._may_be_early = True  # once: judge by the beginning
        self._more = 0  # times in turn that the link carried more than that

    def waits(self, now: float, *, blocked: bool) -> None:
        """Note whether the next batch has to wait until others went; choose whether to compress."""
        if self._limited:
            return
        self._blocked.append(blocked)
        part = sum(self._blocked) / len(self._blocked)
        if self.level is None:
            if self._is_slow and part > BUSY:
                self._try(now)
        elif len(self._blocked) == SAMPLES and part < IDLE:
            self._change(None)
            self._trial = self._taken_for = None

    def goes(self, *, late: bool) -> None:
        """Note that a batch goes; ``late`` says that the link was free before it was compressed."""
        if self.level is None:
            return
        self._late.append(late)
        if len(self._late) < SOME:
            return
        count = sum(self._late)
        self._late.clear()
        self._calm = self._calm + 1 if count <= 1 else 0
        if self._calm == CALM:
            self._most, self._calm = HIGHEST, 0
            self.level = self._fitting()
        elif count > LATE * SOME and self.level > LEVEL:
            self._most = self.level = LEVEL
        elif count > LATE * SOME and self._taken_for is not None:
            self._give_up_early()

    def taken(self, batches: int, total: int, now: float) -> None:
        """Note that so many more batches were taken, and how many bytes of all; end trials."""
        self._since_change += batches
        self._resting = max(0, self._resting - batches)
        self._taken = total
        if self._began is None:
            self._began = now, total
        elif self.level is None and self._since_change >= SAMPLES:
            # What came long ago, such as a slow beginning, says nothing of the rate to be beaten.
            self._began = now, total
            self._since_change = 0
        elif self._look_again and self._trial is None and self._since_change >= REST:
            self._change(None)
        elif self._trial is not None and self._since_change >= TRIAL:
            has_failed = self._pages_rate(now) < GAIN * self._trial
            self._trial = None
            if has_failed and self._taken_for is not None:
                self._give_up_early()  # the CPUs may have been busy with the beginning
            elif has_failed:
                self._change(None)
                self._resting = REST
        elif self._is_certain and self._since_change >= SAMPLES:
            self._taken_for = None  # it was right

    def carries(self, rate: float, lately: float, *, is_certain: bool) -> None:
        """Note how many bytes a second arrive; that is not certain while both sides begin.

        ``lately`` is of the last moment alone: what had to wait and comes at once counts in that.
        """
        if self._limited:
            return
        self._rate, self._is_certain = rate, is_certain
        is_more = self._taken_for is not None and lately > MORE * self._taken_for
        self._more = self._more + 1 if is_more else 0
        if self._more == AGAIN:
            self._give_up_early()
        elif self.level is not None and self._trial is None:
            self.level = self._fitting()

    def resumes(self) -> None:
        """Note that nothing was to be sent for a while: that time says nothing of any rate."""
        self._began = None
        self._since_change = 0

    @property
    def _is_slow(self) -> bool:
        """Whether enough is known of the link to try."""
        if self._resting or not self._rate:
            return False
        if self._is_certain:
            slowest, enough = WORTHWHILE, SAMPLES // 4 if self._rate < SURELY else SAMPLES
        elif self._may_be_early:
            slowest, enough = SURELY, SAMPLES // 8
        else:
            return False
        return self._rate < slowest and len(self._blocked) >= enough

    def _try(self, now: float) -> None:
        self._look_again = self._rate >= SURELY
        self._taken_for = None if self._is_certain else self._rate
        self._trial = self._pages_rate(now) or self._rate
        self._change(self._fitting())

    def _give_up_early(self) -> None:
        """Judge again, when more is known of the link."""
        self._change(None)
        self._trial = self._taken_for = None
        self._may_be_early = False

    def _fitting(self) -> int:
        """Return the level for a link that is so slow, by what is known of our CPUs."""
        fitting = next((level for bound, level in LEVELS if self._rate < bound), LEVEL)
        return min(fitting, self._most)

    def _change(self, level: int | None) -> None:
        self.level = level
        self._blocked.clear()
        self._late.clear()
        self._began = None
        self._since_change = 0

    def _pages_rate(self, now: float) -> float:
        """Return how many bytes of batches were taken in a second since the last change."""
        if self._began is None or now <= self._began[0]:
            return 0.0
        return (self._taken - self._began[1]) / (now - self._began[0])
