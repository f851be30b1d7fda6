"""Augmentation of training clips, batched and on the device: crop, mirror, colours, erasing.

Shape legend: B batch, C channels, T frames, H height, W width, S size of the crop, n random numbers.

Nothing here draws. A transform names the random numbers it wants (``streams``); the data set makes them, keyed by
(seed, epoch, sample), and they arrive as ``draws`` (B, n) in [0, 1). So an augmented batch is a function of its keys,
the same for any number of workers and, to rounding, on any device. One sample's frames and its flow share its draws.

In yaml, with the crop that replaces the plain one and what else is wanted:

    augment:
      - _target_: kinoscope.data.transforms.MultiScaleCrop
      - _target_: kinoscope.data.transforms.ColourJitter

Whatever their order there, clips are cropped, mirrored, recoloured, normalised and erased in this one. Only training
clips are; a saved run's ``Preprocess`` knows nothing of it.

It is plain torch: kornia's video transforms repeat matrices and masks for every frame and convert before they crop,
which benchmarks/transforms.py measures where kornia is installed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from kinoscope.data.preprocess import LUMA, VideoPreprocess
from kinoscope.data.windows import Place, exact, pick

if TYPE_CHECKING:
    from kinoscope.contracts import Batch


class Transform:
    """What `Augmentation` applies: a `Crop`, a `Recolouring` or an `Erasing`.

    Attributes:
        streams: names of the random numbers it wants, one column of ``draws`` each.
    """

    streams: ClassVar[tuple[str, ...]] = ()


class Crop(Transform):
    """Says where to look. ``resizes``: its boxes may be of another size than the network's input."""

    resizes: ClassVar[bool] = True

    def boxes(self, draws: Tensor, height: int, width: int, size: int) -> Tensor:
        """Boxes (B, 4) int64 in frames of ``height`` × ``width`` for a result of ``size``: top, left, height, width."""
        raise NotImplementedError


class Recolouring(Transform):
    """Changes colours."""

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        """(B, 3, T, S, S) on the scale 0 … 255, uint8 or float → the same in float32, in memory of its own."""
        raise NotImplementedError


class Erasing(Transform):
    """Sets part of every frame to the mean of the data, which is zero after normalisation."""

    def masks(self, draws: Tensor, size: int) -> Tensor:
        """(B, S, S) bool: what is erased."""
        raise NotImplementedError


class RandomCrop(Crop):
    """A window of the network's size anywhere in the frame. Copied pixel by pixel, never resampled."""

    streams = ("crop_row", "crop_column")
    resizes = False

    def boxes(self, draws: Tensor, height: int, width: int, size: int) -> Tensor:
        top, left = (pick(draws[:, i], side - size + 1) for i, side in enumerate((height, width)))
        sides = torch.full_like(top, size)
        return torch.stack([top, left, sides, sides], dim=1)


class MultiScaleCrop(Crop):
    """Corner cropping with scale jittering (Wang et al. 2016, "Temporal Segment Networks", arXiv:1608.00859, §3.3).

    Height and width are each the frame's short side times one of the scales; the place is a corner or the centre.

    Args:
        scales: shares of the short side, above 0 and at most 1. The default gives the paper's 256, 224, 192 and 168
            pixels in frames of 256 × 340.
        distort: by how many scales height and width may differ; the authors' code has 1.
    """

    streams = ("crop_sides", "crop_place")
    PLACES: ClassVar = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))  # of the room: row, column

    def __init__(self, scales: Sequence[float] = (1, 0.875, 0.75, 0.66), distort: int = 1) -> None:
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(f"data.augment: scales of MultiScaleCrop are above 0 and at most 1, got {list(scales)}")
        if distort < 0:
            raise ValueError(f"data.augment: distort of MultiScaleCrop is at least 0, got {distort}")
        self.pairs = [
            (float(first), float(second))
            for i, first in enumerate(scales)
            for j, second in enumerate(scales)
            if abs(i - j) <= distort
        ]

    def boxes(self, draws: Tensor, height: int, width: int, size: int) -> Tensor:
        # Whole pixels are found on the CPU, in Python's float64: 256 · 0.75 must not become 191 on some device.
        short = min(height, width)
        pairs = [[max(1, int(short * scale)) for scale in pair] for pair in self.pairs]
        sides = draws.new_tensor(pairs, dtype=torch.int64)[pick(draws[:, 0], len(pairs))]  # (B, 2)
        places = draws.new_tensor(self.PLACES)[pick(draws[:, 1], len(self.PLACES))]  # (B, 2)
        room = draws.new_tensor([height, width], dtype=torch.int64) - sides
        return torch.cat([(room * places).long(), sides], dim=1)


