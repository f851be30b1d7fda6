"""Stacks hold the fields that they are said to hold, in the paper's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kinoscope.data.flow import STEPS, STILL, Farneback
from kinoscope.data.flow_stacks import FlowStacks, Stacking, along_trajectories, colours, without_mean
from kinoscope.data.preprocess import VideoPreprocess
from kinoscope.data.transforms import Augmentation

L, H, W = 10, 12, 16


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same draws in each test, whichever tests the process has run before."""
    torch.manual_seed(0)


def stacks(length: int = L, stacking: Stacking = "plain", subtract_mean: bool = False) -> FlowStacks:
    return FlowStacks(Farneback(), length, stacking, subtract_mean)


def stored(flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole displacements (…, L, 2, H, W), at most 127, as they are stored exactly."""
    return (flow + STILL).to(torch.uint8), torch.full(flow.shape[:-3], float(STEPS))


def test_channels_are_x_and_y_of_each_field_in_turn() -> None:
    flow = torch.arange(2.0 * L).view(1, L, 2, 1, 1).expand(3, L, 2, H, W)  # field j = (2j, 2j + 1)
    stack = stacks()(*stored(flow))
    assert stack.shape == (3, 2 * L, H, W)
    assert torch.equal(stack, torch.arange(2.0 * L).view(1, -1, 1, 1).expand_as(stack))


def test_bounds_are_each_fields_own() -> None:
    planes = torch.full((1, 2, 2, 1, 1), STILL + STEPS, dtype=torch.uint8)
    assert stacks(2)(planes, torch.tensor([[3.0, 0.5]])).flatten().tolist() == [3.0, 3.0, 0.5, 0.5]


def test_the_mean_of_every_channel_is_zero_after_subtraction() -> None:
    flow = torch.randn(2, L, 2, H, W).mul(20).round()
    for stacking in ("plain", "trajectory"):
        stack = stacks(stacking=stacking, subtract_mean=True)(*stored(flow))
        assert stack.mean(dim=(-2, -1)).abs().max() < 1e-5
        assert stack.std() > 1
    assert torch.equal(without_mean(torch.full((1, 2, H, W), 7.0)), torch.zeros(1, 2, H, W))


@pytest.mark.parametrize("motion", [(0.0, 0.0), (2.0, -3.0), (0.25, 0.5)])
def test_where_all_moves_alike_trajectories_are_plain_stacks(motion: tuple[float, float]) -> None:
    flow = torch.tensor(motion).view(1, 1, 2, 1, 1).expand(2, L, 2, H, W)
    torch.testing.assert_close(along_trajectories(flow), flow)


def test_a_trajectory_meets_the_field_where_the_pixel_has_got_to() -> None:
    flow = torch.zeros(1, 3, 2, H, W)
    flow[0, 0, :, 5, 4] = torch.tensor([2.0, 1.0])  # from (x 4, y 5) to (6, 6)
    flow[0, 1, :, 6, 6] = torch.tensor([-1.0, 3.0])  # on to (5, 9)
    flow[0, 2, :, 9, 5] = torch.tensor([0.0, 4.0])
    met = along_trajectories(flow)[0, :, :, 5, 4]
    torch.testing.assert_close(met, torch.tensor([[2.0, 1.0], [-1.0, 3.0], [0.0, 4.0]]))
    assert flow[0, 1:, :, 5, 4].abs().sum() == 0  # which a plain stack shows there


def test_a_trajectory_that_leaves_the_frame_stays_at_its_border() -> None:
    flow = torch.zeros(1, 2, 2, H, W)
    flow[0, 0, 0] = 100.0
    flow[0, 1, 1, :, -1] = 3.0
    assert (along_trajectories(flow)[0, 1, 1] == 3).all()


def test_plain_stacks_hold_neighbouring_pairs() -> None:
    pairs, backward = stacks(4).fields(np.array([[0, 7]]))
    assert pairs.tolist() == [[[0, 1, 2, 3], [7, 8, 9, 10]]]
    assert not backward.any()


def test_bidirectional_stacks_look_both_ways_from_the_middle() -> None:
    made = stacks(4, "bidirectional")
    pairs, backward = made.fields(np.array(10))  # frames 10 … 14, middle 12
    assert pairs.tolist() == [12, 13, 11, 10]  # 12→13, 13→14, 12→11, 11→10
    assert backward.tolist() == [False, False, True, True]
    assert made.backward
    assert made.needed == 5


def test_a_computed_stack_sees_a_walk_there_and_back() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48].astype(float)
    waves = rng.uniform((-0.5, -0.5, 0), (0.5, 0.5, 6.3), (12, 3))
    light = [np.sum([np.cos(a * (x - 2 * t) + b * y + c) for a, b, c in waves], axis=0) for t in range(5)]
    frames = [(127 + 16 * frame).clip(0, 255).astype(np.uint8) for frame in light]
    middle = {}
    for stacking in ("plain", "bidirectional"):
        planes, bounds = stacks(4, stacking).computed(np.stack(frames))
        stack = stacks(4, stacking)(planes[None], bounds[None])[0, :, 12:-12, 12:-12].flatten(1).median(dim=1).values
        middle[stacking] = stack[::2]  # along x
    torch.testing.assert_close(middle["plain"], torch.full((4,), 2.0), atol=0.3, rtol=0)
    torch.testing.assert_close(middle["bidirectional"], torch.tensor([2.0, 2.0, -2.0, -2.0]), atol=0.3, rtol=0)


def test_a_mirrored_stack_moves_the_other_way_and_twice_mirrored_is_the_same() -> None:
    flow = torch.randn(1, 2 * L, H, H)
    augment, preprocess = Augmentation(flip=True), VideoPreprocess(H, None)
    here = torch.tensor([[0.0, 0.0, 0.0]])  # the only window, mirrored
    once = augment({"flow": flow.clone(), "draws": here}, preprocess)["flow"]
    assert torch.equal(once[:, 0::2], -flow[:, 0::2].flip(-1))
    assert torch.equal(once[:, 1::2], flow[:, 1::2].flip(-1))
    assert torch.equal(augment({"flow": once, "draws": here}, preprocess)["flow"], flow)


def test_test_crops_of_flow_are_those_of_frames_and_mirror_images_move_the_other_way() -> None:
    flow = torch.randn(2, 2 * L, 12, 16)
    preprocess = VideoPreprocess(8, None)
    crops = preprocess.flow_crops(flow, 10)
    assert crops.shape == (2, 10, 2 * L, 8, 8)
    assert torch.equal(crops[:, 4], flow[..., 2:10, 4:12])  # the centre
    assert torch.equal(crops[:, 9, 0::2], -crops[:, 4, 0::2].flip(-1))
    assert torch.equal(crops[:, 9, 1::2], crops[:, 4, 1::2].flip(-1))
    assert torch.equal(preprocess.flow_crops(flow, 1)[:, 0], crops[:, 4])


def test_colours_tell_directions_apart_and_stillness_is_white() -> None:
    flow = torch.zeros(1, 2, 1, 5)
    flow[0, 0] = torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0]])
    flow[0, 1] = torch.tensor([[0.0, 0.0, 1.0, -1.0, 0.0]])
    pictures = colours(flow)
    assert pictures.shape == (1, 3, 1, 1, 5)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    shades = pictures[0, :, 0, 0].T
    assert torch.equal(shades[4], torch.ones(3))
    assert torch.cdist(shades, shades).add(torch.eye(5)).min() > 0.4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"length": 0}, "length must be at least 1"),
        ({"length": 3, "stacking": "bidirectional"}, "must be even"),
        ({"stacking": "sideways"}, "plain, trajectory or bidirectional"),
        ({"bound": 0.0}, r"data\.flow\.bound"),
        ({"method": object()}, "one of Farneback, DIS, TVL1"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FlowStacks(**{"method": Farneback(), **arguments})
