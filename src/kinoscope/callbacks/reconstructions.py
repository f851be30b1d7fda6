"""What an autoencoder keeps of an image, and what it loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinoscope.callbacks.choice import Choice, keys_of
from kinoscope.callbacks.drawing import (
    HEADER,
    MARGIN,
    MUTED,
    RULE,
    SMALL,
    TEXT,
    WIDTH,
    WRONG,
    Pixels,
    Sheet,
    as_pixels,
    looking,
    plural,
    publish,
    require,
    unit_range,
)
from kinoscope.runs import agreement

if TYPE_CHECKING:
    from kinoscope.contracts import Batch


class ReconstructionStrip(pl.Callback):
    """Images, their reconstructions and the error between them, drawn as ``reconstructions.png``.

    After every validation from validation images, after a test from test images. The images are spread over the
    classes and are the same each time. Under each stands its squared error: summed over its pixels and channels, on
    the scale 0…1, to which reconstructions are clipped as they are for the eye.

    Args:
        samples: how many images.
    """

    def __init__(self, samples: int = 10) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.samples = samples
        self._choice: Choice[Tensor] = Choice(samples)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require(self, pl_module, "reconstruct")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._choice = Choice(self.samples)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._choice = Choice(self.samples)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._collect(batch)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._collect(batch)

    def _collect(self, batch: Batch) -> None:
        labels = batch["label"].cpu().tolist() if "label" in batch and batch["label"].ndim == 1 else None
        for i, key in enumerate(keys_of(batch["index"].cpu().numpy()).tolist()):
            label = labels[i] if labels else 0
            if self._choice.wants(label, key):
                self._choice.add(label, key, batch["image"][i].cpu())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._publish(trainer, pl_module, "validation", final=trainer.state.fn == "validate")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._publish(trainer, pl_module, "test", final=True)

    def _publish(self, trainer: pl.Trainer, system: pl.LightningModule, subset: str, final: bool) -> None:
        chosen = Choice.of(agreement.gather(self._choice)).first(self.samples)
        self._choice = Choice(self.samples)
        if not chosen:
            return
        images = torch.stack(chosen).to(system.device)  # on every rank: a sharded network runs on all or on none
        with looking(trainer, system):
            reconstructions = cast(Any, system).reconstruct({"image": images})
            pair = [unit_range(trainer, x).float().cpu() for x in (images, reconstructions)]
        if trainer.is_global_zero:
            publish(trainer, draw_strip(*pair, subset=subset).picture(), "reconstructions", final=final)


def draw_strip(images: Tensor, reconstructions: Tensor, subset: str) -> Sheet:
    """Three rows: input, reconstruction, |error| with its scale.

    Args:
        images: (N, C, H, W) on the scale 0…1.
        reconstructions: the same of their reconstructions.
        subset: where the images are from, in words.
    """
    n = len(images)
    difference = (images - reconstructions).abs()
    squared = difference.square().flatten(1).sum(dim=1).tolist()
    error = difference.mean(dim=1).numpy()  # (N, H, W), mean over channels
    ceiling = max(float(np.ceil(error.max() * 20) / 20), 0.05)  # a round figure for the scale's end

    label, scale, gap = 1.15, 0.6, 0.06
    width = min((WIDTH - 2 * MARGIN - label - scale - (n - 1) * gap) / n, 1.6)
    tall = width * images.shape[2] / images.shape[3]
    left = MARGIN + label
    rows: Sequence[tuple[str, Pixels]] = (
        ("input", as_pixels(images)),
        ("reconstruction", as_pixels(reconstructions)),
        ("|error|", _heat(error / ceiling)),
    )
    bottom = HEADER + 3 * (tall + gap) - gap
    page = left + n * (width + gap) - gap + scale + MARGIN
    subtitle = (
        f"{plural(n, f'{subset} image')}. Squared error, summed over an image's pixels: mean {np.mean(squared):.3g}"
    )
    sheet = Sheet(bottom + 0.25 + MARGIN, "Reconstructions", subtitle, width=max(page, 5.5))
    for r, (name, pictures) in enumerate(rows):
        top = HEADER + r * (tall + gap)
        sheet.text(left - 0.12, top + tall / 2 + 0.04, name, align="right")
        for i, pixels in enumerate(pictures):
            sheet.image(left + i * (width + gap), top, pixels, width)
    for i, value in enumerate(squared):
        sheet.frame(left + i * (width + gap), bottom - tall, width, tall, RULE, 0.6)
        sheet.text(left + i * (width + gap) + width / 2, bottom + 0.2, f"{value:.3g}", SMALL, align="center")
    sheet.text(left - 0.12, bottom + 0.2, "squared error", TEXT, align="right")

    edge = left + n * (width + gap) + 0.06
    ramp = _heat(np.repeat(np.linspace(1, 0, 64)[:, None], 8, axis=1))
    sheet.axes(edge, bottom - tall, 0.1, tall).imshow(ramp, aspect="auto", interpolation="bilinear")
    sheet.text(edge + 0.16, bottom - tall + 0.09, f"{ceiling:.2g}", SMALL, MUTED)
    sheet.text(edge + 0.16, bottom, "0", SMALL, MUTED)
    return sheet


def _heat(value: NDArray[np.floating[Any]]) -> Pixels:
    """0…1 → RGB from paper to vermillion to near black; lightness falls all the way, so it also reads in grey."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("error", ["#ffffff", "#f6c6a0", WRONG, "#4a1f00"])
    return (colours(value)[..., :3] * 255).round().astype(np.uint8)
