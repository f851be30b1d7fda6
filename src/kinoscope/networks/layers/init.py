"""Weight initialisation shared by papers."""

from __future__ import annotations

from torch import nn


def gaussian_(layer: nn.Module, std: float, bias: float = 0.0) -> None:
    """Fill a convolution or linear layer in place: weights N(0, std²), biases constant."""
    assert isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)


def he_(network: nn.Module) -> None:
    """Fill every convolution and linear layer in place: weights N(0, 2 / fan-in), biases 0 (He et al. 2015, eq. 10).

    A fixed deviation such as the 0.01 of the AlexNet family suits the widths of its papers only: it lets the signal of
    a narrow network die out. The last linear layer starts small, so that the first loss is log K.
    """
    last: nn.Linear | None = None
    for layer in network.modules():
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if isinstance(layer, nn.Linear):
            last = layer
    if last is not None:
        gaussian_(last, std=0.01)
