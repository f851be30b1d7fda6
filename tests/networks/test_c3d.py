"""Tran et al. 2015: counts and shapes of the paper and of its released model, and what a pooled output sees."""

from __future__ import annotations

import pytest
import torch
from counting import on_meta, parameters, shapes
from torch import nn

from kinoscope.networks.video.c3d import C3D

QUARTER = ((16,), (32,), (64, 64), (128, 128), (128, 128))


@pytest.mark.parametrize(("num_classes", "count"), [(101, 78_409_573), (487, 79_991_015)])
def test_parameters_at_paper_size(num_classes: int, count: int) -> None:
    net = on_meta(lambda: C3D(num_classes))
    assert parameters(net) == count
    assert parameters(net.get_submodule("features")) == 27_655_936


def test_parameters_layer_by_layer() -> None:
    net = on_meta(lambda: C3D(101))
    expected = {
        "features.conv1a": 5_248,
        "features.conv2a": 221_312,
        "features.conv3a": 884_992,
        "features.conv3b": 1_769_728,
        "features.conv4a": 3_539_456,
        "features.conv4b": 7_078_400,
        "features.conv5a": 7_078_400,
        "features.conv5b": 7_078_400,
        "head.fc6": 33_558_528,
        "head.fc7": 16_781_312,
        "head.fc8": 413_797,
    }
    assert {name: parameters(net.get_submodule(name)) for name in expected} == expected


def test_parameters_of_the_papers_small_network() -> None:
    widths = ((64,), (128,), (256,), (256,), (256,))
    assert parameters(on_meta(lambda: C3D(101, widths=widths, fc=(2048, 2048)))) == 17_444_965


def test_shapes_at_paper_size() -> None:
    net = on_meta(lambda: C3D(101))
    assert isinstance(net, C3D)
    seen = shapes(net, net.features, 3, 16, 112, 112)
    assert {name: shape for name, shape in seen.items() if "relu" not in name} == {
        "conv1a": (64, 16, 112, 112),
        "pool1": (64, 16, 56, 56),
        "conv2a": (128, 16, 56, 56),
        "pool2": (128, 8, 28, 28),
        "conv3a": (256, 8, 28, 28),
        "conv3b": (256, 8, 28, 28),
        "pool3": (256, 4, 14, 14),
        "conv4a": (512, 4, 14, 14),
        "conv4b": (512, 4, 14, 14),
        "pool4": (512, 2, 7, 7),
        "conv5a": (512, 2, 7, 7),
        "conv5b": (512, 2, 7, 7),
        "pool5": (512, 1, 4, 4),
    }
    assert parameters(net.head[0]) == (8_192 + 1) * 4096


def test_rounding_pool5_down_leaves_three_by_three() -> None:
    net = on_meta(lambda: C3D(101, pool_ceil=False))
    assert parameters(net.get_submodule("head.fc6")) == (512 * 3 * 3 + 1) * 4096


@pytest.mark.parametrize(("frames", "size"), [(16, 56), (16, 64), (10, 48)])
def test_a_quarter_of_the_width_gives_logits_and_gradients(frames: int, size: int) -> None:
    torch.manual_seed(0)
    net = C3D(6, frames=frames, size=size, widths=QUARTER, fc=(32,), init="he")
    logits = net(torch.randn(1, 3, frames, size, size))
    assert logits.shape == (1, 6)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_one_pool5_output_sees_76_frames() -> None:
    """With averages for maxima and positive weights nothing hides what reaches an output."""
    frames = 128
    net = C3D(2, frames=frames, size=32, widths=((1,), (1,), (1, 1), (1, 1), (1, 1)), fc=()).double()
    for parameter in net.features.parameters():
        nn.init.constant_(parameter, 0.1)
    for name, layer in list(net.features.named_children()):
        if isinstance(layer, nn.MaxPool3d):
            setattr(net.features, name, nn.AvgPool3d(layer.kernel_size, ceil_mode=layer.ceil_mode))
    clip = torch.ones(1, 3, frames, 32, 32, dtype=torch.float64, requires_grad=True)
    output = net.features(clip)
    assert output.shape[2] == frames // 16
    (gradient,) = torch.autograd.grad(output[:, :, 4].sum(), clip)
    seen = gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten()
    assert len(seen) == 76 and seen[-1] - seen[0] == 75


def test_initial_weights_are_the_released_models() -> None:
    torch.manual_seed(0)
    net = C3D(6, frames=8, size=32, widths=QUARTER, fc=(64, 64))
    for name, layer in [*net.features.named_children(), *net.head.named_children()]:
        if isinstance(layer, (nn.Conv3d, nn.Linear)):
            std = 0.005 if name in ("fc6", "fc7") else 0.01
            # The sample deviation of n normal draws has standard error σ / √(2n); five of them.
            assert abs(layer.weight.std().item() / std - 1) < 5 / (2 * layer.weight.numel()) ** 0.5, name
            assert layer.bias is not None
            assert layer.bias.unique().tolist() == [0.0 if name in ("conv1a", "fc8") else 1.0]


def test_a_clip_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nothing is left after pool4 of a clip of 4 frames"):
        C3D(6, frames=4, pool_ceil=False, widths=QUARTER)
