"""A weighted mean that hides nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """Sum over count, over all batches and ranks, in float64.

    torchmetrics' own ``MeanMetric`` leaves NaN values out with a warning, and looks for them with one device
    synchronisation per update; here a NaN stays one.
    """

    full_state_update = False

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, count: int) -> None:
        """Adds the ``mean`` () of ``count`` values."""
        self.total += mean.detach().double() * count
        self.count += count

    def compute(self) -> Tensor:
        return self.total / self.count
