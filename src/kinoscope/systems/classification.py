"""Supervised classification of images, clips and videos.

Shape legend: B batch, V views, C channels, T frames, H height, W width, K classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from kinoscope.contracts import Batch
from kinoscope.metrics.accuracy import ViewAccuracy, hits
from kinoscope.metrics.mean import Mean
from kinoscope.objectives.precision import full
from kinoscope.systems.base import OptimizerFactory, SchedulerFactory, System, scheduled, trainable


class Classification(System):
    """Softmax cross-entropy (single label) or K logistic losses (multi-label, summed over classes).

    A video's answer is the mean of its views' softmax. Losses are nats per clip.

    Args:
        network: (B, *spec.shape) → logits (B, K). One whose ``forward`` has an argument ``length`` is told how many
            frames of each sample are no padding, (B,) int64.
        optimizer: makes an optimizer from parameters.
        scheduler: makes a learning-rate schedule from the optimizer.
        scheduler_interval: whether the schedule counts epochs or optimizer steps.
        scheduler_monitor: the metric a plateau schedule watches.
        log_every: steps per logging window.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
        scheduler_monitor: str | None = None,
        log_every: int = 20,
    ) -> None:
        super().__init__(log_every=log_every)
        self.network = network
        self.takes_length = "length" in inspect.signature(network.forward).parameters
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.scheduler_interval: Literal["epoch", "step"] = scheduler_interval
        self.scheduler_monitor = scheduler_monitor
        self.accuracy = ViewAccuracy()
        self.mean_loss = Mean()

    @property
    def entries(self) -> list[tuple[nn.Module, Sequence[str]]]:
        return [(self.network, ("forward",))]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(trainable(self.network))
        return scheduled(optimizer, self.scheduler, self.scheduler_interval, self.scheduler_monitor)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self.logits(sample_of(batch), batch.get("length"))
        loss = cross_entropy(logits, batch["label"])
        accuracy = hits(logits.detach(), batch["label"], k=1).float().mean()
        self.observe({"loss": loss, "accuracy": accuracy}, count=len(logits))
        return loss

    def logits(self, x: Tensor, length: Tensor | None = None) -> Tensor:
        """Of one clip or image each, (B, K); without ``length`` (B,) every frame counts."""
        if not self.takes_length:
            return self.network(x)
        if length is None:
            length = torch.full((len(x),), x.shape[2], device=x.device)
        return self.network(x, length)

    def view_logits(self, batch: Batch) -> Tensor:
        """Logits of every view, (B, V, K); a clip or an image is one view. One view at a time bounds the memory."""
        views = views_of(batch).unbind(dim=1)
        return torch.stack([self.logits(view, batch.get("length")) for view in views], dim=1)

    def predict(self, batch: Batch) -> Tensor:
        """Class probabilities (B, K): the mean of the views' softmax (logistic for multi-label)."""
        return self._probabilities(self.view_logits(batch), batch.get("label")).mean(dim=1)

    def _probabilities(self, logits: Tensor, label: Tensor | None) -> Tensor:
        multi_label = self.spec.multi_label if self.spec else label is not None and label.ndim == 2
        return full(logits).sigmoid() if multi_label else full(logits).softmax(dim=-1)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        logits = self.view_logits(batch)  # (B, V, K)
        views = logits.shape[1]
        probs = self._probabilities(logits, batch["label"])
        self.accuracy.update(probs, batch["label"])
        self.mean_loss.update(nats(logits.flatten(0, 1), batch["label"].repeat_interleave(views, dim=0)))
        return {"probs": probs.mean(dim=1), "label": batch["label"]}

    test_step = validation_step

    def conclude(self, stage: Literal["val", "test"]) -> None:
        values = {"loss": self.mean_loss.compute(), **self.accuracy.compute()}
        self.publish({f"{stage}/{name}": float(value) for name, value in values.items()})
        metrics: tuple[Metric, ...] = (self.accuracy, self.mean_loss)
        for metric in metrics:
            metric.reset()


def sample_of(batch: Batch) -> Tensor:
    """The network's input in a batch: its clip (B, C, T, H, W), image (B, C, H, W) or, alone, flow (B, 2L, H, W)."""
    return next(batch[name] for name in ("video", "image", "flow") if name in batch)


def views_of(batch: Batch) -> Tensor:
    """All views of each sample, (B, V, …): those of a video's clips or flow; anything else is one view."""
    if "clips" in batch:
        return batch["clips"]
    sample = sample_of(batch)
    return sample if sample is batch.get("flow") and sample.ndim == 5 else sample[:, None]


def nats(logits: Tensor, label: Tensor) -> Tensor:
    """Each sample's loss in nats, (B,); for multi-hot labels (B, K) the sum of K logistic losses."""
    logits = full(logits)
    if label.ndim == 1:
        return F.cross_entropy(logits, label, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, label.to(logits.dtype), reduction="none").sum(dim=1)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Nats per sample, mean over the batch."""
    return nats(logits, label).mean()
