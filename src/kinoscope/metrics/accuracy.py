"""Accuracy over clips and over videos, from the softmax of every view."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


def hits(scores: Tensor, label: Tensor, k: int) -> Tensor:
    """Hit@k: whether at least one true label is among the k best scores (Karpathy et al. 2014, section 4.1).

    Args:
        scores: (N, K).
        label: (N,) int64, or (N, K) multi-hot.
        k: how many of the best scores count; at most K of them are looked at.

    Returns:
        (N,) bool. With single labels this is top-k accuracy.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    if label.ndim == 1:
        return (best == label[:, None]).any(dim=1)
    return label.gather(1, best).bool().any(dim=1)


class ViewAccuracy(Metric):
    """Shares of right answers in 0…1 over V views of each sample.

    ``compute`` returns ``clip_accuracy`` (every view judged alone), ``video_accuracy`` and ``video_hit5`` (the mean of
    the views' softmax judged). Sums are kept, so that several ranks give the very same figures as one.
    """

    full_state_update = False
    higher_is_better = True

    clips: Tensor
    videos: Tensor
    clip_hits: Tensor
    video_hits: Tensor
    video_hits5: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("clips", "videos", "clip_hits", "video_hits", "video_hits5"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, probs: Tensor, label: Tensor) -> None:
        """Adds probs (B, V, K) with label (B,) int64 or (B, K) multi-hot."""
        batch, views, _ = probs.shape
        video = probs.mean(dim=1)
        self.clips += batch * views
        self.videos += batch
        self.clip_hits += hits(probs.flatten(0, 1), label.repeat_interleave(views, dim=0), k=1).sum()
        self.video_hits += hits(video, label, k=1).sum()
        self.video_hits5 += hits(video, label, k=5).sum()

    def compute(self) -> dict[str, Tensor]:
        return {
            "clip_accuracy": self.clip_hits / self.clips,
            "video_accuracy": self.video_hits / self.videos,
            "video_hit5": self.video_hits5 / self.videos,
        }
