"""A time limit for one sample, which really ends the decoder that exceeds it.

A decoder can spin for ever inside native code, with or without Python's lock, where no exception and no thread reaches
it. So a worker sets an alarm for each sample, and the kernel ends the whole worker when it rings: SIGALRM is left at
its default action. Which sample a worker reads stands in memory that it shares with its parent, who names the file and
starts workers anew (`KeyedLoader`). The clock also runs while the process is suspended or its disk does not answer, so
only a sample that exceeds the limit twice is remembered as lost.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kinoscope.errors import DecodeError

NOTHING = -1
STARTING = -2  # what stands in the shared array until a worker has begun
_note: tuple[Any, int] | None = None  # in a worker: the shared array of samples being read, and its own place in it


def start(reading: Any, worker: int) -> None:
    """In a worker: from now on, samples are noted and timed.

    Args:
        reading: shared array with one number per worker.
        worker: this one's place in it.
    """
    global _note
    _note = reading, worker
    reading[worker] = NOTHING
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@contextmanager
def paused() -> Iterator[None]:
    """Inside, the time of a sample stands still: what is waited for is no fault of its file."""
    if _note is None:
        yield
        return
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


class Watchdog:
    """What a data set keeps beside its samples so that one of them cannot stop a run.

    Args:
        limit: seconds for one sample; None: no limit, but a sample that crashes its worker is still named.

    Attributes:
        late: indices of samples that have exceeded the limit once.
        lost: index of a sample → why it cannot be read, one sentence.
    """

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit
        self.late: set[int] = set()
        self.lost: dict[int, str] = {}

    @contextmanager
    def over(self, index: int) -> Iterator[None]:
        """Around the reading of sample ``index``. Raises `DecodeError` at once where it is known to be lost."""
        if index in self.lost:
            raise DecodeError(self.lost[index])
        if _note is None:  # not in a worker
            yield
            return
        reading, worker = _note
        reading[worker] = index
        signal.setitimer(signal.ITIMER_REAL, self.limit or 0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            reading[worker] = NOTHING
