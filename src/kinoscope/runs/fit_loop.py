"""A repair of Lightning's fit loop, without which a run with ``max_steps`` cannot be resumed from an epoch's end."""

from __future__ import annotations

from typing import cast

import lightning.pytorch as pl
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _ProcessedTracker


class ExactFitLoop(_FitLoop):
    """Knows a finished epoch when it loads one, and says when one is finished.

    Lightning (2.6.6) takes every checkpoint of a run with ``max_steps`` for one from within an epoch. Resumed from an
    epoch's end, such a run would end the same epoch twice: it counts one too many, and skips the data of the next.

    Its last hook of an epoch, ``on_train_epoch_end``, comes before plateau schedules are stepped, so that a checkpoint
    taken there loses that step. Callbacks with an ``on_epoch_complete`` are called after it.
    """

    def on_advance_end(self) -> None:
        # Nothing restarts any more: an epoch resumed in its middle would else not step plateau schedules at its end.
        self._restarting = False
        super().on_advance_end()
        for callback in self.trainer.checkpoint_callbacks:
            complete = getattr(callback, "on_epoch_complete", None)
            if complete is not None:
                complete(self.trainer, self.trainer.lightning_module)

    @_FitLoop.restarting.setter
    def restarting(self, restarting: bool) -> None:
        progress = cast(_ProcessedTracker, self.epoch_progress.current)
        unfinished = not progress.ready == progress.started == progress.processed
        _Loop.restarting.fset(self, restarting and unfinished)  # type: ignore[attr-defined] - a property to pyright


def repair(trainer: pl.Trainer) -> None:
    """Gives ``trainer`` the repaired loop; it has no state of its own, so the class is all that changes."""
    trainer.fit_loop.__class__ = ExactFitLoop
