"""Autoencoders trained by gradient descent on a reconstruction objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast

from torch import Tensor, nn

from kinoscope.contracts import Autoencoder as AutoencoderNetwork
from kinoscope.contracts import Batch
from kinoscope.metrics.mean import Mean
from kinoscope.objectives.reconstruction import squared_error
from kinoscope.systems.base import OptimizerFactory, SchedulerFactory, System, scheduled, trainable


class ReconstructionObjective(Protocol):
    """(reconstruction, target), both (B, C, H, W) → a scalar: summed over dimensions, mean over the batch."""

    def __call__(self, reconstruction: Tensor, target: Tensor) -> Tensor: ...


class ReconstructionEvaluation(System):
    """What gradient-trained and fitted autoencoders share: reconstruct, and measure the squared error.

    ``squared_error`` is the sum over an image's values of (x − x̂)², mean over images, in the units of the
    preprocessing (the pixel scale 0…1 unless the config says otherwise).
    """

    network: nn.Module

    def __init__(self, network: nn.Module, log_every: int = 20) -> None:
        super().__init__(log_every=log_every)
        self.network = network
        self.mean_squared_error = Mean()

    @property
    def codec(self) -> AutoencoderNetwork:
        return cast(AutoencoderNetwork, self.network)

    def encode(self, batch: Batch) -> Tensor:
        """The code of each image, (B, k)."""
        return self.codec.encode(batch["image"])

    def reconstruct(self, batch: Batch) -> Tensor:
        """Each image after encoding and decoding, (B, C, H, W)."""
        return self.codec.decode(self.encode(batch))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        reconstruction = self.reconstruct(batch)
        self.mean_squared_error.update(squared_error(reconstruction, batch["image"]))
        return {"reconstruction": reconstruction}

    test_step = validation_step

    def conclude(self, stage: Literal["val", "test"]) -> None:
        self.publish({f"{stage}/squared_error": float(self.mean_squared_error.compute())})
        self.mean_squared_error.reset()


class Autoencoder(ReconstructionEvaluation):
    """An encoder and a decoder trained together.

    Args:
        network: encode (B, C, H, W) → (B, k) and decode back.
        optimizer: makes an optimizer from parameters.
        objective: what is minimised; the default configs use the squared error.
        scheduler: makes a learning-rate schedule from the optimizer.
        scheduler_interval: whether the schedule counts epochs or optimizer steps.
        scheduler_monitor: the metric a plateau schedule watches.
        log_every: steps per logging window.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory,
        objective: ReconstructionObjective,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        scheduler_monitor: str | None = None,
        log_every: int = 20,
    ) -> None:
        super().__init__(network, log_every=log_every)
        self.optimizer = optimizer
        self.objective = objective
        self.scheduler = scheduler
        self.scheduler_interval: Literal["epoch", "step"] = scheduler_interval
        self.scheduler_monitor = scheduler_monitor

    @property
    def entries(self) -> list[tuple[nn.Module, Sequence[str]]]:
        return [(self.network, ("encode", "decode"))]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(trainable(self.network))
        return scheduled(optimizer, self.scheduler, self.scheduler_interval, self.scheduler_monitor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.objective(self.reconstruct(batch), batch["image"])
        self.observe({"loss": loss}, count=len(batch["image"]))
        return loss
