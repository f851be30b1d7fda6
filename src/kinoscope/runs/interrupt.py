"""Ctrl-C, SIGTERM and a cluster's warning ask a run to stop; it stops itself, where it can be resumed."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from kinoscope.launch.processes import STOP_SIGNALS

log = logging.getLogger("kinoscope")


class StopRequest:
    """A flag that the signals set and that is read at batch boundaries. A second Ctrl-C aborts at once.

    Use as a context manager around the work. Lightning installs handlers of its own when a fit begins (a SIGTERM would
    then end a validation without saving), so `arm` is called again from inside.

    Args:
        promise: what is said to follow.
    """

    def __init__(self, promise: str = "stopping at the next batch boundary and saving") -> None:
        self.promise = promise
        self.reason: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.reason is not None

    def __enter__(self) -> StopRequest:
        if _in_main_thread():
            self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._before)
        self._before = {}

    def arm(self) -> None:
        """Makes this the handler of all these signals (again)."""
        if _in_main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = name
        again = "; press Ctrl-C again to abort at once" if number == signal.SIGINT else ""
        log.warning("%s: %s%s", name, self.promise, again)


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Inside, all these signals do what Ctrl-C does before a run has begun: nothing is there yet to be saved.

    By default they would end the process with a code of their own, and whoever waits for 75 would not start it again.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    others = [number for number in STOP_SIGNALS if number != signal.SIGINT]
    before = {number: signal.signal(number, interrupt) for number in others} if _in_main_thread() else {}
    try:
        yield
    finally:
        _restore(before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()  # Python refuses handlers elsewhere (as in notebooks)


def _restore(before: dict[signal.Signals, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
