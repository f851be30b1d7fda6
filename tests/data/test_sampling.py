"""Ways of sampling, caches and crops as a training meets them: through the DataModule and the public command."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recurrent import Recurrent

import kinoscope
from kinoscope.data import motion
from kinoscope.data.clip_dataset import Memory, VideoDataset
from kinoscope.data.datasets import Motion
from kinoscope.data.decode import decode
from kinoscope.data.motion import MotionParameters
from kinoscope.data.transforms import ColourJitter, MultiScaleCrop, RandomErasing
from kinoscope.systems.classification import Classification

SMALL: dict[str, Any] = {"groups": 4, "clips_per_group": 1, "image_size": 48, "length": 14}
CLIP: dict[str, Any] = {"frames": 4, "stride": 2, "resize": [36, 40], "size": 24, "batch_size": 6, "workers": 0}
SEQUENCE: dict[str, Any] = {"sampling": "all", "stride": 1, "test_views": 1, "time_limit": None}
CACHES = ["none", "reencode", "jpeg", "raw"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampling")
    motion.generate(folder, MotionParameters("local_motion", 0, 4, 1, 48, 14), progress=False)
    return folder


def ready(data_dir: Path, **changes: Any) -> Motion:
    data = Motion(data_dir=str(data_dir), validation=0.25, **{**SMALL, **CLIP, "time_limit": None, **changes})
    data.prepare_data()
    data.setup()
    return data


def dataset(data: Motion, subset: str) -> VideoDataset:
    found = data.subsets[subset]  # type: ignore[index]
    assert isinstance(found, VideoDataset)
    return found


def whole(source: VideoDataset) -> VideoDataset:
    """The same data set, which leaves the crop to the device."""
    other = copy.copy(source)
    other.crop = None
    return other


@pytest.mark.parametrize("clips_per_video", [1, 3])
@pytest.mark.parametrize("cache", CACHES)
def test_a_crop_in_the_worker_is_the_crop_on_the_device(data_dir: Path, cache: str, clips_per_video: int) -> None:
    augment = [ColourJitter(), RandomErasing()]
    data = ready(data_dir, cache=cache, clips_per_video=clips_per_video, flip=True, augment=augment)
    train = dataset(data, "train")
    keys = [(3, index) for index in range(6)]
    early, late = train.__getitems__(keys), whole(train).__getitems__(keys)
    assert early["video"].shape == (6 * clips_per_video, 3, 4, 24, 24)
    assert late["video"].shape == (6 * clips_per_video, 3, 4, 36, 40)
    torch.testing.assert_close(data.preprocessed(early), data.preprocessed(late), rtol=0, atol=0)

    validation = dataset(data, "validation")
    early, late = validation.__getitems__(keys[:3]), whole(validation).__getitems__(keys[:3])
    assert early["clips"].shape == (3, 1, 3, 4, 24, 24)
    torch.testing.assert_close(data.preprocessed(early), data.preprocessed(late), rtol=0, atol=0)


def test_what_the_worker_cannot_crop_arrives_whole(data_dir: Path) -> None:
    data = ready(data_dir, augment=[MultiScaleCrop()], test_crops=5, test_views=2)
    batch = next(iter(data.train_dataloader()))
    assert batch["video"].shape[-2:] == (36, 40)
    assert data.preprocessed(batch)["video"].shape[-2:] == (24, 24)
    batch = next(iter(data.test_dataloader()))
    assert batch["clips"].shape[1:] == (2, 3, 4, 36, 40)
    assert data.preprocessed(batch)["clips"].shape[1:] == (10, 3, 4, 24, 24)


def test_the_raw_cache_holds_the_very_pixels_and_the_others_nearly(data_dir: Path) -> None:
    found = {cache: next(iter(ready(data_dir, cache=cache).train_dataloader())) for cache in CACHES}
    for cache in CACHES[1:]:
        for name in ("label", "index", "draws"):
            assert torch.equal(found[cache][name], found["none"][name])
        apart = (found[cache]["video"].int() - found["none"]["video"].int()).abs().float().mean()
        assert apart == 0 if cache == "raw" else 0 < apart < 4, cache


def test_a_cache_is_made_by_training_and_read_from_then_on(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(data_dir, cache="raw")
    before = [batch["video"] for batch in data.train_dataloader()]

    def nothing(*_: Any, **__: Any) -> None:
        raise AssertionError("a video was decoded")

    monkeypatch.setattr("kinoscope.data.sources.decode", nothing)
    again = ready(data_dir, cache="raw")
    assert all(map(torch.equal, before, (batch["video"] for batch in again.train_dataloader())))


@pytest.mark.parametrize("workers", [0, 2])
def test_pixels_lie_as_they_were_decoded_and_are_shared_with_workers(data_dir: Path, workers: int) -> None:
    """Channels last in memory on either side of a worker's pipe, so that nothing was transposed on the CPU."""
    data = ready(data_dir, workers=workers)
    for batch in data.train_dataloader():
        video = batch["video"]
        assert video.shape == (6, 3, 4, 24, 24)
        assert video.permute(0, 2, 3, 4, 1).is_contiguous()
        assert data.preprocessed(batch)["video"].is_contiguous()


