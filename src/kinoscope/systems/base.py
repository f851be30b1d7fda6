"""What every training procedure shares: its clock, its buffered logging, its guard, its spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from kinoscope.contracts import DataSpec
from kinoscope.systems.window import Window

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


class System(pl.LightningModule):
    """One training procedure. Subclasses say what a step is; this class says how its terms are logged.

    Args:
        log_every: steps per logging window. Terms are means over a window, read with one device synchronisation.

    Attributes:
        spec: what the data are; set by whoever builds the system, before training or loading.
        latest: the last window's means, for the progress bar.
    """

    resumes_mid_epoch: ClassVar[bool] = True

    def __init__(self, log_every: int = 20) -> None:
        super().__init__()
        self.window = Window(log_every)
        self.latest: dict[str, float] = {}
        self.spec: DataSpec | None = None

    @property
    def clock(self) -> int:
        """The x-axis of everything this system logs: completed optimizer steps."""
        return self.global_step

    def observe(self, terms: Mapping[str, Tensor]) -> None:
        """Logs scalar training terms of one step; they reach the loggers as ``train/<name>`` window means.

        Automatic systems call it before the optimizer has stepped, so their clock is one behind.
        """
        step = self.clock + 1 if self.automatic_optimization else self.clock
        self.window.add(step, terms)
        if self.window.full:
            self.latest = self.window.take()
            self._to_loggers({f"train/{name}": value for name, value in self.latest.items()}, step)

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
