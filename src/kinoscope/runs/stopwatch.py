"""Where a run's seconds go: at every moment in exactly one phase, so that the parts add up to the whole.

    startup      from the command to the first batch that is asked for
    data         waiting for the loader while nothing else is done
    device       waiting for a CUDA device that is still at work, or meanwhile for the loader
    transfer     to the device, with the preprocessing there, and with what callbacks do before a step
    forward      and all else of a training step that is not named below
    backward
    optimizer
    logging      loggers, pictures, the progress bar and other callbacks
    validation
    test
    checkpoints

It is the host's clock, and it makes no device wait. On CUDA a step's phases are therefore the time to hand its work to
the device; where that has to be waited for, it is the phase ``device``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal[
    "startup",
    "data",
    "device",
    "transfer",
    "forward",
    "backward",
    "optimizer",
    "logging",
    "validation",
    "test",
    "checkpoints",
]
PHASES: tuple[Phase, ...] = get_args(Phase)
STEP: tuple[Phase, ...] = ("data", "device", "transfer", "forward", "backward", "optimizer")

_began = time.perf_counter()


def begin() -> None:
    """A command begins now, and with it the start-up of its run."""
    global _began
    _began = time.perf_counter()


class Stopwatch:
    """Seconds per phase since the command began.

    Attributes:
        seconds: of the phases that have ended.
        phase: the one that runs.
        since: when that began, on the clock of ``time.perf_counter``.
        device_works: whether a device that runs beside the host is still at work; a wait for data then costs nothing.
    """

    def __init__(self) -> None:
        self.seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self.phase: Phase = "startup"
        self.since = _began
        self.device_works: Callable[[], bool] | None = None

    def switch(self, phase: Phase) -> float:
        """The running phase ends and another begins; returns the moment."""
        now = time.perf_counter()
        self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now
        return now

    def fetched(self) -> None:
        """A wait for data ends, and what follows is the batch's way to the device."""
        if self.device_works is not None and self.device_works():
            self.phase = "device"
        self.switch("transfer")

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Another phase inside, and the one before it again afterwards."""
        before = self.phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(before)

    def read(self) -> dict[Phase, float]:
        """Seconds per phase until now."""
        self.switch(self.phase)
        return dict(self.seconds)
