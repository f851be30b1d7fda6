"""From uint8 pixels to what a network sees, batched and on the device.

Shape legend: B batch, C channels, T frames, H height, W width, S size of the crop, n crops.

A ``Preprocess`` is saved with the run, because a trained network needs it: it says size, crop rule, mean and scale.
It has no part in augmentation (transforms.py) but for the mirroring of images: clips get the centre crop or test crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinoscope.data.decode import target_size

Crops = Literal[1, 3, 5, 10]

PIECE = 1 << 19  # numbers: 2 MiB of float32

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the grey of JPEG and MPEG


class Preprocess(nn.Module):
    """Mean and scale: pixel p becomes (p/255 − mean)/std.

    Args:
        mean: of pixels on the scale 0 … 1, one number or one per channel.
        std: as ``mean``; positive.
        axes: axes after the channel axis, 2 for images and 3 for videos.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float], axes: int) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            numbers = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
            self.register_buffer(name, torch.tensor(numbers).view(-1, *[1] * axes))
        if not (self.std > 0).all():
            raise ValueError(f"preprocess.std must be positive, got {std}")

    def normalise(self, x: Tensor) -> Tensor:
        """(…, C, [T,] H, W) pixels 0 … 255, uint8 or float → float32."""
        out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        # On a CPU in pieces that stay in its cache from one operation to the next; a GPU does everything at once.
        size = max(1, PIECE // max(1, x[:1].numel())) if x.device.type == "cpu" and len(x) else max(1, len(x))
        for pixels, part in zip(x.split(size), out.split(size), strict=True):
            self.normalise_(part.copy_(pixels))
        return out

    def normalise_(self, x: Tensor) -> Tensor:
        """Likewise of float32, in its own memory: fresh memory costs more than the arithmetic."""
        return x.sub_(255 * self.mean).mul_(1 / (255 * self.std))

    def denormalise(self, x: Tensor) -> Tensor:
        """The way back, for pictures: (…, C, [T,] H, W) → float in [0, 1], clipped."""
        return (x.float() * self.std + self.mean).clamp(0, 1)


class ImagePreprocess(Preprocess):
    """Images to ``channels`` × ``size`` × ``size``.

    A side that lacks at most an eighth of itself on either side is padded with zeros (28 → 32: two pixels each, as
    LeNet does), any other is resized (bilinear, antialiased). One channel is repeated into three; three become luma.

    Args:
        size: side of the square result in pixels.
        channels: 1 or 3.
        mean: of pixels on the scale 0 … 1.
        std: likewise.
    """

    def __init__(
        self,
        size: int = 32,
        channels: Literal[1, 3] = 1,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
    ) -> None:
        super().__init__(mean, std, axes=2)
        if size < 1 or channels not in (1, 3):
            raise ValueError(f"an image needs size >= 1 and 1 or 3 channels, got size={size}, channels={channels}")
        self.size = size
        self.channels = channels

    def forward(self, x: Tensor, draws: Tensor | None = None) -> Tensor:
        """Args: x: (B, C, H, W) uint8. draws: (B, 1), below ½ mirrors the image. Returns: (B, channels, S, S) float."""
        x = self.fit(x)
        if draws is not None:
            x = mirror(x, draws[:, 0] < 0.5)
        return self.normalise(x)

    def fit(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, channels, S, S), still on the scale 0 … 255."""
        if x.shape[1] == 1 and self.channels == 3:
            x = x.expand(-1, 3, -1, -1)
        elif x.shape[1] == 3 and self.channels == 1:
            x = (x.float() * x.new_tensor(LUMA, dtype=torch.float32).view(3, 1, 1)).sum(dim=1, keepdim=True)
        elif x.shape[1] != self.channels:
            raise ValueError(f"images have 1 or 3 channels, got {x.shape[1]}")
        height, width = x.shape[-2:]
        if (height, width) == (self.size, self.size):
            return x
        missing = self.size - height, self.size - width
        if all(0 <= gap <= side / 4 for gap, side in zip(missing, (height, width), strict=True)):
            top, left = missing[0] // 2, missing[1] // 2
            return F.pad(x, (left, missing[1] - left, top, missing[0] - top))
        return resize(x, (self.size, self.size))


class VideoPreprocess(Preprocess):
    """Clips to 3 × T × ``size`` × ``size``.

    Args:
        size: side of the square crop in pixels.
        resize: what frames are resized to before the crop: the short side, or (height, width). The data set does it
            while decoding; here only frames that arrive at another size are resized (bilinear, antialiased).
        mean: of pixels on the scale 0 … 1.
        std: likewise.
    """

    def __init__(
        self,
        size: int = 112,
        resize: int | Sequence[int] | None = (128, 171),
        mean: float | Sequence[float] = 0.45,
        std: float | Sequence[float] = 0.225,
    ) -> None:
        super().__init__(mean, std, axes=3)
        self.size = size
        self.resize = frame_size(resize)
        if size < 1:
            raise ValueError(f"a video needs size >= 1, got size={size}")
        if self.resize is not None and size > min(self.resize if isinstance(self.resize, tuple) else (self.resize,)):
            raise ValueError(f"a crop of size={size} does not fit into frames of resize={resize}")

    def forward(self, x: Tensor) -> Tensor:
        """The centre of every clip: (B, C, T, H, W) uint8 at any resolution → (B, C, T, S, S) float."""
        return self.normalise(self._crop_at(self.fit(x), 0.5, 0.5))

    def crops(self, x: Tensor, n: Crops = 1) -> Tensor:
        """Test crops of every clip.

        Args:
            x: (B, C, T, H, W) uint8 at any resolution.
            n: 1 the centre; 3 along the longer side; 5 the corners and the centre; 10 those and their mirror images.

        Returns:
            (B, n, C, T, S, S) float.
        """
        views = self._windows(self.fit(x), n)
        return self.normalise(torch.cat([views, views.flip(-1)], dim=1) if n == 10 else views)

    def flow_crops(self, x: Tensor, n: Crops = 1) -> Tensor:
        """The same crops of flow (B, 2L, H, W), x and y in turn, in pixels: (B, n, 2L, S, S)."""
        if min(x.shape[-2:]) < self.size:
            raise ValueError(f"a crop of size={self.size} does not fit into flow of {x.shape[-2]}×{x.shape[-1]}")
        views = self._windows(x, n)
        if n < 10:
            return views
        mirrored = views.flip(-1)
        mirrored[:, :, ::2] *= -1  # a mirror image moves the other way
        return torch.cat([views, mirrored], dim=1)

    def _windows(self, x: Tensor, n: Crops) -> Tensor:
        """The n places to look at, of ten the first five: (B, …, H, W) → (B, n, …, S, S)."""
        places: dict[int, list[tuple[float, float]]] = {
            1: [(0.5, 0.5)],
            3: [(0.5, c) for c in (0, 0.5, 1)] if x.shape[-1] >= x.shape[-2] else [(r, 0.5) for r in (0, 0.5, 1)],
            5: [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)],
        }
        if n not in (1, 3, 5, 10):
            raise ValueError(f"test crops are 1, 3, 5 or 10, got {n}")
        return torch.stack([self._crop_at(x, *place) for place in places[min(n, 5)]], dim=1)

    def fit(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) → the same at the resolution of ``resize``, still on the scale 0 … 255."""
        height, width = target_size(x.shape[-2], x.shape[-1], self.resize)
        if (height, width) != x.shape[-2:]:
            frames = x.transpose(1, 2).flatten(0, 1)  # (B·T, C, H, W)
            x = resize(frames, (height, width)).unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        if min(height, width) < self.size:
            raise ValueError(f"a crop of size={self.size} does not fit into frames of {height}×{width}: set resize")
        return x

    def _crop_at(self, x: Tensor, row: float, column: float) -> Tensor:
        top, left, _, _ = window(x.shape[-2], x.shape[-1], self.size, row, column)
        return x[..., top : top + self.size, left : left + self.size]


def window(height: int, width: int, size: int, row: float = 0.5, column: float = 0.5) -> tuple[int, int, int, int]:
    """Top, left, height and width of a square at a share of the room that there is, by default in the centre."""
    return int((height - size) * row), int((width - size) * column), size, size


def frame_size(resize: int | Sequence[int] | None) -> int | tuple[int, int] | None:
    """A ``resize`` as written in a config (a short side, [height, width] or null), as plain Python."""
    if resize is None:
        return None
    sides = [resize] if isinstance(resize, int) else [int(side) for side in resize]
    if len(sides) > 2 or not sides or min(sides) < 1:
        raise ValueError(f"resize is a short side or [height, width] in pixels, got {resize}")
    return sides[0] if isinstance(resize, int) else (sides[0], sides[-1])


def zero_padding(x: Tensor, length: Tensor) -> Tensor:
    """Sets the frames of (B, …, C, T, H, W) float from ``length`` (B,) on to zero, in place."""
    padding = torch.arange(x.shape[-3], device=x.device) >= length[:, None]  # (B, T)
    return x.masked_fill_(padding.view(len(x), *[1] * (x.ndim - 4), -1, 1, 1), 0)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) → (N, C, *size) float32 on the scale 0 … 255; rounded, as a decoder would deliver them."""
    return F.interpolate(x.float(), size=size, mode="bilinear", antialias=True).round_().clamp_(0, 255)


def mirror(x: Tensor, where: Tensor) -> Tensor:
    """Mirrors the samples (B, …, W) left to right for which ``where`` (B,) is true."""
    where = where.view(-1, *[1] * (x.ndim - 1))
    if x.dtype != torch.uint8:
        return torch.where(where, x.flip(-1), x)
    # On a CPU torch.where takes bytes one by one, bitwise operators 32 at a time: x ^ ((x ^ flipped) & mask).
    mask = where.to(torch.uint8) * 255
    return x.flip(-1).bitwise_xor_(x).bitwise_and_(mask).bitwise_xor_(x)
