"""Augmentation: the batched path equals a slow loop over samples, and draws have the distribution that is promised."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kinoscope.config.compose import compose_checked
from kinoscope.data.datasets import Motion
from kinoscope.data.preprocess import VideoPreprocess, mirror
from kinoscope.data.transforms import (
    Augmentation,
    ColourJitter,
    Crop,
    MultiScaleCrop,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Transform,
)
from kinoscope.data.windows import Place, zoom
from kinoscope.errors import Refusal
from kinoscope.runs.build import build_datamodule

GENERATOR = torch.Generator()
PIXELS = VideoPreprocess(8, resize=None, mean=0, std=1 / 255)  # normalised values are grey levels
ALL: tuple[Transform, ...] = (MultiScaleCrop(), ColourJitter(0.4, 0.4, 0.4, 0.1), RandomErasing(0.7))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same draws in each test, whichever tests the process has run before."""
    GENERATOR.manual_seed(0)


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=GENERATOR)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=GENERATOR)


# --- where: crops, mirrors, flow -----------------------------------------------------------------------------------


def slow_crops(clips: Tensor, boxes: Tensor, size: int, mirrored: Tensor) -> Tensor:
    """The definition, one clip at a time: cut the box out, resize what was cut, turn it."""
    out = []
    for clip, (top, left, height, width), turned in zip(clips, boxes.tolist(), mirrored.tolist(), strict=True):
        crop = clip[..., top : top + height, left : left + width].double()
        if (height, width) != (size, size):
            crop = F.interpolate(crop, size=(size, size), mode="bilinear", align_corners=False)
        out.append(crop.flip(-1) if turned else crop)
    return torch.stack(out).float()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [RandomCrop(), MultiScaleCrop(), RandomResizedCrop()], ids=lambda c: type(c).__name__)
def test_crops_equal_a_loop_over_samples(crop: Crop, flip: bool) -> None:
    augment = Augmentation([crop], flip)
    x, draws = pixels(40, 3, 2, 13, 19), uniform(40, len(augment.streams))
    draws[0], draws[1] = 0, 1  # the corners; 1.0 is what a float32 draw can round to
    boxes = crop.boxes(draws[:, : len(crop.streams)], 13, 19, 8)
    mirrored = draws[:, -1] < 0.5 if flip else torch.zeros(40, dtype=torch.bool)
    slow = slow_crops(x, boxes, 8, mirrored)
    out = augment({"video": x, "draws": draws}, PIXELS)["video"]
    assert out.shape == (40, 3, 2, 8, 8)
    assert out.is_contiguous()
    torch.testing.assert_close(out, slow, atol=2e-3, rtol=0)  # of 255 grey levels


def test_a_plain_crop_is_exact_in_every_type() -> None:
    augment = Augmentation(flip=True)
    x, draws = pixels(9, 3, 4, 12, 17), uniform(9, 3)
    out = augment({"video": x, "draws": draws}, PIXELS)["video"]
    place = Place(RandomCrop().boxes(draws, 12, 17, 8), 8, False, draws[:, 2] < 0.5)
    assert place.frames(x).dtype == torch.uint8
    assert torch.equal(place.frames(x.transpose(-1, -2).contiguous().transpose(-1, -2)), place.frames(x))
    for kind in (torch.float32, torch.bfloat16):  # 0 … 255 are numbers of bfloat16
        assert torch.equal(place.frames(x.to(kind)), place.frames(x).to(kind))
        assert torch.equal(augment({"video": x.to(kind), "draws": draws}, PIXELS)["video"], out)


def test_every_window_is_reached_and_frames_share_it() -> None:
    # Pixel value = 16·row + column, so a crop's first pixel names its place.
    frame = (16 * torch.arange(9)[:, None] + torch.arange(10)).to(torch.uint8)
    x = frame.expand(2000, 3, 3, 9, 10)
    out = Augmentation()({"video": x, "draws": uniform(2000, 2)}, PIXELS)["video"].round()
    assert (out == out[:, :1, :1]).all()
    places, counts = out[:, 0, 0, 0, 0].unique(return_counts=True)
    assert places.tolist() == [0, 1, 2, 16, 17, 18]
    # 2,000 draws over 6 places: expectation 333, sd √(2000·5/36) = 16.7; five of them.
    assert (counts - 2000 / 6).abs().max() < 5 * 16.7


