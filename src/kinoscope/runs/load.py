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
from kinoscope.data.clips import Sampler
from kinoscope.data.flow_stacks import FlowStacks
from kinoscope.data.preprocess import LUMA, VideoPreprocess, zero_padding
from kinoscope.errors import KinoscopeError
from kinoscope.runs.build import TRUSTED, build_flow, build_preprocess, build_system
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
        flow: how frames become flow, where the network sees flow.
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
    flow: FlowStacks | None = None

    def denormalise(self, x: Tensor) -> Tensor:
        """The network's inputs or outputs back on the pixel scale 0…1."""
        return cast(Any, self.preprocess.to(x.device)).denormalise(x)

    @torch.inference_mode()
    def predict(self, sample: np.ndarray | Tensor, views: int = 10, fps: float | None = None) -> Tensor:
        """Class probabilities (K,) of one video (T, H, W, C) or image (H, W, C), uint8, of any resolution.

        A video is judged by ``views`` clips spread evenly over it, each sampled and preprocessed as in training; as one
        sequence where it was trained so (``data.sampling=all``).

        Args:
            sample: the pixels.
            views: clips of a video.
            fps: frames per second of the video; only a run with ``data.sequence_fps`` asks for them.

        Raises:
            KinoscopeError: wrong dtype or number of axes, a video shorter than a clip, or one whose ``fps`` is needed.
        """
        if not hasattr(self.system, "predict"):
            raise KinoscopeError(f"{type(self.system).__name__} has no classes to predict")
        pixels = self._uint8(sample, axes=3 if self.spec.modality == "image" else 4)
        if self.spec.modality == "image":
            batch: Batch = {"image": self._preprocess(pixels.permute(2, 0, 1)[None].to(self.system.device))}
        elif self.flow is not None:
            numbers, _ = Sampler(frames=self.flow.needed).views(len(pixels), views=views)  # (V, L + 1)
            stacks = [self._stack(pixels[torch.from_numpy(clip).to(pixels.device)]) for clip in numbers]
            batch = {"flow": torch.stack(stacks)[None].to(self.system.device)}
        else:
            data = self.config.data
            sampler = Sampler(
                data.get("sampling", "random"), self.spec.shape[1], int(data.stride), data.get("sequence_fps")
            )
            if sampler.fps is not None and not fps:
                raise KinoscopeError(
                    f"this run sees {sampler.fps:g} frames per second: say how many the video has, fps=…"
                )
            numbers, lengths = sampler.views(len(pixels), fps or 0.0, 1 if sampler.mode == "all" else views)
            clips = pixels[torch.from_numpy(numbers).to(pixels.device)].permute(0, 4, 1, 2, 3)  # (V, C, T, H, W)
            x = self._preprocess(clips.to(self.system.device))
            length = torch.from_numpy(lengths.astype(np.int64)).to(x.device)
            batch = {"clips": zero_padding(x, length)[None]}
            if sampler.mode == "all":
                batch["length"] = length
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

    def _stack(self, frames: Tensor) -> Tensor:
        """The stack of flow between frames (L + 1, H, W, 3): (2L, S, S). As kept, but grey is made from RGB here."""
        assert self.flow is not None
        preprocess = cast(VideoPreprocess, self.preprocess)
        resized = preprocess.fit(frames.cpu().permute(3, 0, 1, 2)[None])[0]  # (3, L + 1, h, w)
        luma = (resized.float() * torch.tensor(LUMA).view(3, 1, 1, 1)).sum(dim=0).round().to(torch.uint8)
        stored, bounds = self.flow.computed(luma.numpy())
        return preprocess.flow_crops(self.flow(stored[None], bounds[None]))[0, 0]

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
    return Run(
        run.path, config, system.spec, preprocess.eval(), system.eval(), path, state["global_step"],
        build_flow(config, allowed),
    )  # fmt: skip
