"""Gradient norms and the distribution of weights, now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from kinoscope.callbacks.drawing import hand_over
from kinoscope.errors import Refusal

if TYPE_CHECKING:
    from kinoscope.contracts import Batch


class Histograms(pl.Callback):
    """Logs gradient norms to every logger, and histograms of the weights to those that draw them.

    ``gradients/total`` is the 2-norm of all gradients of a step, before clipping; ``gradients/<module>`` that of the
    parameters a module itself holds. ``weights/<parameter>`` are histograms. On all other steps nothing is computed.

    Args:
        every_n_windows: logging windows (``model.log_every`` steps) between two looks; None never looks.
        bins: of a histogram.
    """

    def __init__(self, every_n_windows: int | None = None, bins: int = 64) -> None:
        if every_n_windows is not None and every_n_windows < 1:
            raise ValueError(f"every_n_windows must be at least 1, got {every_n_windows}")
        if bins < 2:
            raise ValueError(f"bins must be at least 2, got {bins}")
        self.every_n_windows = every_n_windows
        self.bins = bins
        self._norms: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        self._due = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.every_n_windows and isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise Refusal("callbacks.histograms: a sharded model has no whole parameters to look at; leave it out")

    @property
    def idle(self) -> bool:
        """Whether it does nothing, so that its hooks need not be gone through (runs/fit_loop.py)."""
        return self.every_n_windows is None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._names = {id(parameter): name for name, parameter in pl_module.named_parameters()}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._due = trainer.is_global_zero and self._looks_at(pl_module, ahead=1)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Once for each optimizer of a step, with the gradients that it is about to see, unscaled and unclipped."""
        if not self._due:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms = torch._foreach_norm([p.grad for p in parameters])
        self._norms.update({self._names[id(p)]: norm for p, norm in zip(parameters, norms, strict=True)})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        # A batch need not be a step: gradients may be accumulated, and a critic may be trained more often.
        if not self._due or not self._norms or not self._looks_at(pl_module, ahead=0):
            return
        clock = int(cast(Any, pl_module).clock)
        for logger in trainer.loggers:
            logger.log_metrics(gradient_norms(self._norms), step=clock)
        self._norms = {}
        hand_over(trainer, "log_histograms", histograms=histograms(pl_module.named_parameters(), self.bins), step=clock)

    def _looks_at(self, system: pl.LightningModule, ahead: int) -> bool:
        if self.every_n_windows is None:
            return False
        clock, window = cast(Any, system).clock, cast(Any, system).window
        return (clock + ahead) % (self.every_n_windows * window.every) == 0


def gradient_norms(norms: Mapping[str, Tensor]) -> dict[str, float]:
    """``gradients/total`` and ``gradients/<module>`` from the norm (), by name, of each parameter's gradient."""
    squares = torch.stack([norm.double() for norm in norms.values()]).square().tolist()
    of_module: dict[str, float] = {}
    for name, square in zip(norms, squares, strict=True):
        module = name.rpartition(".")[0] or name
        of_module[module] = of_module.get(module, 0.0) + square
    return {f"gradients/{name}": square**0.5 for name, square in {"total": sum(squares), **of_module}.items()}


@torch.no_grad()
def histograms(
    parameters: Iterable[tuple[str, nn.Parameter]], bins: int
) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """``weights/<parameter>`` → counts (bins,) and edges (bins + 1,), from the least to the greatest finite weight."""
    return {f"weights/{name}": _histogram(parameter.detach().flatten().float(), bins) for name, parameter in parameters}


def _histogram(values: Tensor, bins: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    values = values[torch.isfinite(values)]
    if not len(values):
        return np.zeros(bins, dtype=np.int64), np.linspace(0, 1, bins + 1)
    low, high = (float(bound) for bound in values.aminmax())
    if low == high:
        low, high = low - 0.5, high + 0.5
    # Counted on the device. torch.histc would do, but is refused where results must be deterministic.
    bin_of = ((values - low) * (bins / (high - low))).long().clamp_(0, bins - 1)
    return torch.bincount(bin_of, minlength=bins).cpu().numpy(), np.linspace(low, high, bins + 1)
