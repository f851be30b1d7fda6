"""What a generator draws, always from the same latents, so that one can watch it learn."""

from __future__ import annotations

import math
from typing import Any, cast

import lightning.pytorch as pl

from kinoscope.callbacks.drawing import (
    DPI,
    HEADER,
    MARGIN,
    WIDTH,
    Pixels,
    Sheet,
    as_pixels,
    looking,
    plural,
    publish,
    require,
    unit_range,
)


class SampleGrid(pl.Callback):
    """Samples from the fixed latents kept in the checkpoint.

    Every ``every_n_epochs`` epochs ``samples_latest.png`` is overwritten and ``samples_<clock>.png`` kept; at the end
    of the training, and of a test, ``samples.png`` is drawn.

    Args:
        samples: how many, at most as many as the system keeps latents.
        every_n_epochs: epochs between two grids.
    """

    def __init__(self, samples: int = 64, every_n_epochs: int = 1) -> None:
        if samples < 1 or every_n_epochs < 1:
            raise ValueError(f"samples and every_n_epochs must be at least 1, got {samples} and {every_n_epochs}")
        self.samples = samples
        self.every_n_epochs = every_n_epochs
        self._announced = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require(self, pl_module, "sample")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            clock = int(cast(Any, pl_module).clock)
            picture = self._draw(trainer, pl_module, clock).picture()
            publish(trainer, picture, f"samples_{clock:07d}", to_loggers=False)
            publish(trainer, picture, "samples_latest", key="samples")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._final(trainer, pl_module, int(cast(Any, pl_module).clock))

    # What is tested comes from a checkpoint, whose clock the trainer does not take over.

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._final(trainer, pl_module, None)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._final(trainer, pl_module, None)

    def _final(self, trainer: pl.Trainer, system: pl.LightningModule, clock: int | None) -> None:
        if trainer.is_global_zero:
            publish(trainer, self._draw(trainer, system, clock).picture(), "samples", final=not self._announced)
            self._announced = True

    def _draw(self, trainer: pl.Trainer, system: pl.LightningModule, clock: int | None) -> Sheet:
        with looking(trainer, system):
            images = unit_range(trainer, cast(Any, system).sample(self.samples, None))
        return draw_samples(as_pixels(images), clock, origin="from fixed latents")


def draw_samples(images: Pixels, clock: int | None, origin: str = "") -> Sheet:
    """A grid of images (N, H, W, 3), as square as N allows.

    Args:
        images: what was sampled.
        clock: how many updates the generator has had, where that is known.
        origin: where the images are from, in words.
    """
    n, height, breadth = images.shape[:3]
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    gap = 0.05
    # Whole multiples of a pixel: an uneven enlargement of small images shows stripes that are not in them.
    room = (WIDTH - 2 * MARGIN - (columns - 1) * gap) / columns * DPI
    width = (max(1, math.floor(room / breadth)) * breadth if room >= breadth else room) / DPI
    tall = width * height / breadth
    page = columns * width + (columns - 1) * gap + 2 * MARGIN
    after = f"after {plural(clock, 'update')} of the generator" if clock is not None else ""
    subtitle = " ".join(part for part in (plural(n, "image"), origin, after) if part)
    sheet = Sheet(HEADER + rows * (tall + gap) - gap + MARGIN, "Samples", subtitle, width=page)
    for i, image in enumerate(images):
        sheet.image(MARGIN + (i % columns) * (width + gap), HEADER + (i // columns) * (tall + gap), image, width)
    return sheet
