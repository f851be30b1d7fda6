"""A repair of Lightning's fit loop, without which a run with ``max_steps`` cannot be resumed from an epoch's end."""

from __future__ import annotations

from typing import cast

import lightning.pytorch as pl
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _ProcessedTracker


class ExactFitLoop(_FitLoop):
    """Knows a finished epoch when it loads one, however the end of the training is given.

    Lightning (2.6.6) takes every checkpoint of a run with ``max_steps`` for one from within an epoch. Resumed from an
    epoch's end, such a run would end the same epoch twice: it counts one too many, and skips the data of the next.
    """

    @_FitLoop.restarting.setter
    def restarting(self, restarting: bool) -> None:
        progress = cast(_ProcessedTracker, self.epoch_progress.current)
        unfinished = not progress.ready == progress.started == progress.processed
        _Loop.restarting.fset(self, restarting and unfinished)  # type: ignore[attr-defined]


def repair(trainer: pl.Trainer) -> None:
    """Gives ``trainer`` the repaired loop; it has no state of its own, so the class is all that changes."""
    trainer.fit_loop.__class__ = ExactFitLoop
