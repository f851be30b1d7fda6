"""Classification: its losses and its answers against their definitions."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from kinoscope.contracts import DataSpec
from kinoscope.systems.classification import Classification, cross_entropy


class Means(nn.Module):
    """Logits (B, 3): the mean of each of three channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(dim=2)


def system(multi_label: bool = False) -> Classification:
    made = Classification(Means(), partial(torch.optim.SGD, lr=0.1))
    made.spec = DataSpec("video", (3, 2, 4, 4), ("a", "b", "c"), 3, multi_label)
    return made


def test_cross_entropy_is_minus_log_softmax_and_for_several_labels_a_sum_of_logistic_losses() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    label = torch.tensor([2, 1])
    expected = -(logits - logits.exp().sum(dim=1, keepdim=True).log())[torch.arange(2), label].mean()
    torch.testing.assert_close(cross_entropy(logits, label), expected)
    hot = torch.tensor([[1, 0, 1], [0, 1, 0]])
    probability = logits.sigmoid()
    nats = -(hot * probability.log() + (1 - hot) * (1 - probability).log()).sum(dim=1).mean()
    torch.testing.assert_close(cross_entropy(logits, hot), nats)


def test_uniform_logits_cost_log_k() -> None:
    torch.testing.assert_close(cross_entropy(torch.zeros(4, 7), torch.arange(4)), torch.tensor(7.0).log())


def test_a_videos_answer_is_the_mean_of_its_views_softmax() -> None:
    clips = torch.randn(5, 4, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    slow = torch.stack([Means()(clips[:, v]).softmax(dim=1) for v in range(4)]).mean(dim=0)
    torch.testing.assert_close(system().predict({"clips": clips}), slow)
    torch.testing.assert_close(system().predict({"video": clips[:, 0]}), Means()(clips[:, 0]).softmax(dim=1))


def test_several_labels_are_judged_one_by_one() -> None:
    clips = torch.randn(2, 3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    slow = torch.stack([Means()(clips[:, v]).sigmoid() for v in range(3)]).mean(dim=0)
    torch.testing.assert_close(system(multi_label=True).predict({"clips": clips}), slow)
