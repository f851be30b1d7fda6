"""Helpers of the network tests: parameters without memory, and shapes layer by layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def parameters(network: nn.Module) -> int:
    """Number of weights and biases."""
    return sum(parameter.numel() for parameter in network.parameters())


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The network on the meta device: shapes and counts at paper size, no memory."""
    with torch.device("meta"):
        return build()


def shapes(network: nn.Module, layers: nn.Sequential, *size: int) -> dict[str, tuple[int, ...]]:
    """Output shape, without the batch axis, of every named layer of ``layers`` when ``network`` sees a batch of one."""
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _module, _inputs, output: seen.__setitem__(name, tuple(output.shape[1:]))

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.named_children()]
    network.eval()  # batch normalisation refuses to train on a batch of one
    network(torch.empty(1, *size, device=next(network.parameters()).device))
    for handle in handles:
        handle.remove()
    return seen
