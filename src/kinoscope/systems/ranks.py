"""What the processes of one training (its ranks) tell each other; where there is one process, nothing.

All ranks have to call these functions, in the same order: whoever leaves one out lets the others wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed, nn


def count() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """The sum over all ranks, in place. With NCCL ``values`` have to lie on the rank's own GPU."""
    if count() > 1:
        distributed.all_reduce(values)
    return values


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Makes each gradient its mean over all ranks, in one message. A parameter without a gradient keeps none."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = total(torch.cat([gradient.flatten() for gradient in gradients])) / count()
    parts = flat.split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrites each tensor with rank 0's."""
    if count() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)
