"""A weighted mean that hides nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """Sum over count, over all batches and ranks.

    Values are added one by one in float64, so that the mean does not depend on how they were dealt out to batches and
    ranks: float32 values leave 29 bits of room for their sum.

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

    def update(self, values: Tensor) -> None:
        """Adds ``values`` (N,)."""
        self.total += values.detach().double().sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        return self.total / self.count