class RandomResizedCrop(Crop):
    """A window of random area and aspect ratio (Szegedy et al. 2015, "Going deeper with convolutions", §6).

    Nothing is drawn twice: the aspect ratio comes first, and the area from what then still fits into the frame.

    Args:
        area: least and largest share of the frame.
        aspect: least and largest width / height; in between, its logarithm is uniform.
    """

    streams = ("crop_area", "crop_aspect", "crop_row", "crop_column")

    def __init__(self, area: Sequence[float] = (0.08, 1.0), aspect: Sequence[float] = (3 / 4, 4 / 3)) -> None:
        self.area, self.aspect = _ranges("RandomResizedCrop", area, aspect)

    def boxes(self, draws: Tensor, height: int, width: int, size: int) -> Tensor:
        return _boxes_by_area(draws, self.area, self.aspect, height, width)


class ColourJitter(Recolouring):
    """Brightness, contrast, saturation and hue of each clip.

    All four are one linear map of the pixel plus a shift, as in a television: luma Y (ITU-R BT.601) keeps its place,
    saturation is the length of the chroma vector (U, V) and hue its angle. Values are clipped once, at the end.

    Args:
        brightness: all values times 1 ± this.
        contrast: distances from the clip's mean luma times 1 ± this.
        saturation: chroma times 1 ± this.
        hue: chroma turned by ± this share of a full turn, at most 0.5.
    """

    streams = ("brightness", "contrast", "saturation", "hue")

    def __init__(
        self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.0
    ) -> None:
        self.strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
        for name, strength in self.strengths.items():
            most = 0.5 if name == "hue" else 1
            if not 0 <= strength <= most:
                raise ValueError(f"data.augment: {name} of ColourJitter is from 0 to {most}, got {strength}")
        luma, eye = torch.tensor(LUMA, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
        self.luma = luma.expand(3, 3)  # pixel → its grey
        # A quarter turn of U = 0.492 (B − Y), V = 0.877 (R − Y), which takes U to V and V to −U, as pixel → pixel.
        red, blue = 0.492 / 0.877 * (eye[2] - luma), -0.877 / 0.492 * (eye[0] - luma)
        green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]  # the luma of the result is zero
        self.quarter = torch.stack([red, green, blue])

    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError(f"data.augment: ColourJitter is for 3 channels, got {x.shape[1]}")
        x = x.float()
        spread = draws.new_tensor(list(self.strengths.values()), dtype=torch.float32)
        signed = spread * (2 * draws - 1)  # (B, 4)
        brightness, contrast, saturation = (1 + signed[:, :3]).view(-1, 3, 1, 1).unbind(1)  # (B, 1, 1) each
        angle = 2 * math.pi * signed[:, 3].view(-1, 1, 1)
        luma, quarter, eye = (m.to(x.device, torch.float32) for m in (self.luma, self.quarter, torch.eye(3)))
        turned = luma + saturation * (angle.cos() * (eye - luma) + angle.sin() * quarter)
        mapped = brightness * contrast * turned  # (B, 3, 3), from channel (last axis) to channel
        grey = (x.flatten(2).mean(dim=2) * luma[0]).sum(dim=1).view(-1, 1, 1)  # (B, 1, 1)
        shift = (1 - contrast) * brightness * grey
        # Not a matrix product, which a GPU may be set to compute with ten bits (TF32).
        ones = [1] * (x.ndim - 2)
        red, green, blue = (column.reshape(-1, 3, *ones) for column in mapped.unbind(2))
        out = torch.addcmul(shift.view(-1, 1, *ones), red, x[:, :1])
        return out.addcmul_(green, x[:, 1:2]).addcmul_(blue, x[:, 2:]).clamp_(0, 255)


class RandomErasing(Erasing):
    """One rectangle of some clips becomes the mean, in all frames (Zhong et al. 2017, arXiv:1708.04896).

    Args:
        probability: share of the clips.
        area: least and largest share of the crop.
        aspect: least and largest width / height; in between, its logarithm is uniform.
    """

    streams = ("erase", "erase_area", "erase_aspect", "erase_row", "erase_column")

    def __init__(
        self,
        probability: float = 0.5,
        area: Sequence[float] = (0.02, 0.4),
        aspect: Sequence[float] = (0.3, 1 / 0.3),
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"data.augment: probability of RandomErasing is from 0 to 1, got {probability}")
        self.probability = probability
        self.area, self.aspect = _ranges("RandomErasing", area, aspect)

    def masks(self, draws: Tensor, size: int) -> Tensor:
        top, left, height, width = _boxes_by_area(draws[:, 1:], self.area, self.aspect, size, size)[..., None].unbind(1)
        pixel = torch.arange(size, device=draws.device)
        rows = (pixel >= top) & (pixel < top + height) & (draws[:, :1] < self.probability)  # (B, S)
        columns = (pixel >= left) & (pixel < left + width)
        return rows[:, :, None] & columns[:, None, :]


