"""Accuracy over clips and videos, against the definitions written out."""

from __future__ import annotations

import torch

from kinoscope.metrics.accuracy import ViewAccuracy, hits


def test_hit_k_with_single_labels_is_top_k_accuracy() -> None:
    scores = torch.rand(200, 10, generator=torch.Generator().manual_seed(0))
    label = torch.arange(200) % 10
    for k in (1, 3, 5, 10):
        slow = [label[i].item() in scores[i].argsort(descending=True)[:k].tolist() for i in range(200)]
        assert hits(scores, label, k).tolist() == slow


def test_hit_k_of_several_labels_needs_only_one_of_them() -> None:
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    label = torch.tensor([[0, 1, 1], [0, 0, 1]])
    assert hits(scores, label, 1).tolist() == [False, False]
    assert hits(scores, label, 2).tolist() == [True, False]
    assert (hits(scores, label, 1).sum() <= hits(scores, label, 3).sum()).item()


def test_a_video_is_judged_by_the_mean_of_its_views_and_a_clip_alone() -> None:
    # Two of three views of video 0 are wrong by little, one is right by much: the video is right.
    probs = torch.tensor([[[0.4, 0.6], [0.4, 0.6], [0.9, 0.1]], [[0.2, 0.8], [0.1, 0.9], [0.3, 0.7]]])
    metric = ViewAccuracy()
    metric.update(probs, torch.tensor([0, 1]))
    result = {name: value.item() for name, value in metric.compute().items()}
    assert result["video_accuracy"] == 1.0
    assert abs(result["clip_accuracy"] - 4 / 6) < 1e-7
    assert result["video_hit5"] == 1.0


def test_order_of_views_and_batching_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    probs, label = torch.rand(37, 4, 6, generator=generator), torch.randint(6, (37,), generator=generator)
    whole, split = ViewAccuracy(), ViewAccuracy()
    whole.update(probs, label)
    for part in (slice(0, 10), slice(10, 37)):
        split.update(probs[part].flip(1), label[part])
    assert whole.compute() == split.compute()
