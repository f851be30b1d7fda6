"""Karpathy et al. 2014: counts and shapes of the paper, and what each fusion sees of time."""

from __future__ import annotations

import pytest
import torch
from counting import on_meta, parameters, shapes
from torch import nn

from kinoscope.networks.video.deepvideo import DeepVideo, EarlyFusion, LateFusion, SingleFrame, SlowFusion

FUSIONS = (SingleFrame, EarlyFusion, LateFusion, SlowFusion)
CLIP = {SingleFrame: 1, EarlyFusion: 10, LateFusion: 2, SlowFusion: 10}


def small(fusion: type[DeepVideo], frames: int | None = None, size: int = 48, **changes: object) -> DeepVideo:
    torch.manual_seed(0)
    arguments: dict = {"channels": (8, 8, 8, 8, 8), "fc": (16,), "conv1_kernel": 5, "conv1_stride": 2}
    arguments |= {"conv1_padding": 2, "init": "he", **changes}
    return fusion(6, frames=frames, size=size, **arguments).eval()


@pytest.mark.parametrize(
    ("fusion", "num_classes", "count"),
    [
        (SingleFrame, 101, 72_326_629),
        (EarlyFusion, 101, 72_640_261),
        (LateFusion, 101, 123_706_853),
        (SlowFusion, 101, 73_930_309),
        (SingleFrame, 487, 73_908_071),
        (EarlyFusion, 487, 74_221_703),
        (LateFusion, 487, 125_288_295),
        (SlowFusion, 487, 75_511_751),
    ],
)
def test_parameters_at_paper_size(fusion: type[DeepVideo], num_classes: int, count: int) -> None:
    assert parameters(on_meta(lambda: fusion(num_classes))) == count


def test_parameters_layer_by_layer() -> None:
    single, slow = on_meta(lambda: SingleFrame(487)), on_meta(lambda: SlowFusion(487))
    names = ("features.conv1", "features.conv2", "features.conv3", "features.conv4", "features.conv5")
    heads = ("head.fc6", "head.fc7", "head.fc8")
    assert [parameters(single.get_submodule(name)) for name in names + heads] == [
        *(34_944, 614_656, 885_120, 1_327_488, 884_992),
        *(51_384_320, 16_781_312, 1_995_239),
    ]
    assert [parameters(slow.get_submodule(name)) for name in names[:3]] == [139_488, 1_229_056, 1_769_856]


def test_late_fusion_shares_its_towers() -> None:
    late, single = on_meta(lambda: LateFusion(487)), on_meta(lambda: SingleFrame(487))
    assert parameters(late.get_submodule("features")) == parameters(single.get_submodule("features"))


def test_shapes_of_the_single_frame_network() -> None:
    net = on_meta(lambda: SingleFrame(487))
    assert isinstance(net, SingleFrame)
    seen = shapes(net, net.features, 3, 1, 170, 170)
    expected = {
        "conv1": (96, 1, 57, 57),
        "pool1": (96, 1, 28, 28),
        "conv2": (256, 1, 28, 28),
        "pool2": (256, 1, 14, 14),
        "conv3": (384, 1, 14, 14),
        "conv4": (384, 1, 14, 14),
        "conv5": (256, 1, 14, 14),
        "pool3": (256, 1, 7, 7),
    }
    assert {name: seen[name] for name in expected} == expected


def test_shapes_of_slow_fusion() -> None:
    net = on_meta(lambda: SlowFusion(487))
    assert isinstance(net, SlowFusion)
    seen = shapes(net, net.features, 3, 10, 170, 170)
    expected = {
        "conv1": (96, 4, 57, 57),
        "pool1": (96, 4, 28, 28),
        "conv2": (256, 2, 28, 28),
        "pool2": (256, 2, 14, 14),
        "conv3": (384, 1, 14, 14),
        "conv4": (384, 1, 14, 14),
        "conv5": (256, 1, 14, 14),
        "pool3": (256, 1, 7, 7),
    }
    assert {name: seen[name] for name in expected} == expected


@pytest.mark.parametrize(("size", "side"), [(178, 7), (89, 3)])
def test_conv1_padding_on_the_papers_other_inputs(size: int, side: int) -> None:
    """178 pixels reach 7×7 as 170 do; 89 pixels reach 7×7 before pool3, which the two streams leave out."""
    net = on_meta(lambda: SingleFrame(487, size=size))
    assert isinstance(net, SingleFrame)
    seen = shapes(net, net.features, 3, 1, size, size)
    assert seen["pool3"] == (256, 1, side, side)
    if size == 89:
        assert (seen["conv1"][-1], seen["pool1"][-1], seen["pool2"][-1]) == (30, 15, 7)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("size", [48, 56, 64])
