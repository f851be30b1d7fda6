"""``kinoscope.load_run``: a finished or running run, ready to predict, sample or encode."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from kinoscope.contracts import Batch, DataSpec
from kinoscope.data.clips import view_starts
from kinoscope.errors import KinoscopeError
from kinoscope.runs.build import TRUSTED, build_preprocess, build_system
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.systems.base import System

log = logging.getLogger("kinoscope")

CheckpointName = Literal["best", "last"]


@dataclass(frozen=True)
class Run:
    """A loaded run, in evaluation mode on the CPU (``run.system.to("cuda")`` moves it).

    Attributes:
        folder: where it lies.
        config: its resolved config.
        spec: what its data are.
        preprocess: uint8 → the network's input, as in training.
        system: the trained LightningModule.
        checkpoint: the file that was loaded.
        steps: the optimizer steps (of the generator, for a GAN) behind it.
    """

    folder: Path
    config: DictConfig
    spec: DataSpec
    preprocess: nn.Module
    system: System
    checkpoint: Path
    steps: int

    def denormalise(self, x: Tensor) -> Tensor:
        """The network's inputs or outputs back on the pixel scale 0…1."""
        return cast(Any, self.preprocess.to(x.device)).denormalise(x)

    @torch.inference_mode()
    def predict(self, sample: np.ndarray | Tensor, views: int = 10) -> Tensor:
        """Class probabilities (K,) of one video (T, H, W, C) or image (H, W, C), uint8, of any resolution.

        A video is judged by ``views`` clips spread evenly over it, each preprocessed as in training.

        Raises:
            KinoscopeError: wrong dtype or number of axes, or a video shorter than a clip.
        """
        if not hasattr(self.system, "predict"):
            raise KinoscopeError(f"{type(self.system).__name__} has no classes to predict")
        pixels = self._uint8(sample, axes={"video": 4, "image": 3}[self.spec.modality])
        if self.spec.modality == "image":
            batch: Batch = {"image": self._preprocess(pixels.permute(2, 0, 1)[None].to(self.system.device))}
        else:
            frames, stride = self.spec.shape[1], int(self.config.data.stride)
            starts = view_starts(len(pixels), frames, stride, views)
            clips = torch.stack([pixels[start : start + (frames - 1) * stride + 1 : stride] for start in starts])
            clips = clips.permute(0, 4, 1, 2, 3)  # (V, C, T, H, W)
            batch = {"clips": self._preprocess(clips.to(self.system.device))[None]}
        return cast(Any, self.system).predict(batch)[0]

    @torch.inference_mode()
    def sample(self, n: int, seed: int = 0) -> Tensor:
        """Generated images (n, C, H, W), float in 0…1."""
        if not hasattr(self.system, "sample"):
            raise KinoscopeError(f"{type(self.system).__name__} generates nothing")
        return self.denormalise(cast(Any, self.system).sample(n, seed=seed))

    @torch.inference_mode()
    def encode(self, images: np.ndarray | Tensor) -> Tensor:
        """Codes (B, k) of images (B, H, W, C), uint8."""
        if not hasattr(self.system, "encode"):
            raise KinoscopeError(f"{type(self.system).__name__} encodes nothing")
        return cast(Any, self.system).encode({"image": self._images(images)})

    @torch.inference_mode()
    def reconstruct(self, images: np.ndarray | Tensor) -> Tensor:
        """Images (B, H, W, C), uint8 → their reconstructions (B, C, H, W), float in 0…1."""
        if not hasattr(self.system, "reconstruct"):
            raise KinoscopeError(f"{type(self.system).__name__} reconstructs nothing")
        reconstruction = cast(Any, self.system).reconstruct({"image": self._images(images)})
        return self.denormalise(reconstruction)

    def _preprocess(self, pixels: Tensor) -> Tensor:
        return self.preprocess.to(pixels.device)(pixels)

    def _images(self, images: np.ndarray | Tensor) -> Tensor:
        return self._preprocess(self._uint8(images, axes=4).permute(0, 3, 1, 2).to(self.system.device))

    @staticmethod
    def _uint8(sample: np.ndarray | Tensor, axes: int) -> Tensor:
        tensor = torch.as_tensor(sample)
        if tensor.dtype != torch.uint8 or tensor.ndim != axes:
            raise KinoscopeError(
                f"expected uint8 pixels with {axes} axes, channels last; got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
        return tensor


def load_run(folder: str | Path, checkpoint: CheckpointName = "best", trust: Sequence[str] = ()) -> Run:
    """Rebuilds a run from its folder.

    Only classes of kinoscope, torch.nn and torch.optim are built, and only tensors are loaded, so a folder from
    elsewhere cannot run code of its own.

    Args:
        folder: a run folder.
        checkpoint: which one; ``best`` is ``last`` where the run has no monitor.
        trust: names of further packages whose classes the config may name (your own models).

    Raises:
        Refusal: not a run folder, no checkpoint yet, or a target outside the trusted packages.
        KinoscopeError: the checkpoint is torn, or belongs to another config.
    """
    run = RunFolder.open(folder)
    config = run.read_config()
    allowed = (*TRUSTED, *trust)
    path = run.trained(checkpoint)
    system = build_system(config, allowed)
    preprocess = build_preprocess(config, allowed)
    state = read_checkpoint(path)
    ours, theirs = run.read_summary().get("signature"), state["kinoscope"]["signature"]
    if ours != theirs:
        raise KinoscopeError(f"'{path}' belongs to another experiment (signature {theirs}, this run's is {ours})")
    try:
        system.load_state_dict(state["state_dict"])
        preprocess.load_state_dict(state["kinoscope"]["preprocess"])
    except RuntimeError as error:
        raise KinoscopeError(f"'{path}' does not fit the config beside it: {str(error).splitlines()[0]}") from error
    assert system.spec is not None
    return Run(run.path, config, system.spec, preprocess.eval(), system.eval(), path, state["global_step"])
