"""A recurrent network of the smallest kind, to see whole videos as sequences."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence


class Recurrent(nn.Module):
    """A GRU over coarse frames: (B, 3, T, H, W), length (B,) → logits (B, K).

    Args:
        num_classes: K.
        grid: frames are averaged to grid × grid.
        hidden: units.
    """

    def __init__(self, num_classes: int, grid: int = 4, hidden: int = 8) -> None:
        super().__init__()
        self.grid = grid
        self.gru = nn.GRU(3 * grid * grid, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        frames = F.adaptive_avg_pool2d(x.transpose(1, 2).flatten(0, 1), self.grid)  # (B·T, 3, g, g)
        series = frames.flatten(1).unflatten(0, (len(x), -1))  # (B, T, 3·g·g)
        packed = pack_padded_sequence(series, length.cpu(), batch_first=True, enforce_sorted=False)
        _, last = self.gru(packed)
        assert isinstance(last, torch.Tensor)
        return self.head(last[-1])
