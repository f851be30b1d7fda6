"""Lightning's fit loop: repaired, timed, and relieved of what it does at every step for nobody.

The repair: without it, a run with ``max_steps`` cannot be resumed from an epoch's end. The relief: a step of a few
milliseconds spends a tenth of them in empty hooks and in the brackets of a profiler that does not profile.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from kinoscope.runs.stopwatch import Stopwatch
from kinoscope.systems.base import System

EMPTY_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)  # of a step; Lightning's own versions of them, in callbacks and modules, do nothing


class ExactFitLoop(_FitLoop):
    """Knows a finished epoch when it loads one, and says when one is finished.

    Lightning (2.6.6) takes every checkpoint of a run with ``max_steps`` for one from within an epoch. Resumed from an
    epoch's end, such a run would end the same epoch twice: it counts one too many, and skips the data of the next.

    Its last hook of an epoch, ``on_train_epoch_end``, comes before plateau schedules are stepped, so that a checkpoint
    taken there loses that step. Callbacks with an ``on_epoch_complete`` are called after it.
    """

    def run(self) -> None:
        with without_empty_hooks(self.trainer, self._callbacks()):
            super().run()

    def on_advance_end(self) -> None:
        # Nothing restarts any more: an epoch resumed in its middle would else not step plateau schedules at its end.
        self._restarting = False
        super().on_advance_end()
        for callback in self._callbacks():
            complete = getattr(callback, "on_epoch_complete", None)
            if complete is not None:
                complete(self.trainer, self.trainer.lightning_module)

    @property
    def _can_stop_early(self) -> bool:
        """Nor is a stop that a callback asks for taken up within an update: no checkpoint holds its gradients."""
        return super()._can_stop_early and cast(System, self.trainer.lightning_module).between_updates

    def _callbacks(self) -> list[pl.Callback]:
        return self.trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set at run time

    @_FitLoop.restarting.setter
    def restarting(self, restarting: bool) -> None:
        progress = cast(_ProcessedTracker, self.epoch_progress.current)
        unfinished = not progress.ready == progress.started == progress.processed
        _Loop.restarting.fset(self, restarting and unfinished)  # type: ignore[attr-defined] - a property to pyright


class TimedEpochLoop(_TrainingEpochLoop):
    """Tells a stopwatch where a batch is, and leaves out some of Lightning's doings at every step.

    It looks after schedules where there are none. It asks the signature of ``training_step`` whether it wants the
    batch's number; here it is asked once an epoch. And where there are several ranks it asks the first one whether it
    has received SIGTERM, which makes the host wait for the device; the ranks of a run agree about that among themselves
    (agreement.py).
    """

    watch: Stopwatch
    _numbered = True

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        step = self.trainer.lightning_module.training_step
        self._numbered = is_param_in_hook_signature(step, "batch_idx", min_args=2)  # by any name

    def _build_kwargs(self, kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int) -> OrderedDict[str, Any]:
        self.watch.switch("forward")
        kwargs["batch"] = batch
        if self._numbered:
            kwargs["batch_idx"] = batch_idx
        return kwargs

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing."""

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        if self.trainer.lr_scheduler_configs:  # first of all
            super().update_lr_schedulers(interval, update_plateau_schedulers)

    def _on_before_fetch(self) -> None:
        self.watch.switch("data")
        super()._on_before_fetch()

    def _on_after_fetch(self) -> None:
        super()._on_after_fetch()
        self.watch.fetched()


class TimedEvaluationLoop(_EvaluationLoop):
    """Tells a stopwatch when it runs, its loaders' start included."""

    watch: Stopwatch

    def run(self) -> Any:
        with self.watch.during("test" if self.trainer.testing else "validation"):
            return super().run()


class Unprofiled(PassThroughProfiler):
    """Measures nothing, as the one it replaces, but without a generator at each of a step's thirty brackets."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[Any]:  # type: ignore[override] - never a generator
        return self._nothing


class QuietConnector(_LoggerConnector):
    """Goes through what ``self.log`` was given in a step, if it was given anything."""

    def on_batch_end(self) -> None:
        results = self.trainer._results
        if results:
            super().on_batch_end()
        elif results is not None:
            results.batch = results.batch_size = None

    def update_train_step_metrics(self) -> None:
        if self.trainer._results:
            super().update_train_step_metrics()


@contextmanager
def without_empty_hooks(trainer: pl.Trainer, callbacks: Sequence[pl.Callback]) -> Iterator[None]:
    """Inside, ``trainer`` does not go through the hooks of a step that nobody has filled.

    Lightning's loops, plugins and strategies all call hooks through two functions, which are stood in for here. A
    callback that was told to do nothing says so by an attribute ``idle``.
    """
    to_callbacks, to_module = call._call_callback_hooks, call._call_lightning_module_hook
    listening = [callback for callback in callbacks if not getattr(callback, "idle", False)]
    unheard = {name for name in EMPTY_HOOKS if not any(fills(callback, name) for callback in listening)}
    empty = {name for name in EMPTY_HOOKS if not fills(trainer.lightning_module, name)}

    def tell_callbacks(caller: pl.Trainer, hook_name: str, *args: Any, **kwargs: Any) -> None:
        if hook_name not in unheard or caller is not trainer:
            to_callbacks(caller, hook_name, *args, **kwargs)

    def tell_module(caller: pl.Trainer, hook_name: str, *args: Any, **kwargs: Any) -> Any:
        if hook_name not in empty or caller is not trainer:
            return to_module(caller, hook_name, *args, **kwargs)
        return None

    call._call_callback_hooks, call._call_lightning_module_hook = tell_callbacks, tell_module
    try:
        yield
    finally:
        call._call_callback_hooks, call._call_lightning_module_hook = to_callbacks, to_module


def fills(listener: pl.Callback | pl.LightningModule, hook_name: str) -> bool:
    """Whether a callback or module has a hook of its own."""
    base = pl.Callback if isinstance(listener, pl.Callback) else pl.LightningModule
    return hook_name in vars(listener) or getattr(type(listener), hook_name) is not getattr(base, hook_name)


def repair(trainer: pl.Trainer) -> Stopwatch:
    """Gives ``trainer`` the repaired and timed loops, which have no state of their own, so that a class is all.

    Returns:
        what measures them.
    """
    fit: Any = trainer.fit_loop
    watch = Stopwatch()
    fit.__class__ = ExactFitLoop
    fit.epoch_loop.__class__ = TimedEpochLoop
    fit.epoch_loop.watch = watch
    loops: list[Any] = [fit.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop]
    for loop in loops:
        loop.__class__ = TimedEvaluationLoop
        loop.watch = watch
    trainer._logger_connector.__class__ = QuietConnector
    if type(trainer.profiler) is PassThroughProfiler:  # pyright: ignore[reportAttributeAccessIssue] - set at run time
        trainer.profiler = Unprofiled()  # pyright: ignore[reportAttributeAccessIssue]
    return watch


def stopwatch(trainer: pl.Trainer) -> Stopwatch:
    """What measures ``trainer``; one that nobody reads if it was not repaired."""
    return getattr(trainer.fit_loop.epoch_loop, "watch", None) or Stopwatch()