def test_multi_scale_crops_are_the_paper_s() -> None:
    boxes = MultiScaleCrop().boxes(uniform(20_000, 2), 256, 340, 224)
    found = Counter(map(tuple, boxes.tolist()))
    sides = [256, 224, 192, 168]
    expected = {
        (int(row * (256 - h)), int(column * (340 - w)), h, w)
        for i, h in enumerate(sides)
        for j, w in enumerate(sides)
        if abs(i - j) <= 1
        for row, column in [(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)]
    }
    assert set(found) == expected
    # A height of 256 leaves no room: its two corners on either side are one box. All others have the same share.
    shares = Counter({box: 400 * (2 if box[2] == 256 and box[1] != (340 - box[3]) // 2 else 1) for box in expected})
    # 20,000 draws over 50 choices: 400 each, sd 19.8, or 800 with sd 27.7; five of them.
    assert all(abs(found[box] - share) < 5 * math.sqrt(share) for box, share in shares.items())
    square = MultiScaleCrop(scales=[1, 0.5], distort=0).boxes(uniform(500, 2), 256, 340, 224)
    assert {tuple(box[2:]) for box in square.tolist()} == {(256, 256), (128, 128)}


def test_resized_crops_have_the_area_and_shape_that_were_asked_for() -> None:
    crop = RandomResizedCrop(area=(0.1, 0.3), aspect=(0.5, 2))
    boxes = crop.boxes(uniform(20_000, 4), 1000, 1000, 112).double()  # 0.3 · 2 < 1: everything fits
    share, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, (boxes[:, 3] / boxes[:, 2]).log()
    # Uniform on an interval of length l: sd l/√12, so that of the mean of 20,000 is l/490; five of them.
    assert abs(float(share.mean()) - 0.2) < 5 * 0.2 / 490
    assert abs(float(ratio.mean())) < 5 * 2 * math.log(2) / 490
    assert abs(float(share.std()) - 0.2 / math.sqrt(12)) < 1e-3
    assert abs(float(ratio.std()) - 2 * math.log(2) / math.sqrt(12)) < 1e-2
    assert abs(float(torch.corrcoef(torch.stack([share, ratio]))[0, 1])) < 5 / math.sqrt(20_000)
    place = boxes[:, :2] / (1000 - boxes[:, 2:])
    assert abs(float(place.mean()) - 0.5) < 5 / 490


@pytest.mark.parametrize("sides", [(128, 171), (171, 128), (20, 300), (1, 1)])
def test_resized_crops_stay_inside_and_keep_their_shape(sides: tuple[int, int]) -> None:
    draws = uniform(5000, 4)
    draws[:2] = torch.tensor([[0.0], [1.0]])
    top, left, height, width = RandomResizedCrop((0.05, 1), (0.75, 4 / 3)).boxes(draws, *sides, 112).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= sides[0]).all()
    assert (left + width <= sides[1]).all()
    # Rounding to whole pixels moves a ratio by less than half a pixel on either side.
    assert ((width + 0.5) / (height - 0.5).clamp(min=0.5) >= 0.75).all()
    assert ((width - 0.5) / (height + 0.5) <= 4 / 3).all()


def test_what_lies_outside_a_box_is_not_seen() -> None:
    x = torch.zeros(1, 1, 20, 20)
    x[..., 5:9, 6:12] = 7.0
    out = zoom(x, torch.tensor([[5, 6, 4, 6]]), 17)
    torch.testing.assert_close(out, torch.full((1, 1, 17, 17), 7.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("crop", [RandomCrop(), MultiScaleCrop(), RandomResizedCrop()], ids=lambda c: type(c).__name__)
def test_frames_and_flow_share_the_draw(crop: Crop) -> None:
    # Frames and flow both say where they are: red the row, green the column.
    row, column = torch.broadcast_tensors(torch.arange(20.0)[:, None], torch.arange(30.0))
    video = torch.stack([row, column, row]).to(torch.uint8)[:, None].expand(64, 3, 2, 20, 30)
    flow = torch.stack([column, row] * 3).expand(64, 6, 20, 30)  # x and y in turn
    augment = Augmentation([crop, RandomErasing(0.5)], flip=True)
    draws = uniform(64, len(augment.streams))
    out = augment({"video": video, "flow": flow, "draws": draws, "label": torch.arange(64)}, PIXELS)
    assert set(out) == {"video", "flow", "label"}
    mirrored = draws[:, len(crop.streams)] < 0.5
    assert 0 < mirrored.sum() < 64
    sign = torch.where(mirrored, -1.0, 1.0).view(-1, 1, 1, 1)
    torch.testing.assert_close(out["flow"][:, 1::2], out["video"][:, 0, :1].expand(-1, 3, -1, -1), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        out["flow"][:, ::2] * sign, out["video"][:, 1, :1].expand(-1, 3, -1, -1), atol=1e-4, rtol=0
    )
    alone = augment({"flow": flow, "draws": draws}, PIXELS)
    assert torch.equal(alone["flow"], out["flow"])
    stacked = augment({"flow": flow.view(64, 3, 2, 20, 30).transpose(1, 2), "draws": draws}, PIXELS)["flow"]  # 2, T
    assert torch.equal(stacked.transpose(1, 2).flatten(1, 2), out["flow"])


def test_flow_that_is_mirrored_twice_is_itself() -> None:
    flow = torch.randn(6, 4, 8, 8, generator=GENERATOR)
    place = Place(torch.tensor([[0, 0, 8, 8]] * 6), 8, False, torch.arange(6) % 2 == 0)
    once = place.flow(flow)
    assert torch.equal(place.flow(once), flow)
    assert torch.equal(once[0, ::2], -flow[0, ::2].flip(-1))
    assert torch.equal(once[0, 1::2], flow[0, 1::2].flip(-1))
    assert torch.equal(once[1], flow[1])
    torch.testing.assert_close(place.flow(flow.bfloat16()), once.bfloat16(), atol=0, rtol=0)
    with pytest.raises(TypeError, match="floating point"):
        place.flow(torch.zeros(6, 4, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="video of 9×9 and flow of 8×8"):
        Augmentation()({"video": pixels(6, 3, 2, 9, 9), "flow": flow, "draws": uniform(6, 2)}, PIXELS)


def test_mirrors_are_the_same_in_every_type() -> None:
    x, where = pixels(9, 3, 2, 5, 7), uniform(9) < 0.5
    slow = torch.stack([one.flip(-1) if turned else one for one, turned in zip(x, where.tolist(), strict=True)])
    assert torch.equal(mirror(x, where), slow)
    assert torch.equal(mirror(x.float(), where), slow.float())


# --- colours -------------------------------------------------------------------------------------------------------

# ITU-R BT.601: luma, and the analogue colour differences U = 0.492 (B − Y), V = 0.877 (R − Y).
YUV = torch.tensor([[0.299, 0.587, 0.114], [-0.147108, -0.288804, 0.435912], [0.614777, -0.514799, -0.099978]]).double()


def slow_jitter(clip: Tensor, draws: list[float], strengths: tuple[float, float, float, float]) -> Tensor:
    """One clip (3, T, H, W), one change after the other."""
    brightness, contrast, saturation, hue = (s * (2 * d - 1) for s, d in zip(strengths, draws, strict=True))
    x = clip.double() * (1 + brightness)
    grey = torch.einsum("c,cthw->thw", YUV[0], x).mean()
    x = grey + (x - grey) * (1 + contrast)
    y, u, v = torch.einsum("dc,cthw->dthw", YUV, x) * torch.tensor([1, 1 + saturation, 1 + saturation]).view(3, 1, 1, 1)
    turn = 2 * math.pi * hue
    u, v = math.cos(turn) * u - math.sin(turn) * v, math.sin(turn) * u + math.cos(turn) * v
    return torch.einsum("dc,cthw->dthw", YUV.inverse(), torch.stack([y, u, v])).clamp(0, 255)


@pytest.mark.parametrize(
    "strengths", [(0.4, 0, 0, 0), (0, 0.8, 0, 0), (0, 0, 1, 0), (0, 0, 0, 0.5), (0.4, 0.4, 0.4, 0.2)], ids=str
)
def test_colours_equal_a_loop_over_samples(strengths: tuple[float, float, float, float]) -> None:
    x, draws = pixels(12, 3, 2, 6, 6), uniform(12, 4)
    out = ColourJitter(*strengths)(x, draws)
    slow = torch.stack([slow_jitter(clip, d, strengths) for clip, d in zip(x, draws.tolist(), strict=True)])
    # The reference's matrix has six digits, so it is 255 · 1e-6 off in each of a few terms.
    torch.testing.assert_close(out, slow.float(), atol=2e-3, rtol=0)
    assert (out != x).any()


def test_colours_leave_alone_what_they_should() -> None:
    x = pixels(5, 3, 2, 6, 6)
    jitter = ColourJitter(0.9, 0.9, 0.9, 0.5)
    torch.testing.assert_close(jitter(x, torch.full((5, 4), 0.5)), x.float(), atol=1e-3, rtol=0)  # the middle: nothing
    grey = x[:, :1].expand(-1, 3, -1, -1, -1)
    shaded = ColourJitter(0, 0, 1, 0.5)(grey, uniform(5, 4))
    torch.testing.assert_close(shaded, grey.float(), atol=1e-3, rtol=0)
    red = torch.tensor([90, 60, 60], dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(1, 3, 2, 4, 4)
    turned = ColourJitter(0, 0, 0, 0.5)(red, torch.ones(1, 4))[0, :, 0, 0, 0]  # half a turn: the complement
    torch.testing.assert_close(turned + red[0, :, 0, 0, 0], torch.full((3,), 2 * (0.299 * 90 + 0.701 * 60)))


# --- erasing -------------------------------------------------------------------------------------------------------


def test_erasing_sets_one_rectangle_to_the_mean_in_all_frames() -> None:
    preprocess = VideoPreprocess(32, resize=None, mean=0.25, std=0.5)
    augment = Augmentation([RandomErasing(0.5, area=(0.1, 0.3), aspect=(0.5, 2))])
    x, draws = pixels(400, 3, 2, 32, 32).clamp(0, 60), uniform(400, 7)  # never the mean itself
    out = augment({"video": x, "draws": draws}, preprocess)["video"]
    erased = out == 0
    assert (erased == erased[:, :1, :1]).all()
    assert torch.equal(out[~erased], preprocess(x)[~erased])
    hit = erased[:, 0, 0].flatten(1).any(dim=1)
    assert torch.equal(hit, draws[:, 2] < 0.5)
    for mask in erased[hit][:, 0, 0]:
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        height, width = (int(line[-1] - line[0]) + 1 for line in (rows, columns))
        assert int(mask.sum()) == height * width, "it is a rectangle"
        # Rounded to whole pixels: half a pixel on either side.
        assert (height - 0.5) * (width - 0.5) <= 0.3 * 32 * 32
        assert (height + 0.5) * (width + 0.5) >= 0.1 * 32 * 32
    # Uniform shares of 0.1 … 0.3, mean 0.2, sd 0.058 each and about 0.004 for the mean of 200.
    assert abs(float(erased[hit][:, 0, 0].float().mean()) - 0.2) < 5 * 0.0041
    never = Augmentation([RandomErasing(0)])({"video": x, "draws": draws}, preprocess)["video"]
    assert torch.equal(never, preprocess(x))


# --- the whole chain -----------------------------------------------------------------------------------------------


def test_streams_are_one_column_each() -> None:
    assert Augmentation().streams == ("crop_row", "crop_column")
    assert Augmentation(flip=True).streams == ("crop_row", "crop_column", "flip")
    twice = Augmentation([RandomErasing(), MultiScaleCrop(), RandomErasing()], flip=True)
    assert twice.streams[:3] == ("crop_sides", "crop_place", "flip")
    assert twice.streams[3::5] == ("erase", "erase.1")
    assert len(set(twice.streams)) == len(twice.streams) == 13
    with pytest.raises(ValueError, match="3 columns, wanted are crop_row, crop_column"):
        Augmentation()({"video": pixels(2, 3, 2, 9, 9), "draws": uniform(2, 3)}, PIXELS)


class _Calls(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("transforms", [(), ALL, (RandomResizedCrop(),)], ids=["plain", "all", "resized"])
def test_no_work_is_done_sample_by_sample(transforms: tuple[Transform, ...]) -> None:
    augment = Augmentation(transforms, flip=True)
    counts = []
    for samples in (2, 50):
        with _Calls() as calls:
            augment({"video": pixels(samples, 3, 2, 12, 14), "draws": uniform(samples, len(augment.streams))}, PIXELS)
        counts.append(calls.count)
    assert counts[0] == counts[1]


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    augment = Augmentation(ALL, flip=True)
    batch = {"video": pixels(6, 3, 2, 12, 14), "draws": uniform(6, len(augment.streams))}
    together = augment(batch, PIXELS)["video"]
    alone = [augment({name: value[i : i + 1] for name, value in batch.items()}, PIXELS)["video"] for i in range(6)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-4, rtol=0)


def test_bfloat16_comes_out_as_float32_does() -> None:
    preprocess = VideoPreprocess(8, resize=None)
    augment = Augmentation(ALL, flip=True)
    x, draws = pixels(6, 3, 2, 12, 14), uniform(6, len(augment.streams))
    exact = augment({"video": x, "draws": draws}, preprocess)["video"]
    from_half = augment({"video": x.bfloat16(), "draws": draws}, preprocess)["video"]  # the same pixels
    assert exact.dtype == from_half.dtype == torch.float32
    assert torch.equal(from_half, exact)
    flow = torch.randn(6, 4, 12, 14, generator=GENERATOR)
    pair = [augment({"flow": f, "draws": draws}, preprocess)["flow"].float() for f in (flow, flow.bfloat16())]
    # Eight bits: rounding moves a number by at most 2⁻⁸ of itself.
    torch.testing.assert_close(pair[1], pair[0], atol=2**-8 * float(flow.abs().max()), rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("transforms", [(), ALL, (RandomResizedCrop(),)], ids=["plain", "all", "resized"])
def test_a_gpu_gives_the_cpu_s_result(transforms: tuple[Transform, ...]) -> None:
    augment = Augmentation(transforms, flip=True)
    batch = {"video": pixels(16, 3, 8, 128, 171), "draws": uniform(16, len(augment.streams))}
    preprocess = VideoPreprocess(112)
    ours = augment(batch, preprocess)["video"]
    theirs = augment({name: value.cuda() for name, value in batch.items()}, preprocess.cuda())["video"]
    torch.testing.assert_close(theirs.cpu(), ours, atol=1e-4, rtol=1e-5)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one crop, got MultiScaleCrop and RandomResizedCrop"):
        Augmentation([MultiScaleCrop(), RandomResizedCrop()])
    with pytest.raises(ValueError, match=r"data.augment\[0\] is a Linear"):
        Augmentation([torch.nn.Linear(1, 1)])  # type: ignore[list-item]
    for make in (
        lambda: MultiScaleCrop(scales=[]),
        lambda: MultiScaleCrop(scales=[1.2]),
        lambda: MultiScaleCrop(distort=-1),
        lambda: RandomResizedCrop(area=[0.5]),
        lambda: RandomResizedCrop(area=[0.5, 1.5]),
        lambda: RandomResizedCrop(aspect=[2, 1]),
        lambda: ColourJitter(hue=0.6),
        lambda: ColourJitter(brightness=-0.1),
        lambda: RandomErasing(probability=2),
    ):
        with pytest.raises(ValueError, match=r"data\.augment: "):
            make()
    with pytest.raises(ValueError, match="for 3 channels, got 1"):
        ColourJitter()(pixels(1, 1, 2, 4, 4), uniform(1, 4))


# --- in a data set -------------------------------------------------------------------------------------------------

CHOSEN = (
    "data.augment=[{_target_:kinoscope.data.transforms.MultiScaleCrop,scales:[1,0.8]},"
    "{_target_:kinoscope.data.transforms.RandomErasing}]"
)
SMALL = ["data.groups=5", "data.clips_per_group=2", "data.image_size=32", "data.length=12", "data.frames=4"]


def test_a_config_chooses_them_and_only_training_clips_meet_them(tmp_path: Path) -> None:
    sizes = ["data.resize=32", "data.size=24", "data.batch_size=4", "data.workers=0", f"data_dir={tmp_path}"]
    config = compose_checked("train", ["experiment=video/c3d_small", *SMALL, *sizes, "data.flip=true", CHOSEN])
    data = build_datamodule(config)
    assert isinstance(data, Motion)
    assert isinstance(data.augment.crop, MultiScaleCrop)
    assert len(data.augment.crop.pairs) == 4
    data.prepare_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["draws"].shape == (4, len(data.augment.streams)) == (4, 2 + 1 + 5)
    raw, draws = batch["video"], batch["draws"]
    out = data.on_after_batch_transfer(batch, 0)["video"]
    slow = slow_crops(raw, MultiScaleCrop([1, 0.8]).boxes(draws, 32, 32, 24), 24, draws[:, 2] < 0.5)
    kept = out != 0
    torch.testing.assert_close(out[kept], data.preprocess.normalise(slow)[kept], atol=1e-4, rtol=0)
    views = next(iter(data.test_dataloader()))
    plain = data.preprocess.normalise(views["clips"][:, 0])  # the worker cut out the centre
    assert torch.equal(data.on_after_batch_transfer(views, 0)["clips"][:, 0], plain)
    data.trainer = SimpleNamespace(precision_plugin=HalfPrecision("bf16-true"), validating=False)  # type: ignore[assignment]
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["video"], out.bfloat16())  # rounded once, at the end


def test_faults_in_the_list_are_found_before_work() -> None:
    wrong = (
        "data.augment=[{_target_:kinoscope.data.transforms.MultiScaleCrop,scale:[1]},"
        "{_target_:kinoscope.data.transforms.ColorJitter},"
        "{_target_:kinoscope.data.transforms.RandomErasing,probability:often}]"
    )
    with pytest.raises(Refusal) as refused:
        compose_checked("train", ["experiment=video/c3d_small", wrong])
    for part in ("did you mean 'data.augment[0].scales'", "ColourJitter", "data.augment[2].probability is 'often'"):
        assert part in str(refused.value)