def test_memory_is_taken_again_when_nobody_holds_a_view_of_it() -> None:
    memory = Memory()
    places = [memory.take((2, 3, 5)).data_ptr() for _ in range(5)]
    assert len(set(places)) == 1
    held = [memory.take((30,))[4:7].view(3, 1) for _ in range(9)]
    for number, view in enumerate(held):
        view.fill_(number)
    assert [view.unique().tolist() for view in held] == [[number] for number in range(9)]
    assert memory.take((4, 5)).data_ptr() not in {view.data_ptr() - 4 for view in held}
    array = memory.take((30,)).numpy()
    array[:] = 77
    memory.take((30,)).zero_()
    assert (array == 77).all()


def test_batches_that_are_kept_stay_what_they_are(data_dir: Path) -> None:
    loader = ready(data_dir, cache="raw", batch_size=4).train_dataloader()
    kept = [batch["video"] for batch in loader]
    again = [batch["video"].clone() for batch in loader]
    assert len(kept) == 3
    assert all(map(torch.equal, kept, again))


def test_uniform_frames_come_from_all_of_the_video(data_dir: Path) -> None:
    data = ready(data_dir, sampling="uniform", stride=1, frames=7)
    train = dataset(data, "train")
    numbers = train.chosen([(5, index) for index in range(len(train))])[0][:, 0]
    assert (numbers // 2 == np.arange(7)).all()
    batch = next(iter(data.test_dataloader()))
    test = dataset(data, "test")
    expected = decode(test.path(0), [1, 3, 5, 7, 9, 11, 13], (36, 40))[:, 6:30, 8:32]  # the middle of three views
    np.testing.assert_array_equal(batch["clips"][0, 1].permute(1, 2, 3, 0), expected)


@pytest.mark.parametrize(("fps", "kept"), [(None, list(range(14))), (5.0, [0, 5, 10]), (1.0, [0])])
def test_a_whole_video_is_padded_with_zeros_behind_its_length(data_dir: Path, fps: float | None, kept: list) -> None:
    data = ready(data_dir, **{**SEQUENCE, "frames": 16, "sequence_fps": fps, "augment": [ColourJitter()]})
    assert data.spec.shape == (3, 16, 24, 24)
    batch = next(iter(data.train_dataloader()))
    assert batch["length"].tolist() == [len(kept)] * 6
    video = data.preprocessed(batch)["video"]
    assert (video[:, :, len(kept) :] == 0).all()
    assert (video[:, :, : len(kept)].abs().amax(dim=(1, 3, 4)) > 0).all()

    batch = next(iter(data.test_dataloader()))
    clips = data.preprocessed(batch)
    frames = decode(data.path("test", 0), kept, (36, 40))[:, 6:30, 8:32]
    expected = data.preprocess.normalise(torch.from_numpy(frames).permute(3, 0, 1, 2)[None])
    torch.testing.assert_close(clips["clips"][0, :, :, : len(kept)], expected)
    assert (clips["clips"][:, :, :, len(kept) :] == 0).all()
    assert clips["length"].dtype == torch.int64
    assert clips["length"].shape == (len(clips["clips"]),)


def test_a_network_that_takes_lengths_is_told_them_and_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    system = Classification(Recurrent(3), optimizer=torch.optim.Adam)
    video, length = torch.randn(4, 3, 9, 8, 8), torch.tensor([9, 4, 1, 6])
    other = video.clone()
    for sample, frames in enumerate(length.tolist()):
        other[sample, :, frames:] = 7.0
    torch.testing.assert_close(
        system.predict({"video": video, "length": length}), system.predict({"video": other, "length": length})
    )
    alone = torch.stack([system.predict({"video": video[i : i + 1, :, :n]})[0] for i, n in enumerate(length.tolist())])
    torch.testing.assert_close(system.predict({"video": video, "length": length}), alone)
    views = system.predict({"clips": video[:, None], "length": length})
    torch.testing.assert_close(views, alone)


MODEL = """
defaults:
  - optimizer: adam
  - scheduler: null
  - _self_

_target_: kinoscope.systems.classification.Classification
network:
  _target_: recurrent.Recurrent
  num_classes: ${data.spec.num_classes}
log_every: 1
"""


def test_a_recurrent_network_is_trained_on_whole_videos_by_the_public_command(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, tested, and asked again through ``load_run``, which says what the network says of the file's frames."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "recurrent.yaml").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    folder = kinoscope.train(
        [
            "model=recurrent", "~experiment", f"data_dir={data_dir}", "logger=csv", "callbacks.progress=null",
            "trainer.accelerator=cpu", "trainer.max_steps=3", "data.sampling=all", "data.sequence_fps=5",
            "data.frames=6", "data.test_views=1", "data.batch_size=6", "data.workers=0", "data.resize=[36,40]",
            "data.size=24", *(f"data.{key}={value}" for key, value in SMALL.items()),
        ],
        tmp_path,
    )  # fmt: skip
    run = kinoscope.load_run(folder, checkpoint="last", trust=["recurrent"])
    assert run.steps == 3
    video = sorted(motion.folder(data_dir, MotionParameters("local_motion", 0, 4, 1, 48, 14)).rglob("*.avi"))[0]
    found = run.predict(decode(video, range(14), (36, 40)), fps=25)
    seen = decode(video, [0, 5, 10], (36, 40))[:, 6:30, 8:32]
    clip = run.preprocess.normalise(torch.from_numpy(seen).permute(3, 0, 1, 2)[None])  # type: ignore[operator]
    expected = run.system.predict({"video": clip})  # type: ignore[operator]
    torch.testing.assert_close(found, expected[0])
    with pytest.raises(kinoscope.errors.KinoscopeError, match="this run sees 5 frames per second"):
        run.predict(decode(video, range(14), (36, 40)))


def test_what_helps_where_training_waits(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    cures = ready(data_dir, batch_size=8, clips_per_video=1, workers=2).cures()
    size = 3 * 36 * 40 * 14 * len(ready(data_dir).subsets["train"]) / 1e9
    assert cures == [
        f"data.cache=raw (now none), {size:.2g} GB on disk for the training videos",
        "data.workers=4 (now 2)",
        "data.clips_per_video=2 (now 1)",
        "a larger data.batch_size (now 8)",
    ]
    assert not any("clips_per_video" in cure for cure in ready(data_dir, batch_size=9).cures())
    assert not any("clips_per_video" in cure for cure in ready(data_dir, **SEQUENCE).cures())
    raw = ready(data_dir, cache="raw", workers=0).cures()
    assert raw == ["a larger data.batch_size (now 6)", "data.workers=4 (now 0)"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"sampling": "dens"}, "data.sampling is one of random, uniform, dense, all, got dens"),
        ({"sampling": "uniform", "stride": 2}, "data.stride=2 means nothing"),
        ({"sampling": "all", "test_views": 1, "clips_per_video": 2}, "set data.clips_per_video=1"),
        ({"sampling": "all", "test_views": 3}, "set data.test_views=1"),
        ({"sequence_fps": 5}, "is the frame rate of data.sampling=all"),
        ({"sampling": "all", "test_views": 1, "sequence_fps": 0}, "above 0 or null"),
        ({"cache": "rw"}, "data.cache is one of none, reencode, jpeg, raw, got rw"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Motion(**arguments)
