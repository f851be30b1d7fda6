"""Lightning's fit loop: repaired, timed, and relieved of what it does at every step for nobody.

The repair: without it, a run with ``max_steps`` cannot be resumed from an epoch's end. The relief: a step of a few
milliseconds spends a tenth of them in empty hooks, in the brackets of a profiler that does not profile, and in asking
anew at every step what does not change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
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
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.trainer.states import RunningStage
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
    batch's number, and goes through classes for whether they can validate; here both are asked once an epoch. And where
    there are several ranks it asks the first one whether it has received SIGTERM, which makes the host wait for the
    device; the ranks of a run agree about that among themselves (agreement.py).
    """

    watch: Stopwatch
    _numbered = True
    _validates: bool | None = None  # in this epoch; None outside of one

    def run(self, data_fetcher: Any) -> None:
        self._validates = super()._should_check_val_epoch()
        try:
            super().run(data_fetcher)
        finally:
            self._validates = None

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        step = self.trainer.lightning_module.training_step
        self._numbered = is_param_in_hook_signature(step, "batch_idx", min_args=2)  # by any name

    def _should_check_val_epoch(self) -> bool:
        return super()._should_check_val_epoch() if self._validates is None else self._validates

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

    @_EvaluationLoop.restarting.setter
    def restarting(self, restarting: bool) -> None:
        """At every training step; has no loops within, which Lightning's would look for."""
        self._restarting = restarting

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
        results = self._results
        if results:
            super().on_batch_end()
        elif results is not None:
            results.batch = results.batch_size = None

    def update_train_step_metrics(self) -> None:
        if self._results:
            super().update_train_step_metrics()

    @property
    def _results(self) -> _ResultCollection | None:
        """What the loop that runs has been given; Lightning compares the names of stages to find that loop."""
        training = self.trainer.state.stage is RunningStage.TRAINING
        return self.trainer.fit_loop.epoch_loop._results if training else self.trainer._results


@contextmanager
def without_empty_hooks(trainer: pl.Trainer, callbacks: Sequence[pl.Callback]) -> Iterator[None]:
    """Inside, ``trainer`` takes a step's hooks to those alone who have filled them, and looks for them but once.

    Lightning's loops, plugins and strategies all call hooks through three functions, which are stood in for here. A
    callback that was told to do nothing says so by an attribute ``idle``. Where a profiler measures, all that is called
    at all is called by Lightning.
    """
    originals = call._call_callback_hooks, call._call_lightning_module_hook, call._call_strategy_hook
    to_callbacks, to_module, to_strategy = originals
    listening = [callback for callback in callbacks if not getattr(callback, "idle", False)]
    filled = {name: [callback for callback in listening if fills(callback, name)] for name in EMPTY_HOOKS}
    module, state = trainer.lightning_module, vars(trainer.lightning_module)
    empty = {name for name in EMPTY_HOOKS if not fills(module, name)}
    profiled = not isinstance(trainer.profiler, Unprofiled)  # pyright: ignore[reportAttributeAccessIssue]
    selector: Any = trainer._data_connector._datahook_selector  # of this fit: who has the hooks of a batch's way
    if selector is not None:
        selector.get_instance = cache(selector.get_instance)

    def tell_callbacks(caller: pl.Trainer, hook_name: str, *args: Any, **kwargs: Any) -> None:
        told = filled.get(hook_name)
        if told is None or caller is not trainer or (told and profiled):
            to_callbacks(caller, hook_name, *args, **kwargs)
        elif told:
            outer, state["_current_fx_name"] = state["_current_fx_name"], hook_name
            for callback in told:
                getattr(callback, hook_name)(trainer, module, *args, **kwargs)
            state["_current_fx_name"] = outer

    def tell_module(caller: pl.Trainer, hook_name: str, *args: Any, **kwargs: Any) -> Any:
        if hook_name in empty and caller is trainer:
            return None
        if profiled or caller is not trainer or "pl_module" in kwargs:
            return to_module(caller, hook_name, *args, **kwargs)
        return tell(module, hook_name, args, kwargs)

    def tell_strategy(caller: pl.Trainer, hook_name: str, *args: Any, **kwargs: Any) -> Any:
        if profiled or caller is not trainer:
            return to_strategy(caller, hook_name, *args, **kwargs)
        return tell(trainer.strategy, hook_name, args, kwargs)

    def tell(listener: Any, hook_name: str, args: Any, kwargs: Any) -> Any:
        outer, state["_current_fx_name"] = state["_current_fx_name"], hook_name
        output = getattr(listener, hook_name)(*args, **kwargs)
        state["_current_fx_name"] = outer
        return output

    call._call_callback_hooks, call._call_lightning_module_hook = tell_callbacks, tell_module
    call._call_strategy_hook = tell_strategy
    try:
        yield
    finally:
        call._call_callback_hooks, call._call_lightning_module_hook, call._call_strategy_hook = originals


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
