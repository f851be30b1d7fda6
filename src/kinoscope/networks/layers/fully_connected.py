"""The head of the AlexNet family: hidden fully connected layers with ReLU and dropout, then one linear layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def fully_connected(
    in_features: int, hidden: Sequence[int], num_classes: int, dropout: float = 0.5, first: int = 6
) -> nn.Sequential:
    """Head (B, in_features) → logits (B, num_classes), its layers named as the papers do: fc6, fc7, fc8.

    Args:
        in_features: length of the flattened convolutional features.
        hidden: widths of the hidden layers.
        num_classes: K.
        dropout: probability of dropping a hidden unit.
        first: number of the first layer.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(hidden, start=first):
        layers[f"fc{number}"] = nn.Linear(in_features, width)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        layers[f"drop{number}"] = nn.Dropout(dropout)
        in_features = width
    layers[f"fc{first + len(hidden)}"] = nn.Linear(in_features, num_classes)
    return nn.Sequential(layers)
