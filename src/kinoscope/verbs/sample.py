"""``kinoscope sample run=<folder>``: a generator's samples, or an autoencoder's reconstructions, as PNG."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig

from kinoscope.callbacks.drawing import Sheet, as_pixels, save
from kinoscope.callbacks.reconstructions import draw_strip
from kinoscope.callbacks.samples import draw_samples
from kinoscope.console import show
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.build import TRUSTED, build_datamodule
from kinoscope.runs.load import Run, load_run
from kinoscope.systems.autoencoder import ReconstructionEvaluation
from kinoscope.verbs.evaluate import with_changes

log = logging.getLogger("kinoscope")


def run(config: DictConfig, overrides: list[str]) -> int:
    """The verb: writes one picture and prints its path as the last line of stdout."""
    if config.n < 1:
        raise Refusal(f"n must be at least 1, got {config.n}")
    loaded = load_run(config.run, config.checkpoint, trust=list(config.trust))
    if hasattr(loaded.system, "sample"):
        name, sheet = f"sample_seed{config.seed}", _samples(loaded, config)
    elif hasattr(loaded.system, "reconstruct"):
        name, sheet = "sample_reconstructions", _reconstructions(loaded, config)
    else:
        raise Refusal(f"run: {type(loaded.system).__name__} neither generates nor reconstructs; use evaluate")
    path = Path(config.output) if config.output else loaded.folder / "pictures" / f"{name}.png"
    try:
        save(sheet.picture(), path)
    except OSError as error:
        raise KinoscopeError(f"'{path}' cannot be written ({error.strerror or error})") from error
    show(path)
    return 0


def _samples(loaded: Run, config: DictConfig) -> Sheet:
    return draw_samples(as_pixels(loaded.sample(config.n, seed=config.seed)), clock=loaded.steps)


@torch.inference_mode()
def _reconstructions(loaded: Run, config: DictConfig) -> Sheet:
    """The first test images and what the autoencoder makes of them."""
    datamodule = build_datamodule(with_changes(loaded.config, config), (*TRUSTED, *config.trust))
    datamodule.prepare_data()
    datamodule.setup("test")
    n = min(config.n, 16)  # more would not fit into a strip
    batch = next(iter(datamodule.test_dataloader()))
    pixels = batch["image"][:n]  # (n, C, H, W) uint8, as it leaves the loader
    images = loaded.preprocess(pixels).to(loaded.system.device)
    reconstruct = cast(ReconstructionEvaluation, loaded.system).reconstruct
    pair = [loaded.denormalise(x).float().cpu() for x in (images, reconstruct({"image": images}))]
    return draw_strip(*pair, subset="test")
