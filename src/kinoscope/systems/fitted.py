"""What is fitted without gradients, behind the same verbs as everything else."""

from __future__ import annotations

from typing import ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from kinoscope.contracts import Batch
from kinoscope.systems.autoencoder import ReconstructionEvaluation


class Estimator(Protocol):
    """Fits itself to all training images (N, C, H, W) at once; what it learns are its buffers."""

    def fit(self, images: Tensor) -> None: ...


class Fitted(ReconstructionEvaluation):
    """One pass over the training data, one call of ``network.fit``; then evaluated as an autoencoder.

    The pass collects the images on the CPU, so the training set must fit into memory. A checkpoint in mid-pass would
    hold nothing worth keeping: an interrupted fit begins again.

    Args:
        network: an estimator with ``fit``, ``encode`` and ``decode``.
        log_every: kept for symmetry with the other systems; a fit logs nothing before its end.
    """

    resumes_mid_epoch: ClassVar[bool] = False
    ddp: ClassVar[bool] = False  # one fit of all images
    fsdp: ClassVar[bool] = False

    def __init__(self, network: nn.Module, log_every: int = 20) -> None:
        super().__init__(network, log_every=log_every)
        self.automatic_optimization = False
        self._images: list[Tensor] = []

    def configure_optimizers(self) -> None:
        return None

    def on_train_epoch_start(self) -> None:
        self._images = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._images.append(batch["image"].cpu())
        if self.trainer.is_last_batch:  # before this epoch's validation
            cast(Estimator, self.network).fit(torch.cat(self._images))
            self._images = []
