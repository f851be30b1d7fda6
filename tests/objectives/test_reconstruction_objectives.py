"""Squared error: summed over an image, averaged over the batch."""

from __future__ import annotations

import torch

from kinoscope.objectives.reconstruction import SquaredError, squared_error


def test_sum_over_the_image_and_mean_over_the_batch() -> None:
    target = torch.zeros(3, 2, 4, 4)
    reconstruction = torch.stack([torch.full((2, 4, 4), float(i)) for i in range(3)])  # off by 0, 1, 2 everywhere
    assert squared_error(reconstruction, target).tolist() == [0, 32, 128]
    torch.testing.assert_close(SquaredError()(reconstruction, target), torch.tensor(160 / 3))


def test_gradient_has_no_hidden_factor() -> None:
    reconstruction = torch.randn(5, 1, 2, 2, requires_grad=True)
    target = torch.randn(5, 1, 2, 2)
    SquaredError()(reconstruction, target).backward()
    torch.testing.assert_close(reconstruction.grad, 2 * (reconstruction - target).detach() / 5)


def test_half_precision_is_summed_in_single() -> None:
    ones = torch.ones(1, 1, 64, 64, dtype=torch.float16) * 8
    assert squared_error(ones, torch.zeros_like(ones)).item() == 64 * 64 * 64  # 262,144 overflows float16
