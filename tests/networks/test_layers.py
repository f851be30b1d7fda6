"""Local response normalisation, pooling, output lengths and initial weights, against torch and the printed formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kinoscope.networks.layers.fully_connected import fully_connected
from kinoscope.networks.layers.init import he_
from kinoscope.networks.layers.lrn import LocalResponseNorm, window_sum
from kinoscope.networks.layers.pooling import MaxPool3d
from kinoscope.networks.layers.sizes import out_length


@pytest.mark.parametrize("shape", [(2, 8, 5, 5), (2, 8, 3, 4, 4), (2, 3, 4, 4), (2, 1, 4, 4)])
@pytest.mark.parametrize("beta", [0.5, 0.75])
def test_lrn_is_torchs_with_alpha_times_n(shape: tuple[int, ...], beta: float) -> None:
    x = 20 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = LocalResponseNorm(size=5, alpha=1e-4, beta=beta, k=2.0)(x)
    torch.testing.assert_close(ours, nn.LocalResponseNorm(5, alpha=5e-4, beta=beta, k=2.0)(x))
    if shape[1] > 1:
        assert not torch.allclose(ours, nn.LocalResponseNorm(5, alpha=1e-4, beta=beta, k=2.0)(x), rtol=1e-3)


def test_lrn_is_the_papers_formula() -> None:
    x = 30 * torch.randn(1, 7, 1, 1, generator=torch.Generator().manual_seed(1))
    a = x.flatten().tolist()
    expected = [
        a[i] / (2 + 1e-4 * sum(a[j] ** 2 for j in range(max(0, i - 2), min(7, i + 3)))) ** 0.75 for i in range(7)
    ]
    torch.testing.assert_close(LocalResponseNorm()(x).flatten(), torch.tensor(expected))


def test_lrn_gradient() -> None:
    x = (10 * torch.randn(2, 6, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(LocalResponseNorm(alpha=1e-2, beta=0.75), (x,))


def test_lrn_in_half_precision_keeps_the_small_sum() -> None:
    x = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(3)).bfloat16()
    ours = LocalResponseNorm(beta=0.5)(x)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), LocalResponseNorm(beta=0.5)(x.float()), rtol=2**-8, atol=0)


def test_lrn_wants_a_centre_channel() -> None:
    with pytest.raises(ValueError, match="odd number"):
        LocalResponseNorm(size=4)


def test_window_sum_clips_at_the_ends() -> None:
    ones = torch.ones(1, 6, 1)
    assert window_sum(ones, 5).flatten().tolist() == [3, 4, 5, 5, 4, 3]
    assert window_sum(ones, 1).flatten().tolist() == [1] * 6
    assert window_sum(torch.ones(1, 2, 1), 5).flatten().tolist() == [2, 2]


@pytest.mark.parametrize("ceil", [False, True])
def test_out_length_is_torchs(ceil: bool) -> None:
    for length in range(1, 15):
        for kernel, stride, padding in [(2, 2, 0), (3, 2, 0), (3, 2, 1), (1, 2, 0), (2, 1, 1), (3, 3, 1)]:
            if length + 2 * padding >= kernel:
                pool = nn.MaxPool1d(kernel, stride, padding, ceil_mode=ceil)
                expected = pool(torch.zeros(1, 1, length)).shape[-1]
                assert out_length(length, kernel, stride, padding, ceil) == expected


def test_out_length_of_the_papers_that_round_up() -> None:
    assert out_length(26, 2, 2, ceil=True) == 13
    assert out_length(112, 3, 2, ceil=True) == 56
    assert out_length(7, 2, 2, ceil=True) == 4
    assert out_length(1, 2, 2) < 1


def test_the_head_is_named_as_in_the_papers() -> None:
    head = fully_connected(10, (4, 3), num_classes=2)
    linear = {
        name: (layer.in_features, layer.out_features)
        for name, layer in head.named_children()
        if isinstance(layer, nn.Linear)
    }
    assert linear == {"fc6": (10, 4), "fc7": (4, 3), "fc8": (3, 2)}


def test_he_keeps_the_signal_and_the_first_loss_is_log_k() -> None:
    torch.manual_seed(0)
    net = nn.Sequential()
    for _ in range(8):
        net.extend([nn.Linear(512, 512), nn.ReLU()])
    net.append(nn.Linear(512, 5))
    he_(net)
    x = torch.randn(256, 512)
    # E h² = 1 after every ReLU in expectation; of width n and depth d it strays by about √(5d/n) = 0.28.
    assert 1 / 3 < net[:-1](x).square().mean().item() < 3
    loss = nn.functional.cross_entropy(net(x), torch.arange(256) % 5)
    assert abs(loss.item() - torch.tensor(5.0).log().item()) < 0.1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["first", "last"])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("window", [(1, 2, 2), (2, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("shape", [(2, 3, 6, 8, 10), (2, 3, 5, 7, 9), (1, 1, 3, 4, 4)])
def test_pooling_by_planes_is_pooling(
    shape: tuple[int, ...], window: tuple[int, int, int], ceil: bool, layout: torch.memory_format
) -> None:
    """Values and gradients to the bit; of pixels that are small whole numbers many are the greatest of a window."""
    pixels = (
        torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0)).float().contiguous(memory_format=layout)
    )
    pool = MaxPool3d(window, ceil_mode=ceil)
    planes, torchs = (pixels.clone().requires_grad_() for _ in range(2))
    ours, theirs = pool.by_planes(planes), nn.MaxPool3d(window, ceil_mode=ceil)(torchs)
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=layout)
    gradient = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    ours.backward(gradient)
    theirs.backward(gradient)
    assert planes.grad is not None and torchs.grad is not None
    assert torch.equal(planes.grad, torchs.grad)
    assert torch.equal(pool(pixels), theirs)
