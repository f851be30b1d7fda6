"""Convolutional autoencoder with ReLU units.

The deep autoencoder of Hinton, Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", Science 2006,
in the form the lecture gives it (CS231n 2016, lecture 14): a four-layer convolutional encoder, a four-layer
upconvolutional decoder, squared error.

Departs:
    - From the paper, as the lecture does: convolutions instead of dense layers, ReLU instead of logistic units, squared
      error instead of cross-entropy, and no greedy pretraining.
    - The lecture gives no widths; every layer is 4×4 with stride 2, widths 32, 64, 128 and a code of 64 maps of 2×2
      (256 numbers for a 32×32 image).

Shape legend: B batch, C channels, H height, W width, k code length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn


class ConvEncoder(nn.Sequential):
    """Image (B, C, H, W) → code (B, k).

    The code is linear: a ReLU on it would cut off half of what it can say.

    Args:
        channels: C.
        size: H = W, a multiple of 2 to the number of layers.
        widths: maps after each layer but the last.
        code: maps of the code; k = code · (size / 2^layers)².

    Attributes:
        code_size: k.
        code_shape: the code before it is flattened, (maps, height, width).

    Raises:
        ValueError: if the strides do not divide ``size``.
    """

    def __init__(
        self, channels: int = 3, size: int = 32, widths: Sequence[int] = (32, 64, 128), code: int = 64
    ) -> None:
        maps = [channels, *widths, code]
        depth = len(maps) - 1
        if size < 1 or size % 2**depth:
            raise ValueError(
                f"ConvEncoder: {depth} layers halve the image {depth} times, so size must be a multiple of "
                f"{2**depth}, got {size}"
            )
        layers: list[nn.Module] = []
        for before, after in pairwise(maps):
            layers += [nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1], nn.Flatten())  # (B, 3, 32, 32) → (B, 64, 2, 2) → (B, 256)
        side = size // 2**depth
        self.code_shape = (code, side, side)
        self.code_size = code * side * side


class ConvAutoencoder(nn.Module):
    """``encode``: image (B, C, H, W) → code (B, k). ``decode``: code (B, k) → image (B, C, H, W).

    The output is linear unless said otherwise.

    Args:
        channels: C.
        size: H = W, a multiple of 2 to the number of layers.
        widths: maps after each encoder layer but the last.
        code: maps of the code; k = code · (size / 2^layers)².
        output: "sigmoid" keeps images of range 0 … 1 inside it.
        tied: each decoder layer is the transpose of its encoder layer, with the same weight tensor. A transposed
            convolution is the exact adjoint of the convolution, so nothing is flipped.

    Raises:
        ValueError: if the strides do not divide ``size``.
    """

    def __init__(
        self,
        channels: int = 3,
        size: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        code: int = 64,
        output: Literal["linear", "sigmoid"] = "linear",
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = ConvEncoder(channels, size, widths, code)
        self.code_size = self.encoder.code_size

        decoder: list[nn.Module] = [nn.Unflatten(1, self.encoder.code_shape)]
        for before, after in pairwise((code, *reversed(widths), channels)):
            decoder += [nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1), nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*decoder[:-1])  # (B, 256) → (B, 64, 2, 2) → (B, 3, 32, 32)
        if output == "sigmoid":
            self.decoder.append(nn.Sigmoid())

        if tied:
            down = [layer for layer in self.encoder if isinstance(layer, nn.Conv2d)]
            up = [layer for layer in self.decoder if isinstance(layer, nn.ConvTranspose2d)]
            for convolution, transpose in zip(reversed(down), up, strict=True):
                transpose.weight = convolution.weight  # (out, in, 4, 4) of the one is (in, out, 4, 4) of the other

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