def test_a_small_network_gives_logits_and_gradients(fusion: type[DeepVideo], size: int) -> None:
    net = small(fusion, size=size)
    logits = net(torch.randn(2, 3, CLIP[fusion], size, size))
    assert logits.shape == (2, 6)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def frames_seen(net: DeepVideo, layer: str, time: int, frames: int) -> list[int]:
    """Frames of which the output of ``layer`` at ``time`` has a gradient."""
    clip = torch.randn(1, 3, frames, 48, 48, generator=torch.Generator().manual_seed(1)).requires_grad_()
    names = [name for name, _ in net.features.named_children()]
    output = net.features[: names.index(layer) + 1](clip)
    (gradient,) = torch.autograd.grad(output[:, :, time].sum(), clip)
    return gradient.abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()


def test_slow_fusion_sees_ten_frames_at_a_stride_of_eight() -> None:
    net = small(SlowFusion, frames=18)
    for time in range(8):
        assert frames_seen(net, "conv1", time, 18) == list(range(2 * time, 2 * time + 4))
    assert frames_seen(net, "conv3", 0, 18) == list(range(10))
    assert frames_seen(net, "conv3", 1, 18) == list(range(8, 18))
    assert net.features(torch.zeros(1, 3, 18, 48, 48)).shape[2] == 2
    assert net(torch.zeros(1, 3, 18, 48, 48)).shape == (1, 6)  # fc6 has grown with it


def test_one_input_of_fc6_sees_exactly_the_clip_of_slow_fusion() -> None:
    assert frames_seen(small(SlowFusion), "pool3", 0, 10) == list(range(10))


def test_early_fusion_is_a_2d_convolution_on_stacked_channels() -> None:
    net = small(EarlyFusion)
    conv = net.features.conv1
    assert isinstance(conv, nn.Conv3d) and conv.bias is not None
    clip = torch.randn(2, 3, 10, 48, 48)
    flat = nn.functional.conv2d(clip.flatten(1, 2), conv.weight.flatten(1, 2), conv.bias, stride=2, padding=2)
    torch.testing.assert_close(conv(clip).squeeze(2), flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", [2, 16])
def test_late_fusion_is_two_calls_of_one_tower(frames: int) -> None:
    late, single = small(LateFusion, frames), small(SingleFrame)
    single.features.load_state_dict(late.features.state_dict())
    clip = torch.randn(2, 3, frames, 48, 48)
    first, last = (single.features(clip[:, :, t : t + 1]).flatten(1) for t in (0, frames - 1))
    fc6 = late.head[0]
    assert isinstance(fc6, nn.Linear)
    left, right = fc6.weight.chunk(2, dim=1)
    hidden = fc6(late.features(clip).transpose(1, 2).flatten(1))
    torch.testing.assert_close(hidden, first @ left.T + last @ right.T + fc6.bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(late(clip), late.head[1:](hidden), rtol=1e-4, atol=1e-5)


def test_late_fusion_of_equal_frames_has_equal_halves() -> None:
    late = small(LateFusion)
    frame = torch.randn(1, 3, 1, 48, 48)
    features = late.features(frame.expand(-1, -1, 2, -1, -1)).transpose(1, 2).flatten(1)
    left, right = features.chunk(2, dim=1)
    torch.testing.assert_close(left, right)


def test_late_fusion_ignores_the_inner_frames() -> None:
    late = small(LateFusion, frames=16)
    assert frames_seen(late, "conv1", 0, 16) == [0]
    assert frames_seen(late, "conv1", 1, 16) == [15]


def test_initial_weights_are_alexnets() -> None:
    torch.manual_seed(0)
    net = SlowFusion(6, size=64, channels=(32, 48, 64, 64, 48), fc=(128, 64))
    for name, layer in [*net.features.named_children(), *net.head.named_children()]:
        if isinstance(layer, (nn.Conv3d, nn.Linear)):
            n = layer.weight.numel()
            # The sample deviation of n normal draws has standard error σ / √(2n); five of them.
            assert abs(layer.weight.std().item() / 0.01 - 1) < 5 / (2 * n) ** 0.5, name
            assert layer.bias is not None
            assert layer.bias.unique().tolist() == [1.0 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0.0]


@pytest.mark.parametrize(
    ("fusion", "frames", "size", "says"),
    [
        (SingleFrame, 10, 48, "one frame, got 10"),
        (EarlyFusion, 0, 48, "hold a frame"),
        (LateFusion, 1, 48, "two frames, got 1"),
        (SlowFusion, 9, 48, "10, 18, 26"),
        (SlowFusion, 16, 48, "of 16 some would go unseen"),
        (SlowFusion, 10, 14, "nothing is left of a frame of 14×14"),
    ],
)
def test_a_size_that_cannot_work_is_refused(fusion: type[DeepVideo], frames: int, size: int, says: str) -> None:
    with pytest.raises(ValueError, match=says) as fault:
        small(fusion, frames, size)
    assert fusion.__name__ in str(fault.value)


def test_five_convolutions() -> None:
    with pytest.raises(ValueError, match="conv1 to conv5"):
        small(SingleFrame, channels=(8, 8))
