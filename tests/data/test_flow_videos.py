"""Flow in the batches of a video data set, and a network that sees nothing else."""

from __future__ import annotations

import contextlib
import copy
import functools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import kinoscope
from kinoscope.contracts import DataSpec
from kinoscope.data import motion
from kinoscope.data.clip_dataset import VideoDataset
from kinoscope.data.datasets import Motion
from kinoscope.data.flow import DIS
from kinoscope.data.flow_stacks import FlowStacks
from kinoscope.data.motion import MotionParameters
from kinoscope.data.sources import Files
from kinoscope.errors import Refusal
from kinoscope.runs.build import try_network
from kinoscope.runs.folder import RunFolder
from kinoscope.systems.classification import Classification
from kinoscope.testing import check_abilities

SMALL: dict[str, Any] = {"groups": 5, "clips_per_group": 2, "image_size": 32, "length": 12}
L = 4


def stacks(**changes: Any) -> FlowStacks:
    return FlowStacks(DIS("ultrafast"), **{"length": L, **changes})


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    motion.generate(folder, MotionParameters("local_motion", 0, 5, 2, 32, 12), progress=False)
    return folder


def ready(data_dir: Path, **changes: Any) -> Motion:
    clip = {"frames": 2, "stride": 2, "resize": 32, "size": 24, "batch_size": 4, "workers": 0, "time_limit": None}
    data = Motion(**{**SMALL, **clip, "flow": stacks(), "validation": 0.25, "data_dir": str(data_dir), **changes})
    data.prepare_data()
    data.setup()
    return data


def subset(data: Motion, name: str) -> VideoDataset:
    found = data.subsets[name]  # pyright: ignore[reportArgumentType]
    assert isinstance(found, VideoDataset)
    return found


def grey(path: Path) -> np.ndarray:
    """All frames (n, H, W), by counting."""
    with av.open(str(path)) as container:
        return np.stack([frame.reformat(format="gray").to_ndarray() for frame in container.decode(video=0)])


@pytest.mark.parametrize("stacking", ["plain", "bidirectional"])
def test_a_stack_begins_at_its_clips_first_frame(data_dir: Path, stacking: Any) -> None:
    data = ready(data_dir, flow=stacks(stacking=stacking, bound=4.0), test_views=3)
    dataset = subset(data, "test")
    keys = [(0, 0), (0, 7)]
    batch = dataset.__getitems__(keys)
    wanted, _ = dataset.chosen(keys)
    assert batch["clips"].shape[:2] == batch["flow"].shape[:2] == (2, 3)
    assert data.flow is not None
    for place, (_, index) in enumerate(keys):
        frames = grey(dataset.path(index))
        for view in range(3):
            first = int(wanted[place, view, 0])
            planes, bounds = data.flow.computed(frames[first : first + L + 1])
            assert torch.equal(batch["flow"][place, view], planes)
            assert torch.equal(batch["flow_bounds"][place, view], bounds)


def test_a_batch_has_both_and_one_draw_crops_and_mirrors_them(data_dir: Path) -> None:
    data = ready(data_dir, flip=True, clips_per_video=2, frames=1)
    dataset = subset(data, "train")
    raw = dataset.__getitems__([(3, 1), (3, 5)])
    whole = data.flow(raw["flow"], raw["flow_bounds"])  # pyright: ignore[reportOptionalCall]
    seen = data.preprocessed({key: value.clone() for key, value in raw.items()})
    assert seen["video"].shape == (4, 3, 1, 24, 24)
    assert seen["flow"].shape == (4, 2 * L, 24, 24)
    assert set(seen) == {"video", "flow", "label", "index"}
    pixels = data.preprocess.normalise(raw["video"].float())[:, :, 0]
    for sample in range(4):
        window, mirrored = _found(pixels[sample], seen["video"][sample, :, 0])
        expected = whole[sample][:, window[0] : window[0] + 24, window[1] : window[1] + 24]
        if mirrored:
            expected = expected.flip(-1) * torch.tensor([-1.0, 1.0]).repeat(L).view(-1, 1, 1)
        torch.testing.assert_close(seen["flow"][sample], expected)


def _found(frame: torch.Tensor, crop: torch.Tensor) -> tuple[tuple[int, int], bool]:
    """Where a crop is in a frame (C, H, W), and whether it is mirrored."""
    places = [(row, column) for row in range(9) for column in range(9)]
    distance = {
        (place, mirrored): float((frame[:, place[0] : place[0] + 24, place[1] : place[1] + 24] - part).abs().max())
        for place in places
        for mirrored, part in ((False, crop), (True, crop.flip(-1)))
    }
    best = min(distance, key=lambda key: distance[key])
    assert distance[best] < 1e-5
    return best


def test_no_clip_begins_where_its_flow_would_not_fit_and_all_others_do(data_dir: Path) -> None:
    dataset = subset(ready(data_dir, flow=stacks(length=8)), "train")  # 9 of 12 frames
    begun = {int(dataset.chosen([(epoch, 0)])[0][0, 0, 0]) for epoch in range(200)}
    assert begun == {0, 1, 2, 3}


def test_on_flow_alone_no_frame_is_read(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Files, "read", None)
    data = ready(data_dir, input="flow", cache="raw", test_crops=5)
    assert data.spec.modality == "flow"
    assert data.spec.shape == (2 * L, 24, 24)
    assert [keeper.parameters()["kind"] for keeper in data.keepers()] == ["flow"]
    train = data.preprocessed(subset(data, "train").__getitems__([(0, 0), (0, 1)]))
    assert set(train) == {"flow", "label", "index"}
    test = data.preprocessed(subset(data, "test").__getitems__([(0, 0)]))
    assert test["flow"].shape == (1, 3 * 5, 2 * L, 24, 24)


