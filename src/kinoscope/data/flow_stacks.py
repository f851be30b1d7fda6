"""Stacks of optical flow as a network's input (Simonyan and Zisserman, "Two-Stream Convolutional Networks for Action
Recognition in Videos", NIPS 2014, arXiv:1406.2199, §3).

L fields make 2L channels, x and y in turn: x₁, y₁, x₂, y₂ … A stack that begins at frame τ sees frames τ … τ + L:

    plain           channels 2k − 1 and 2k at pixel p: d_{τ+k−1}(p), what passes by at one place
    trajectory      d_{τ+k−1}(p_k) with p₁ = p and p_k = p_{k−1} + d_{τ+k−2}(p_{k−1}): what one point does
    bidirectional   from the middle frame m = τ + L/2, L/2 plain fields forward in time (m → m + 1, …), then L/2
                    backward (m → m − 1, m − 1 → m − 2, …)

Of each field its mean vector is subtracted, which a moving camera adds (§3.1, "mean flow subtraction").

Departs:
    - The paper does not say how it samples between pixels, nor what lies outside the frame: here bilinearly, and the
      nearest pixel of the border. Mean vectors are subtracted after stacking, so that each channel's mean is zero.
    - Displacements reach the network in pixels of the resized frames, not as bytes.

Shape legend: B batch, L fields, H height, W width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kinoscope.data.flow import METHODS, STEPS, STILL, FlowMethod, FlowSource, encode

Stacking = Literal["plain", "trajectory", "bidirectional"]


class FlowStacks:
    """What a data set does with flow: how it is computed, kept and stacked.

    Args:
        method: computes it: Farneback, DIS or TVL1 of kinoscope.data.flow.
        length: L, fields per stack.
        stacking: plain, trajectory or bidirectional; the last needs an even length.
        subtract_mean: of each field, its mean vector.
        bound: largest displacement that can be stored, in pixels of the resized frames; null: each field's own.
    """

    def __init__(
        self,
        method: FlowMethod,
        length: int = 10,
        stacking: Stacking = "plain",
        subtract_mean: bool = True,
        bound: float | None = None,
    ) -> None:
        faults = [f"data.flow.length must be at least 1, got {length}"] if length < 1 else []
        if stacking not in ("plain", "trajectory", "bidirectional"):
            faults.append(f"data.flow.stacking is plain, trajectory or bidirectional, got {stacking}")
        if stacking == "bidirectional" and length % 2:
            faults.append(
                f"data.flow.stacking=bidirectional looks as far back as ahead: length must be even, not {length}"
            )
        if bound is not None and bound <= 0:
            faults.append(f"data.flow.bound is in pixels, above 0, or null, got {bound}")
        if not isinstance(method, tuple(METHODS.values())):
            names = ", ".join(known.__name__ for known in METHODS.values())
            faults.append(f"data.flow.method is one of {names} of kinoscope.data.flow, got {type(method).__name__}")
        elif unusable := method.unusable():
            faults.append(unusable)
        if faults:
            raise ValueError("; ".join(faults))
        self.method, self.length, self.stacking = method, length, stacking
        self.subtract_mean, self.bound = subtract_mean, bound

    @property
    def needed(self) -> int:
        """Frames that a stack is made from."""
        return self.length + 1

    @property
    def backward(self) -> bool:
        """Whether flow is needed in both directions."""
        return self.stacking == "bidirectional"

    def parameters(self, resize: int | tuple[int, int] | None) -> dict[str, Any]:
        """Of the keeper, see `kinoscope.data.keeping.keeper`."""
        settings: Any = self.method
        return {"kind": "flow", "method": self.method.name, "settings": asdict(settings), "resize": resize,
                "bound": self.bound, "backward": self.backward}  # fmt: skip

    def fields(self, first: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of stacks that begin at ``first`` (…): the pairs of frames, and which are seen backward, (…, L) both."""
        step = np.arange(self.length)
        half = self.length // 2
        if self.backward:
            step = np.where(step < half, step + half, self.length - 1 - step)
        pairs = np.asarray(first, np.int64)[..., None] + step
        return pairs, np.broadcast_to(self.backward & (np.arange(self.length) >= half), pairs.shape)

    def read(self, source: FlowSource, row: int, first: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """A video's stacks that begin at ``first`` (k,), as stored: bytes (k, L, 2, H, W), bounds (k, L).

        Raises:
            DecodeError: the kept flow cannot be read.
        """
        pairs, backward = self.fields(first)
        planes, bounds = source.read(row, pairs.ravel(), backward.ravel())
        stored = torch.from_numpy(planes), torch.from_numpy(bounds.astype(np.float32))
        return stored[0].unflatten(0, pairs.shape), stored[1].unflatten(0, pairs.shape)

    def computed(self, frames: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """The stack of L + 1 grey frames (L + 1, H, W), as it would be stored: bytes (L, 2, H, W), bounds (L,)."""
        found = []
        for pair, back in zip(*self.fields(np.asarray(0)), strict=True):
            first, second = frames[pair], frames[pair + 1]
            field = self.method(second, first) if back else self.method(first, second)
            found.append(encode(field, self.bound))
        planes, bounds = zip(*found, strict=True)
        return torch.from_numpy(np.stack(planes)), torch.tensor(bounds, dtype=torch.float32)

    def __call__(self, stored: Tensor, bounds: Tensor) -> Tensor:
        """Bytes (…, L, 2, H, W) with bounds (…, L) → the network's input (…, 2L, H, W) float32, in pixels."""
        several = stored.shape[:-4]
        stored, bounds = stored.flatten(0, len(several) - 1), bounds.flatten(0, len(several) - 1)
        flow = (stored.float() - STILL) * (bounds / STEPS)[..., None, None, None]
        if self.stacking == "trajectory":
            flow = along_trajectories(flow)
        flow = flow.flatten(1, 2).unflatten(0, several)  # (…, 2L, H, W): x₁, y₁, x₂, y₂ …
        return without_mean(flow) if self.subtract_mean else flow


@dataclass(frozen=True)
class FlowReader:
    """The stacks of a data set's videos, as kept."""

    stacks: FlowStacks
    source: FlowSource

    def __call__(self, row: int, first: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Of one video, see `FlowStacks.read`."""
        return self.stacks.read(self.source, row, first)


def along_trajectories(flow: Tensor) -> Tensor:
    """What each pixel of the first frame does: flow (B, L, 2, H, W) → the same, sampled where the pixel has got to."""
    height, width = flow.shape[-2:]
    rows, columns = (torch.arange(side, device=flow.device, dtype=flow.dtype) for side in (height, width))
    place = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))[None]  # (1, 2, H, W): x, y in pixels
    span = flow.new_tensor([max(width - 1, 1), max(height - 1, 1)]).view(1, 2, 1, 1)
    met = [flow[:, 0]]  # at p₁
    for field in flow.unbind(dim=1)[1:]:
        place = place + met[-1]  # p_k
        grid = (2 * place / span - 1).movedim(1, -1)  # (B, H, W, 2), the outer pixels' centres at ±1
        met.append(F.grid_sample(field, grid, padding_mode="border", align_corners=True))
    return torch.stack(met, dim=1)


def without_mean(flow: Tensor) -> Tensor:
    """Each channel of (…, H, W) less its own mean: a camera that pans moves everything alike."""
    return flow - flow.mean(dim=(-2, -1), keepdim=True)


def colours(flow: Tensor, most: float | None = None) -> Tensor:
    """Pictures of stacks: the direction is the hue, the length the saturation; what stands still is white.

    Args:
        flow: (B, 2L, H, W), x and y in turn.
        most: the length in pixels that is fully saturated; default: of each sample, what 99 in 100 places stay below.

    Returns:
        (B, 3, L, H, W) float in 0 … 1.
    """
    x, y = flow[:, 0::2].float(), flow[:, 1::2].float()  # (B, L, H, W)
    length = torch.hypot(x, y)
    whole = length.flatten(1).quantile(0.99, dim=1) if most is None else length.new_full((len(flow),), most)
    share = (length / whole.clamp(min=1e-6).view(-1, 1, 1, 1)).clamp(max=1)
    angle = torch.atan2(y, x)
    # Red, green and blue lie 120° apart on the wheel.
    shades = [1 - share * (1 - torch.cos(angle - turn)) / 2 for turn in (0.0, 2 * torch.pi / 3, -2 * torch.pi / 3)]
    return torch.stack(shades, dim=1)