class Augmentation:
    """From decoded training clips, with their draws, to what the network sees.

    Args:
        transforms: at most one `Crop` (default: `RandomCrop`), and any `Recolouring` and `Erasing`.
        flip: mirror every other clip.

    Attributes:
        streams: names of the columns of ``draws``.
        crop: the crop in use.
    """

    def __init__(self, transforms: Sequence[Transform] = (), flip: bool = False) -> None:
        if found := self.faults(transforms):
            raise ValueError("; ".join(found))
        self.crop = next((t for t in transforms if isinstance(t, Crop)), RandomCrop())
        self.flip = flip
        self.recolourings = [t for t in transforms if isinstance(t, Recolouring)]
        self.erasings = [t for t in transforms if isinstance(t, Erasing)]
        parts = [self.crop.streams, ("flip",) * flip, *(t.streams for t in (*self.recolourings, *self.erasings))]
        self.widths = [len(part) for part in parts]
        # A transform that is listed twice must not make the same draw twice.
        before: Counter[str] = Counter()
        names = []
        for name in (name for part in parts for name in part):
            names.append(f"{name}.{before[name]}" if before[name] else name)
            before[name] += 1
        self.streams = tuple(names)

    @staticmethod
    def faults(transforms: Sequence[Transform]) -> list[str]:
        """What is wrong with a list of transforms, one sentence each."""
        kinds = (Crop, Recolouring, Erasing)
        found = [
            f"data.augment[{i}] is a {type(t).__name__}, not one of kinoscope.data.transforms or derived from one"
            for i, t in enumerate(transforms)
            if not isinstance(t, kinds)
        ]
        crops = [type(t).__name__ for t in transforms if isinstance(t, Crop)]
        return [*found, f"data.augment has room for one crop, got {' and '.join(crops)}"] if len(crops) > 1 else found

    def __call__(self, batch: Batch, preprocess: VideoPreprocess) -> Batch:
        """One view of every sample.

        Args:
            batch: ``draws`` (B, n) with ``video`` (B, 3, T, H, W) uint8, or ``flow`` (B, 2L, [T,] H, W) float, or both;
                with ``cropped`` they are S × S, cut out where they were read, and only the rest is done.
            preprocess: gives size, mean and scale.

        Returns:
            the batch without ``draws`` and ``cropped``: ``video`` (B, 3, T, S, S) float32, normalised; ``flow``
            likewise, not normalised.
        """
        batch = dict(batch)
        draws, cropped = batch.pop("draws"), bool(batch.pop("cropped", False))
        if draws.shape[1] != len(self.streams):
            raise ValueError(f"draws have {draws.shape[1]} columns, wanted are {', '.join(self.streams)}")
        crop, flip, *parts = draws.split(self.widths, dim=1)
        if "video" in batch and not cropped:
            batch["video"] = preprocess.fit(batch["video"])
        height, width = self._sides(batch)
        boxes = None if cropped else self.crop.boxes(crop, height, width, preprocess.size)
        place = Place(boxes, preprocess.size, self.crop.resizes, flip[:, 0] < 0.5 if self.flip else None)
        if "video" in batch:
            x = place.frames(batch["video"])
            for recolouring, part in zip(self.recolourings, parts, strict=False):
                x = recolouring(x, part)
            batch["video"] = preprocess.normalise_(x) if x.dtype == torch.float32 else preprocess.normalise(x)
        if "flow" in batch:
            batch["flow"] = place.flow(batch["flow"])
        for erasing, part in zip(self.erasings, parts[len(self.recolourings) :], strict=True):
            mask = erasing.masks(part, preprocess.size)
            for x in (batch[name] for name in ("video", "flow") if name in batch):
                x.masked_fill_(mask.view(len(x), *[1] * (x.ndim - 3), *mask.shape[1:]), 0)
        return batch

    @staticmethod
    def _sides(batch: Batch) -> tuple[int, int]:
        sides = {n: (batch[n].shape[-2], batch[n].shape[-1]) for n in ("video", "flow") if n in batch}
        if len(set(sides.values())) > 1:
            shown = " and ".join(f"{name} of {height}×{width}" for name, (height, width) in sides.items())
            raise ValueError(f"one crop cannot be taken from {shown}")
        return next(iter(sides.values()))


def _ranges(name: str, area: Sequence[float], aspect: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """Both as pairs, checked."""
    if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"data.augment: area of {name} is [least, largest], above 0 and at most 1, got {list(area)}")
    if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1]:
        raise ValueError(f"data.augment: aspect of {name} is [least, largest], above 0, got {list(aspect)}")
    return (area[0], area[1]), (aspect[0], aspect[1])


def _boxes_by_area(
    draws: Tensor, area: tuple[float, float], aspect: tuple[float, float], height: int, width: int
) -> Tensor:
    """Boxes (B, 4) int64 within ``height`` × ``width`` from draws (B, 4) of area, aspect, row and column."""
    share, shape, row, column = exact(draws).unbind(1)
    ratio = (math.log(aspect[0]) + shape * math.log(aspect[1] / aspect[0])).exp()  # width / height
    most = torch.minimum(width / height / ratio, ratio * height / width).clamp(max=area[1])  # what fits
    least = most.clamp(max=area[0])
    pixels = (least + share * (most - least)) * (height * width)
    tall = (pixels / ratio).sqrt().round().clamp(1, height).long()
    wide = (pixels * ratio).sqrt().round().clamp(1, width).long()
    return torch.stack([pick(row, height - tall + 1), pick(column, width - wide + 1), tall, wide], dim=1)
