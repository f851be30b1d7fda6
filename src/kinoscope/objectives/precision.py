"""Losses are taken in float32, whatever the network computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """The tensor in float32 where it is half as wide (float16, bfloat16); float32 and float64 stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
