"""The mean over a data set: the same, however its values are dealt out."""

from __future__ import annotations

import math

import torch

from kinoscope.metrics.mean import Mean


def mean_of(values: torch.Tensor, *sizes: int) -> float:
    made = Mean()
    for part in values.split(list(sizes)):
        made.update(part)
    return float(made.compute())


def test_batches_and_order_do_not_matter() -> None:
    """A million values are averaged as exactly as float64 can: in float32 their sum would be off in the fifth digit."""
    values = 10 * torch.rand(10**6, generator=torch.Generator().manual_seed(0))
    exact = math.fsum(values.tolist()) / len(values)
    for order, sizes in ((values, (10**6,)), (values.flip(0), (1, 7, 10**6 - 8)), (values.sort().values, (999_999, 1))):
        assert mean_of(order, *sizes) == exact


def test_a_value_that_is_no_number_is_not_hidden() -> None:
    assert math.isnan(mean_of(torch.tensor([1.0, torch.nan, 2.0]), 3))