def test_what_is_kept_is_kept_and_what_is_gone_is_made_again(data_dir: Path, tmp_path: Path) -> None:
    made = ready(data_dir, flow=stacks(bound=3.0))
    (keeper,) = made.keepers()
    files = sorted(keeper.folder.rglob("*.flow"))
    assert len(files) == len(made.subsets["train"]) + len(made.subsets["validation"]) + len(made.subsets["test"])
    whole, times = files[0].read_bytes(), [file.stat().st_mtime_ns for file in files[1:]]
    files[0].unlink()
    ready(data_dir, flow=stacks(bound=3.0))
    assert files[0].read_bytes() == whole
    assert [file.stat().st_mtime_ns for file in files[1:]] == times


def test_stacks_of_other_lengths_share_what_is_kept_but_other_methods_do_not(data_dir: Path) -> None:
    def folder(flow: FlowStacks) -> Path:
        (keeper,) = ready_not(data_dir, flow).keepers()
        return keeper.folder

    assert folder(stacks()) == folder(stacks(length=2, stacking="trajectory", subtract_mean=False))
    others = [stacks(), stacks(stacking="bidirectional"), stacks(bound=2.0), FlowStacks(DIS(), L)]
    assert len({folder(flow) for flow in others}) == len(others)


def ready_not(data_dir: Path, flow: FlowStacks) -> Motion:
    return Motion(**SMALL, data_dir=str(data_dir), resize=32, size=24, flow=flow)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"input": "flow", "flow": None}, "data/flow=farneback"),
        ({"input": "sound"}, "video or flow"),
        ({"sampling": "all", "test_views": 1}, "neighbouring frames"),
    ],
)
def test_what_does_not_go_together_is_refused(data_dir: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Motion(**{**SMALL, "data_dir": str(data_dir), "resize": 32, "size": 24, "flow": stacks(), **arguments})


COMMAND = [
    "experiment=null", "model=autoencoder/conv_classifier", "callbacks=classification", "logger=none",
    "data.task=local_motion", "data/flow=farneback", "data.input=flow", "data.flow.length=4", "data.size=32",
    "data.resize=32", "data.image_size=32", "data.groups=15", "data.clips_per_group=4", "data.length=6",
    "data.noise=0", "data.workers=0", "data.time_limit=null", "model.network.encoder.widths=[16,32]",
    "model.network.encoder.code=32", "model.optimizer.lr=0.003", "monitor=val/video_accuracy", "mode=max",
]  # fmt: skip


def test_a_network_learns_from_flow_alone_and_predicts_from_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six classes, 96 test videos: chance is 0.17 ± 0.04. Here is more than six times that error above it."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder.open(kinoscope.train([*COMMAND, "trainer.max_epochs=12"]))
    assert run.read_summary()["test"]["test/video_accuracy"] > 0.42
    assert (run.path / "pictures" / "contact_sheet.png").stat().st_size > 0
    loaded = kinoscope.load_run(run.path)
    assert loaded.spec.modality == "flow"
    assert loaded.spec.shape == (8, 32, 32)
    check_abilities(loaded)

    files = sorted((tmp_path / "data" / "motion").glob("*/UCF-101/*/*_g1[0-5]_c01.avi"))
    right = 0
    for file in files:
        with av.open(str(file)) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        right += loaded.spec.classes[int(loaded.predict(frames, views=2).argmax())] == file.parent.name
    assert len(files) >= 30
    assert right / len(files) > 0.5  # most of these it has been trained on


@pytest.mark.parametrize("network", ["c3d", "early_fusion", "late_fusion", "single_frame", "slow_fusion"])
def test_a_network_for_videos_is_refused_before_any_work(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [f"experiment=video/{network}_small", "data/flow=dis", "data.input=flow", "logger=none"]
    with pytest.raises(Refusal, match=r"cannot take a stack of flow .*model=autoencoder/conv_classifier$") as caught:
        kinoscope.train(command)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_a_network_for_flow_draws_and_counts_is_not_touched_by_trying_it() -> None:
    ours = [torch.nn.BatchNorm2d(4), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(100, 2)]
    system = Classification(torch.nn.Sequential(*ours), functools.partial(torch.optim.SGD, lr=0.1))
    before, drawn = copy.deepcopy(system.state_dict()), torch.get_rng_state()
    for shape, fits in (((4, 5, 5), True), ((4, 6, 6), False), ((2, 5, 5), False)):
        system.spec = DataSpec("flow", shape, ("a", "b"), 2)
        with contextlib.nullcontext() if fits else pytest.raises(Refusal, match=r"Sequential cannot take"):
            try_network(system)
    system.spec = DataSpec("flow", (4, 5, 5), ("a", "b", "c"), 3)
    with pytest.raises(Refusal, match="Sequential cannot take"):  # two answers for three classes
        try_network(system)
    assert all(torch.equal(value, before[name]) for name, value in system.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_wrong_name_of_a_method_is_refused_with_the_right_ones() -> None:
    with pytest.raises(Refusal, match="farneback"):
        kinoscope.train(["data/flow=farnebeck", "data.input=flow", "data.size=32"])


def test_a_method_typed_as_a_value_is_pointed_to_its_group() -> None:
    with pytest.raises(Refusal, match=r"data/flow=dis"):
        kinoscope.train(["data.flow=dis"])
