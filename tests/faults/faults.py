"""Callbacks that end a run at a chosen moment; the resume tests add them with ``+callbacks.fault={_target_: …}``.

A folder of its own, on PYTHONPATH in the runs that the tests start, as a user's package would be.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
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
        rank: the only one of several ranks that is struck; None strikes each.
    """

    def __init__(self, at: int, moment: Moment = "batch", sends: str | None = None, rank: int | None = None) -> None:
        self.at, self.moment, self.sends = at, moment, sends
        if rank is not None and rank != int(os.environ.get("RANK", "0")):
            self.at = -1
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


class Preempted(pl.Callback):
    """Sends a signal to the process that started this one, and waits until that has asked this one to stop.

    Args:
        at: after so many batches of this process.
        sends: the signal's name.
    """

    def __init__(self, at: int, sends: str) -> None:
        self.left, self.sends = at, signal.Signals[sends]

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.left -= 1
        if self.left == 0:
            asked = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr] - the run's own listener
            os.kill(os.getppid(), self.sends)
            while not asked:
                time.sleep(0.01)


class Witness(pl.Callback):
    """Writes down what a run is doing and when, one line each, so that it can be read what it did when it was killed.

    SIGALRM makes it raise `Boom` in the main thread, wherever that is.

    Args:
        path: the file, which several processes may lengthen.
    """

    def __init__(self, path: str) -> None:
        def burst(number: int, frame: FrameType | None) -> None:
            raise Boom("by SIGALRM")

        signal.signal(signal.SIGALRM, burst)
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._note("begin")

    def _note(self, word: str, number: int = -1) -> None:
        os.write(self._file, f"{time.time():.6f} {word} {number}\n".encode())

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self._note("train", self._batch(trainer))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self._note("trained", self._batch(trainer))

    def _batch(self, trainer: pl.Trainer) -> int:
        """Its number in the whole training, which a resumed run counts on."""
        return trainer.current_epoch * int(trainer.num_training_batches) + trainer.fit_loop.epoch_loop.batch_idx

    def on_validation_start(self, *_: Any, **__: Any) -> None:
        self._note("validate")

    def on_save_checkpoint(self, *_: Any, **__: Any) -> None:
        self._note("save")

    def on_test_start(self, *_: Any, **__: Any) -> None:
        self._note("test")
