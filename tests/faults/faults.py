"""Callbacks that end a run at a chosen moment; the resume tests add them with ``+callbacks.fault={_target_: …}``.

A folder of its own, on PYTHONPATH in the runs that the tests start, as a user's package would be.
"""

from __future__ import annotations

import os
import signal
from typing import Any, Literal

import lightning.pytorch as pl

Moment = Literal["batch", "validation", "test", "save"]


class Boom(RuntimeError):
    """The exception of a test that breaks a run from inside."""


class Fault(pl.Callback):
    """Raises, or sends a signal to its own process group, at the ``at``-th occurrence of a ``moment``.

    Args:
        at: counted from 1 in this process.
        moment: the end of a training batch, a validation batch or a test batch, or the middle of writing a checkpoint.
        sends: the signal's name; None raises `Boom` instead.
    """

    def __init__(self, at: int, moment: Moment = "batch", sends: str | None = None) -> None:
        self.at, self.moment, self.sends = at, moment, sends
        self.seen = 0
        if moment == "save":
            fsync = os.fsync

            def failing(descriptor: int) -> None:
                self._count("save")
                fsync(descriptor)

            os.fsync = failing  # the temporary file is written, not yet renamed

    def _count(self, moment: Moment) -> None:
        if moment != self.moment:
            return
        self.seen += 1
        if self.seen == self.at:
            if self.sends is None:
                raise Boom(f"{moment} {self.at}")
            number = signal.Signals[self.sends]
            # A terminal sends Ctrl-C to the whole group, workers too; a killed process takes nobody along.
            (os.killpg if number == signal.SIGINT else os.kill)(os.getpid(), number)

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self._count("batch")

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._count("validation")

    def on_test_batch_end(self, *_: Any, **__: Any) -> None:
        self._count("test")
