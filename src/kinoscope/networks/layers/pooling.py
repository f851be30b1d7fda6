"""Max pooling in space and time whose gradient is the same each time, on a GPU too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaxPool3d(nn.MaxPool3d):
    """Max pooling over windows that lie side by side, (B, C, T, H, W) → (B, C, T', H', W').

    CUDA adds up the gradient of torch's three-dimensional pooling in whatever order its threads come, and
    ``deterministic=true`` refuses it. A maximum can be taken over each frame first and then over time, by
    two-dimensional poolings, of which CUDA gathers the gradient. Values and gradients are the same to the bit, also
    where several elements of a window are equal: both take the first. On a CPU nothing is gained.

    Args:
        kernel_size: (time, height, width) of a window, which is the stride, too.
        ceil_mode: whether windows that reach beyond the end count.
    """

    def __init__(self, kernel_size: Sequence[int], ceil_mode: bool = False) -> None:
        super().__init__(tuple(kernel_size), ceil_mode=ceil_mode)
        self.window = tuple(kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        return self.by_planes(input) if input.is_cuda else F.max_pool3d(input, self.window, ceil_mode=self.ceil_mode)

    def by_planes(self, x: Tensor) -> Tensor:
        """The same, by two-dimensional poolings."""
        time, height, width = self.window
        frames = x.shape[2]
        # Frames become channels, or samples where channels lie last in memory: neither moves a pixel.
        last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
        planes = x.transpose(1, 2).flatten(0, 1) if last else x.flatten(1, 2)
        planes = F.max_pool2d(planes, (height, width), ceil_mode=self.ceil_mode)
        x = planes.unflatten(0, (-1, frames)).transpose(1, 2) if last else planes.unflatten(1, (-1, frames))
        if time == 1:
            return x
        return F.max_pool2d(x.flatten(3), (time, 1), ceil_mode=self.ceil_mode).unflatten(3, x.shape[3:])
