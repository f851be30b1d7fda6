"""Ctrl-C and SIGTERM ask a run to stop; it stops itself, where it can be resumed."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger("kinoscope")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """A flag that the signals set and that is read at batch boundaries. A second Ctrl-C aborts at once.

    Use as a context manager around the work. Lightning installs handlers of its own when a fit begins (a SIGTERM would
    then end a validation without saving), so `arm` is called again from inside.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.reason is not None

    def __enter__(self) -> StopRequest:
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python refuses handlers elsewhere (notebooks are fine)
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def arm(self) -> None:
        """Makes this the handler of both signals (again)."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = name
        again = "; press Ctrl-C again to abort without saving" if number == signal.SIGINT else ""
        log.warning("%s: stopping at the next batch boundary and saving%s", name, again)
