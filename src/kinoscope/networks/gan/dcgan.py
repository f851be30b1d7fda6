"""DCGAN: a generator and a critic made of strided convolutions and batch normalisation.

Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
ICLR 2016, arXiv 1511.06434.

Two layouts exist by the authors themselves, told apart by ``layout``:

    layout   kernels  first and last layer        latent                base width
    paper    5×5      fully connected             100, uniform (−1, 1)  128             the paper's figure 1 [1, 2]
    torch    4×4      convolution of 4×4 on 4×4   100×1×1, normal       64              the co-author's Torch code [3]

Batch normalisation everywhere but in the generator's output and the critic's first layer; no biases at all; ReLU in the
generator, LeakyReLU(0.2) in the critic. Each halving of the image from 64 drops one layer of both networks.

References:
    [1] the paper above. [2] the authors' Theano code. [3] the co-author's Torch code.

Departs:
    - The critic ends in the logit; the sigmoid belongs to the objective, where it is computed without overflow.
    - The critic's input is the image only; the class-conditional variant is not built, nor is the network of 32×32
      ImageNet whose features are classified.
    - Both players are updated on every batch; the authors' code alternates them over successive batches. The weight
      decay of its face script (1e-5) is left out.

Shape legend: B batch, C channels, H height, W width, f base width.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Layout = Literal["paper", "torch"]


class Generator(nn.Module):
    """Latent z (B, *latent_shape) → image (B, C, H, W) in −1 … 1.

    Args:
        channels: C.
        size: H = W, 4 times a power of two from 8 on.
        width: f, the maps before the output layer; the first layer has f · size / 8 of them.
        latent: length of z.
        layout: "paper" or "torch", see the head of this file.

    Attributes:
        latent_shape: shape of one z: (latent,) or (latent, 1, 1).
        latent_prior: "uniform" on (−1, 1) or "normal".

    Raises:
        ValueError: if ``size`` is none that doubling 4 can reach.
    """

    latent_shape: tuple[int, ...]
    latent_prior: Literal["uniform", "normal"]

    def __init__(
        self, channels: int = 3, size: int = 64, width: int = 128, latent: int = 100, layout: Layout = "paper"
    ) -> None:
        super().__init__()
        maps = width * 2 ** (_doublings(size) - 1)  # 8f for 64×64, 4f for 32×32
        layers: list[nn.Module]
        if layout == "paper":
            self.latent_shape, self.latent_prior = (latent,), "uniform"
            layers = [
                nn.Linear(latent, maps * 4 * 4, bias=False),
                nn.BatchNorm1d(maps * 4 * 4),
                nn.ReLU(inplace=True),
                nn.Unflatten(1, (maps, 4, 4)),  # (B, 8f, 4, 4)
            ]
        else:
            self.latent_shape, self.latent_prior = (latent, 1, 1), "normal"
            layers = [
                nn.ConvTranspose2d(latent, maps, kernel_size=4, bias=False),  # (B, 8f, 4, 4)
                nn.BatchNorm2d(maps),
                nn.ReLU(inplace=True),
            ]
        while maps > width:  # (B, 4f, 8, 8), (B, 2f, 16, 16), (B, f, 32, 32)
            layers += [_up(maps, maps // 2, layout), nn.BatchNorm2d(maps // 2), nn.ReLU(inplace=True)]
            maps //= 2
        layers += [_up(maps, channels, layout), nn.Tanh()]  # (B, C, 64, 64)
        self.layers = nn.Sequential(*layers)
        _initialise_(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class Critic(nn.Module):
    """Image (B, C, H, W) in −1 … 1 → one logit per image, (B,): log D(x) / (1 − D(x)).

    Args:
        channels: C.
        size: H = W, 4 times a power of two from 8 on.
        width: f, the maps of the first layer.
        layout: "paper" or "torch", see the head of this file.

    Raises:
        ValueError: if ``size`` is none that halving brings to 4.
    """

    def __init__(self, channels: int = 3, size: int = 64, width: int = 128, layout: Layout = "paper") -> None:
        super().__init__()
        layers: list[nn.Module] = [_down(channels, width, layout), nn.LeakyReLU(0.2, inplace=True)]  # (B, f, 32, 32)
        maps = width
        for _ in range(_doublings(size) - 1):  # (B, 2f, 16, 16), (B, 4f, 8, 8), (B, 8f, 4, 4)
            layers += [_down(maps, 2 * maps, layout), nn.BatchNorm2d(2 * maps), nn.LeakyReLU(0.2, inplace=True)]
            maps *= 2
        if layout == "paper":
            layers += [nn.Flatten(), nn.Linear(maps * 4 * 4, 1, bias=False)]  # (B, 1)
        else:
            layers += [nn.Conv2d(maps, 1, kernel_size=4, bias=False), nn.Flatten()]  # (B, 1, 1, 1) → (B, 1)
        self.layers = nn.Sequential(*layers)
        _initialise_(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


def _doublings(size: int) -> int:
    """How often 4 is doubled to reach ``size``."""
    if size < 8 or size & (size - 1):
        raise ValueError(f"DCGAN: the layers double 4×4 to 8, 16, 32, 64 …, so size={size} cannot be drawn")
    return (size // 4).bit_length() - 1


def _up(before: int, after: int, layout: Layout) -> nn.ConvTranspose2d:
    """Doubles height and width."""
    if layout == "paper":
        return nn.ConvTranspose2d(before, after, kernel_size=5, stride=2, padding=2, output_padding=1, bias=False)
    return nn.ConvTranspose2d(before, after, kernel_size=4, stride=2, padding=1, bias=False)


def _down(before: int, after: int, layout: Layout) -> nn.Conv2d:
    """Halves height and width."""
    if layout == "paper":
        return nn.Conv2d(before, after, kernel_size=5, stride=2, padding=2, bias=False)
    return nn.Conv2d(before, after, kernel_size=4, stride=2, padding=1, bias=False)


def _initialise_(network: nn.Module) -> None:
    """Weights N(0, 0.02²), gains of the batch normalisation N(1, 0.02²), shifts 0 [2, 3]."""
    for layer in network.modules():
        if isinstance(layer, (nn.modules.batchnorm._BatchNorm)):
            nn.init.normal_(layer.weight, mean=1.0, std=0.02)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.02)
