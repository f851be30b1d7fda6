"""Looking at a part of every clip in a batch: each sample has a box of its own, and no sample its own Python.

Shape legend: B batch, H height, W width, S side of the result; … stands for channels and frames.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kinoscope.data.preprocess import mirror


class Place(NamedTuple):
    """Where a batch looks: what frames and flow of a sample share.

    Attributes:
        boxes: (B, 4) int64: top, left, height, width; None: everything, which is S × S.
        size: S, the side of the result.
        resized: whether boxes may be of another size than S × S.
        mirrored: (B,) bool, or None where nothing is.
    """

    boxes: Tensor | None
    size: int
    resized: bool
    mirrored: Tensor | None = None

    def frames(self, x: Tensor) -> Tensor:
        """(B, …, H, W) → (B, …, S, S) in memory of its own: of the same type, or float32 where it is resized."""
        if self.boxes is not None and self.resized:
            return zoom(x, self.boxes, self.size, self.mirrored)
        x = x if self.boxes is None else cut(x, self.boxes[:, 0], self.boxes[:, 1], self.size)
        return x if self.mirrored is None else mirror(x, self.mirrored)

    def flow(self, x: Tensor) -> Tensor:
        """Likewise of flow (B, 2L, [T,] H, W), x and y in turn: a mirror image moves the other way, so x changes sign.

        Displacements stay in pixels of the frames they were computed in, also where the box is resized.
        """
        if not x.is_floating_point():
            raise TypeError(f"flow is mirrored as displacements, in floating point, not as stored ({x.dtype})")
        x = self.frames(x)
        if self.mirrored is not None:
            x[:, ::2] *= (1 - 2 * self.mirrored.to(x.dtype)).view(-1, *[1] * (x.ndim - 1))
        return x


def cut(x: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Windows of one size, a place per sample: (B, …, H, W) and (B,) int64, (B,) int64 → (B, …, S, S)."""
    height, width = x.shape[-2:]
    planes = x[0].numel() // (height * width)
    # Whole rows of a window lie together in memory, so it is their copy that is asked for.
    row = top[:, None] + torch.arange(size, device=x.device)  # (B, S)
    plane = torch.arange(len(x) * planes, device=x.device).view(-1, planes, 1) * height
    starts = (plane + row[:, None, :]) * width + left.view(-1, 1, 1)  # (B, planes, S)
    windows = x.reshape(-1).unfold(0, size, 1)  # (B·planes·H·W − S + 1, S), no copy
    return windows.index_select(0, starts.flatten()).view(*x.shape[:-2], size, size)


def zoom(x: Tensor, boxes: Tensor, size: int, mirrored: Tensor | None = None) -> Tensor:
    """Each sample's box, resized to S × S: bilinear, pixel centres half a pixel from the edge, nothing from outside.

    Frames should come at little more than the network's resolution (``data.resize``): there is no antialiasing.

    Args:
        x: (B, …, H, W).
        boxes: (B, 4) int64: top, left, height, width.
        size: S.
        mirrored: (B,) bool; None mirrors nothing.

    Returns:
        (B, …, S, S) float32.
    """
    boxes = exact(boxes)
    step = (torch.arange(size, device=x.device, dtype=boxes.dtype) + 0.5) / size
    steps = [step.expand(len(x), -1)] * 2
    if mirrored is not None:
        steps[1] = torch.where(mirrored[:, None], step.flip(0), step)
    axes = []
    for axis, side in enumerate(x.shape[-2:]):
        start, length = boxes[:, axis, None], boxes[:, 2 + axis, None]
        place = start + torch.minimum((steps[axis] * length - 0.5).clamp(min=0), length - 1)  # (B, S), in pixels
        axes.append((2 * place / max(side - 1, 1) - 1).float())  # the first pixel's centre is −1, the last one's 1
    rows, columns = torch.broadcast_tensors(axes[0][:, :, None], axes[1][:, None, :])
    planes = x.reshape(len(x), -1, *x.shape[-2:]).float()
    out = F.grid_sample(planes, torch.stack([columns, rows], dim=-1), padding_mode="border", align_corners=True)
    return out.view(*x.shape[:-2], size, size)


def exact(x: Tensor) -> Tensor:
    """For positions: in float64, so that no two devices round to different pixels. Apple's GPUs do not have it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def pick(draw: Tensor, n: int | Tensor) -> Tensor:
    """A draw (B,) in [0, 1) → one of 0 … n−1, (B,) int64."""
    # A float32 draw can have been rounded to 1.0, hence the limit.
    return (draw * n).long().clamp(max=n - 1)
