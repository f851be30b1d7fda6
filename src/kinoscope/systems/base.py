"""What every training procedure shares: its clock, its buffered logging, its guard, its spec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal, Self

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from kinoscope.config.suggest import did_you_mean, listed
from kinoscope.contracts import DataSpec
from kinoscope.errors import Refusal
from kinoscope.runs.stopwatch import Stopwatch
from kinoscope.systems.window import Window

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


class System(pl.LightningModule):
    """One training procedure. Subclasses say what a step is; this class says how its terms are logged.

    Args:
        log_every: steps per logging window. Terms are means over a window, read with one device synchronisation.

    Attributes:
        spec: what the data are; set by whoever builds the system, before training or loading.
        latest: the last window's means over all ranks, for the progress bar.
        watch: is told what a step is at; a run puts its own here.
        resumes_mid_epoch: whether a checkpoint from within an epoch is worth taking.
        ddp: whether several devices can train it, each on its share of every batch.
        find_unused_parameters: whether DDP has to search each graph for parameters that took no part in it.
        fsdp: whether its parameters can be sharded over the devices.
    """

    resumes_mid_epoch: ClassVar[bool] = True
    ddp: ClassVar[bool] = True
    find_unused_parameters: ClassVar[bool] = False
    fsdp: ClassVar[bool] = True

    def __init__(self, log_every: int = 20) -> None:
        super().__init__()
        self.window = Window(log_every)
        self.latest: dict[str, float] = {}
        self.spec: DataSpec | None = None
        self.watch = Stopwatch()
        # Normalisation that `freeze_named` keeps in evaluation mode, by name: synchronised ones may take their places.
        self._still: list[str] = []

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.watch.switch("backward")
        super().backward(loss, *args, **kwargs)
        self.watch.switch("optimizer" if self.automatic_optimization else "forward")

    @property
    def entries(self) -> list[tuple[nn.Module, Sequence[str]]]:
        """The networks that are trained, each with the methods that it is called by."""
        return []

    def configure_model(self) -> None:
        """Shards the networks where the strategy is one that shards (FSDP2); Lightning calls it on each rank."""
        if self.device_mesh is not None:
            from kinoscope.systems.sharding import shard

            shard(self, self.device_mesh)

    @property
    def clock(self) -> int:
        """The x-axis of everything this system logs: completed optimizer steps."""
        return self.global_step

    @property
    def between_updates(self) -> bool:
        """Whether the batch that ended completed an optimizer step: no gradient waits that a checkpoint would lose."""
        return not self._accumulates

    @property
    def _accumulates(self) -> bool:
        trainer = self.trainer
        return trainer.accumulate_grad_batches > 1 and trainer.fit_loop.epoch_loop._should_accumulate()

    def take_over(self, accumulate: int, clip: float | None, algorithm: str | None) -> None:
        """Does by itself what the Trainer does for automatic systems alone: accumulating batches, clipping gradients.

        Args:
            accumulate: batches per optimizer step.
            clip: the greatest norm, or value, of a gradient.
            algorithm: "norm" or "value".

        Raises:
            ValueError: a system that cannot, or arguments that make no sense.
        """
        if accumulate != 1 or clip is not None:
            raise ValueError(
                f"{type(self).__name__} has no gradients to accumulate or clip; leave accumulate_grad_batches and "
                "gradient_clip_val out"
            )

    def observe(self, terms: Mapping[str, Tensor], count: int = 1) -> None:
        """Logs scalar training terms of one batch; they reach the loggers as ``train/<name>`` window means.

        Beside them stand the learning rates of the window's last step, as `learning_rates` names them.

        Automatic systems call it before the optimizer has stepped, so their clock is one behind; the batches that
        one optimizer step accumulates are one step here, too. All ranks call it together.

        Args:
            terms: means over the samples of this rank's batch.
            count: how many samples these are, by which ranks are weighted.
        """
        automatic = self.automatic_optimization
        step = self.clock + 1 if automatic else self.clock
        self.window.add(step, terms, count, more=automatic and self._accumulates)
        if self.window.full:
            self._to_loggers({**self._take_window(), **learning_rates(self.trainer.optimizers)}, step)

    def conclude_training(self) -> None:
        """Logs the last window, however few steps it has; all ranks call it together.

        Without learning rates and epoch: both have moved on from those of its steps. And not in the place of a full
        one: several updates of a critic belong to one step.
        """
        if self.window.steps and self.window.steps[-1] > self.window.ended:
            step, means = self.window.steps[-1], self._take_window()
            for logger in self.loggers:
                logger.log_metrics(means, step=step)

    def _take_window(self) -> dict[str, float]:
        with self.watch.during("device"):
            self.latest = self.window.take()
        return {f"train/{name}": value for name, value in self.latest.items()}

    def freeze_named(self, patterns: Sequence[str]) -> None:
        """Keeps parameters as they are: they take no gradient, and no optimizer made from now on has them.

        Normalisation whose parameters are all frozen, or whose statistics a pattern names, stays in evaluation mode.

        Args:
            patterns: of names of parameters and statistics, as ``network.encoder.*``.

        Raises:
            Refusal: a pattern that matches none, or nothing is left to train.
        """
        norms = {name: module for name, module in self.named_modules() if isinstance(module, _NormBase)}
        statistics = {f"{name}.{buffer}": name for name, norm in norms.items() for buffer, _ in norm.named_buffers()}
        parameters = {name: value for name, value in self.named_parameters() if value.requires_grad}
        frozen: set[str] = set()
        for pattern in patterns:
            matched = {name for name in (*parameters, *statistics) if fnmatchcase(name, pattern)}
            if not matched:
                known = [f"{name}.*" for name, module in self.named_modules() if name and trainable(module)]
                hint = did_you_mean(pattern, known) or f"there are: {', '.join(known)}"
                raise Refusal(f"freeze: '{pattern}' matches no parameter of this model; {hint}")
            frozen |= matched
        if patterns and frozen >= parameters.keys():
            raise Refusal(f"freeze: {listed(patterns)} leaves nothing to train")
        for name in frozen & parameters.keys():
            parameters[name].requires_grad_(False)
        named = {statistics[name] for name in frozen & statistics.keys()}
        self._still = [
            name for name, norm in norms.items() if name in named or (list(norm.parameters()) and not trainable(norm))
        ]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name in self._still:
            self.get_submodule(name).eval()
        return self

    def on_validation_epoch_end(self) -> None:
        self.conclude("val")

    def on_test_epoch_end(self) -> None:
        self.conclude("test")

    def conclude(self, stage: Literal["val", "test"]) -> None:
        """Publishes what a finished validation or test has measured, and starts its metrics anew."""
        raise NotImplementedError

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Logs finished metrics (``val/…``, ``test/…``), equal on all ranks, against this system's clock.

        Lightning's own logger route counts batches; here ``self.log`` only feeds callbacks and schedulers.
        """
        if self.trainer.sanity_checking:
            return
        self.log_dict(dict(metrics), logger=False)
        self._to_loggers(metrics, self.clock)

    def _to_loggers(self, metrics: Mapping[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics({**metrics, "epoch": self.current_epoch}, step=step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["window"] = self.window.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "window" in checkpoint:
            self.window.load_state_dict(checkpoint["window"])


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer is given: those that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def learning_rates(optimizers: Iterable[Optimizer]) -> dict[str, float]:
    """``lr-Adam``; of a second Adam ``lr-Adam-1``; of several parameter groups ``lr-Adam/<its name, or pg1>``."""
    rates: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for optimizer in optimizers:
        kind = f"lr-{type(optimizer).__name__}"
        name = f"{kind}-{seen[kind]}" if seen[kind] else kind
        seen[kind] += 1
        groups = optimizer.param_groups
        for number, group in enumerate(groups, start=1):
            own = group.get("name") or (f"pg{number}" if len(groups) > 1 else "")
            rates[f"{name}/{own}" if own else name] = float(group["lr"])
    return rates


def scheduled(
    optimizer: Optimizer,
    scheduler: SchedulerFactory | None,
    interval: Literal["epoch", "step"],
    monitor: str | None,
) -> dict[str, Any]:
    """Lightning's description of one optimizer with its optional learning-rate schedule."""
    if scheduler is None:
        return {"optimizer": optimizer}
    made = scheduler(optimizer)
    if isinstance(made, CosineAnnealingLR) and made.T_max < 1:  # torch would swing the rate up and down
        raise ValueError(f"scheduler.T_max is {made.T_max}, but must be the epochs or steps of the training")
    schedule = {"scheduler": made, "interval": interval}
    if monitor is not None:
        schedule["monitor"] = monitor
    return {"optimizer": optimizer, "lr_scheduler": schedule}
