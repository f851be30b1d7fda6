"""Local response normalisation across channels, by the formula printed in the AlexNet paper.

Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012, §3.3:

    b_i = a_i / (k + α Σ_j a_j²)^β,   j over the n channels around i, clipped at the ends

``torch.nn.LocalResponseNorm`` (as Caffe) divides α by n: the paper's α = 1e-4 with n = 5 is 5e-4 there. Here α is the
paper's. The gradient is written out because autograd through the window sum costs about five times as much on a CPU,
where it would be a third of a small network's training step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LocalResponseNorm(nn.Module):
    """(B, C, …) → (B, C, …), each value divided by the energy of its ``size`` neighbouring channels.

    Args:
        size: n, the number of channels in the window, odd.
        alpha: α of the paper, not divided by n.
        beta: β, the exponent.
        k: the constant in the denominator's base.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"LocalResponseNorm: size={size} has no centre channel; use an odd number")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        return _Normalise.apply(x, self.size, self.alpha, self.beta, self.k)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class _Normalise(torch.autograd.Function):
    """b = a·d^-β with d = k + α·window(a²); the window sum is its own adjoint."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        wide = a.to(torch.promote_types(a.dtype, torch.float32))  # half precision would round α·a² away beside k
        d = window_sum(wide.square(), size).mul_(alpha).add_(k)
        scale = d.pow(-beta)
        ctx.save_for_backward(a, d, scale)
        ctx.constants = size, alpha, beta
        return (wide * scale).to(a.dtype)

    @staticmethod
    @once_differentiable  # types ctx as positional only
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        a, d, scale = ctx.saved_tensors
        size, alpha, beta = ctx.constants
        direct = grad_outputs[0] * scale
        through_d = window_sum(direct * a / d, size).mul_(2 * alpha * beta).mul_(a)
        return (direct - through_d).to(a.dtype), None, None, None, None


def window_sum(x: Tensor, size: int) -> Tensor:
    """Sum of ``size`` neighbouring channels (axis 1) around each channel, clipped at the ends; same shape as ``x``."""
    total = x.clone()
    for shift in range(1, min(size // 2, x.shape[1] - 1) + 1):
        total[:, shift:] += x[:, :-shift]
        total[:, :-shift] += x[:, shift:]
    return total
