"""Video DataModules on small generated videos: which frames arrive, from where, and what happens to bad files."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from kinoscope.contracts import DataSpec
from kinoscope.data import clips, motion
from kinoscope.data.clip_dataset import VideoDataset
from kinoscope.data.datasets import UCF101, Motion
from kinoscope.data.decode import decode
from kinoscope.data.loading import Subset
from kinoscope.data.motion import MotionParameters
from kinoscope.data.preprocess import VideoPreprocess
from kinoscope.data.transforms import RandomResizedCrop
from kinoscope.errors import KinoscopeError
from kinoscope.runs import agreement

REAL = os.environ.get("KINOSCOPE_DATASETS")
SMALL: dict[str, Any] = {"groups": 5, "clips_per_group": 2, "image_size": 32, "length": 12}
CLIP: dict[str, Any] = {"frames": 4, "stride": 2, "resize": 32, "size": 24, "batch_size": 4, "workers": 0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    motion.generate(folder, MotionParameters("local_motion", 0, 5, 2, 32, 12), progress=False)
    return folder


def ready(data: UCF101) -> UCF101:
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def data(data_dir: Path) -> UCF101:
    return ready(Motion(**SMALL, **CLIP, data_dir=str(data_dir), validation=0.25))


@pytest.fixture
def copy(data_dir: Path, tmp_path: Path) -> Path:
    """The same videos in a folder of their own, to be spoilt."""
    source = motion.folder(data_dir, MotionParameters("local_motion", 0, 5, 2, 32, 12))
    return Path(shutil.copytree(source, tmp_path / "videos"))


def copied(root: Path, **changes: Any) -> UCF101:
    return UCF101(str(root), data_dir=str(root.parent / "data"), **{**CLIP, "validation": 0.25, **changes})


def dataset(data: UCF101, subset: str) -> VideoDataset:
    found = data.subsets[subset]  # type: ignore[index]
    assert isinstance(found, VideoDataset)
    return found


def test_subsets_hold_whole_groups(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kinoscope"):
        data = ready(Motion(**SMALL, **CLIP, data_dir=str(data_dir), validation=0.25))
    assert {name: len(subset) for name, subset in data.subsets.items()} == {"train": 36, "validation": 12, "test": 12}
    groups = {
        name: {data.path(name, i).name.split("_")[2] for i in range(len(data.subsets[name]))} for name in data.subsets
    }
    assert groups["test"] == {"g01"}
    assert not groups["train"] & groups["validation"]
    assert "6 classes (Grow, MoveLeft" in caplog.text
    assert "36 train, 12 validation, 12 test" in caplog.text


def test_training_clips_are_frames_of_the_file_that_is_named(data: UCF101) -> None:
    train = dataset(data, "train")
    for batch in data.train_dataloader():
        assert batch["video"].shape == (4, 3, 4, 24, 24)
        assert batch["video"].dtype == torch.uint8
        windows = (batch["draws"] * (32 - 24 + 1)).long().tolist()
        for clip, index, label, (r, c) in zip(
            batch["video"], batch["index"].tolist(), batch["label"].tolist(), windows, strict=True
        ):
            assert data.spec.classes[label] in train.path(index).name
            numbers = train.chosen([(0, index)])[0][0, 0]
            assert (np.diff(numbers) == 2).all()
            frames = decode(train.path(index), numbers)[:, r : r + 24, c : c + 24]
            np.testing.assert_array_equal(clip.permute(1, 2, 3, 0), frames)


def test_every_start_is_drawn_and_epochs_differ(data: UCF101) -> None:
    train = dataset(data, "train")
    starts = np.array([train.chosen([(epoch, i) for i in range(36)])[0][:, 0, 0] for epoch in range(60)])
    # 12 frames hold six clips of 4 frames with stride 2; 2,160 draws: 360 each, sd 17.3; five of them.
    assert np.abs(np.bincount(starts.ravel()) - 360).max() < 5 * 17.3
    assert (starts[0] != starts[1]).any()


def test_preprocessed_training_batch(data: UCF101) -> None:
    batch = next(iter(data.train_dataloader()))
    assert batch["draws"].shape == (4, 2)  # no flip: direction is the class
    raw = batch["video"]
    out = data.on_after_batch_transfer(batch, 0)
    assert set(out) == {"video", "label", "index"}
    assert tuple(out["video"].shape[1:]) == data.spec.shape == (3, 4, 24, 24)
    assert out["video"].is_contiguous()
    torch.testing.assert_close(out["video"], data.preprocess.normalise(raw))


def test_test_views_are_evenly_spread_and_come_from_one_call(data: UCF101) -> None:
    test = dataset(data, "test")
    batch = next(iter(data.test_dataloader()))
    assert batch["clips"].shape == (4, 3, 3, 4, 24, 24)
    assert batch["index"].tolist() == [0, 1, 2, 3]
    for view, start in enumerate((0, 2, 5)):
        frames = decode(test.path(1), clips.indices(start, 4, 2))[:, 4:28, 4:28]
        np.testing.assert_array_equal(batch["clips"][1, view].permute(1, 2, 3, 0), frames)
    raw = batch["clips"]
    out = data.on_after_batch_transfer(batch, 0)["clips"]
    assert out.shape == (4, 3, 3, 4, 24, 24)
    torch.testing.assert_close(out, data.preprocess.normalise(raw))
    validation = next(iter(data.val_dataloader()))["clips"]
    assert validation.shape == (4, 1, 3, 4, 24, 24)
    middle = decode(dataset(data, "validation").path(0), clips.indices(2, 4, 2))[:, 4:28, 4:28]
    np.testing.assert_array_equal(validation[0, 0].permute(1, 2, 3, 0), middle)


def test_test_crops_multiply_the_views(data_dir: Path) -> None:
    data = ready(Motion(**SMALL, **{**CLIP, "batch_size": 10}, data_dir=str(data_dir), test_views=2, test_crops=5))
    batch = next(iter(data.test_dataloader()))
    raw = batch["clips"]
    assert raw.shape[:2] == (2, 2)  # 10 // 5 videos
    out = data.on_after_batch_transfer(batch, 0)["clips"]
    assert out.shape == (2, 10, 3, 4, 24, 24)
    torch.testing.assert_close(out[:, 5:], data.preprocess.crops(raw[:, 1], 5))


def test_several_clips_of_a_video_have_their_own_starts_and_crops(data_dir: Path) -> None:
    data = ready(Motion(**SMALL, **CLIP, data_dir=str(data_dir), clips_per_video=2))
    loader = data.train_dataloader()
    assert len(loader) == 18  # 36 videos, two to a batch
    batches = list(loader)
    assert all(batch["video"].shape[0] == 4 for batch in batches)
    index = torch.cat([batch["index"] for batch in batches])
    assert torch.equal(index[::2], index[1::2])
    assert sorted(index[::2].tolist()) == list(range(len(data.subsets["train"])))
    draws = torch.cat([batch["draws"] for batch in batches])
    assert not torch.isclose(draws[::2], draws[1::2]).any()
    numbers = dataset(data, "train").chosen([(0, i) for i in range(36)])[0]  # 6 starts: 3 for each of the clips
    assert (numbers[:, 0, 0] < 3).all()
    assert (numbers[:, 1, 0] >= 3).all()
    for clip in range(2):
        r, c = (draws[clip] * (32 - 24 + 1)).long().tolist()
        frames = decode(data.path("train", int(index[0])), numbers[int(index[0]), clip])[:, r : r + 24, c : c + 24]
        np.testing.assert_array_equal(batches[0]["video"][clip].permute(1, 2, 3, 0), frames)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_workers_and_decoders_change_nothing(data_dir: Path, decoder: Any) -> None:
    settings = {**SMALL, **CLIP, "data_dir": str(data_dir), "flip": True}
    alone, two = (ready(Motion(**{**settings, "workers": n}, decoder=decoder)) for n in (0, 2))
    for a, b in zip(alone.train_dataloader(), two.train_dataloader(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in ("video", "label", "index", "draws"))
        assert a["draws"].shape == (4, 3)


def test_manifest_is_the_user_s_and_one_per_choice(data_dir: Path) -> None:
    one, other = (Motion(**SMALL, **CLIP, data_dir=str(data_dir), split=split) for split in (1, 2))
    assert one.manifest_file != other.manifest_file
    assert one.manifest_file.parent == data_dir / "manifests"
    with pytest.raises(KinoscopeError, match="there is no manifest"):
        Motion(**SMALL, **CLIP, data_dir=str(data_dir), split=3).setup()
    assert ready(one).fingerprint() != other.fingerprint()


def test_a_bad_file_is_one_sentence_or_skipped(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = copy / "UCF-101/Grow/v_Grow_g02_c01.avi"
    empty.write_bytes(b"")
    (copy / "UCF-101/Grow/v_Grow_g02_c02.avi").write_bytes(b"no video at all")
    data = copied(copy)
    data.prepare_data()
    with pytest.raises(KinoscopeError, match=r"v_Grow_g02_c01\.avi.*0 bytes.* 1 more.*on_error=skip") as caught:
        data.setup()
    assert str(caught.value).startswith(f"{empty}: ")
    assert "\n" not in str(caught.value)
    patient = copied(copy, on_error="skip")
    with caplog.at_level(logging.WARNING, "kinoscope"):
        ready(patient)
    assert "2 of 60 videos are skipped" in caplog.text
    assert len(patient.subsets["train"]) == 34
    assert empty not in {patient.path("train", i) for i in range(34)}


def test_too_short_videos_are_bad_files(copy: Path) -> None:
    with pytest.raises(KinoscopeError, match=r"has 12 frames, a clip of data\.frames=8 with data\.stride=2 spans 15"):
        ready(copied(copy, frames=8))
    with pytest.raises(KinoscopeError, match="not one training video"):
        ready(copied(copy, frames=8, on_error="skip"))


class Counts(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.samples = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.samples += len(batch["video"])

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        assert batch["clips"].shape[1:] == (1, 3, 4, 24, 24)

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        assert batch["clips"].shape[1:] == (15, 3, 4, 24, 24)

    def configure_optimizers(self) -> None: ...


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_turns_bad_later(copy: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0}
    strict = ready(copied(copy, workers=workers))
    patient = ready(copied(copy, workers=workers, on_error="skip", test_views=3, test_crops=5))
    # The draws decide which batches there are; the file is in one of them.
    index = next(iter(strict.train_dataloader()))["index"][2].item()
    strict.path("train", index).write_bytes(b"gone")
    with pytest.raises(KinoscopeError, match=strict.path("train", index).name) as caught:
        pl.Trainer(**settings).fit(Counts(), datamodule=strict)
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
    module = Counts()
    with caplog.at_level(logging.WARNING, "kinoscope"):
        pl.Trainer(**settings).fit(module, datamodule=patient)
    assert module.samples == 35
    assert patient.skipped == 1
    assert strict.path("train", index).name in caplog.text
    pl.Trainer(**settings).test(module, datamodule=patient, verbose=False)


def test_the_first_file_may_be_bad_and_samples_are_counted(copy: Path) -> None:
    """A clip is a sample of training, a video one of evaluation; what setup looks at is counted by neither."""
    data = ready(copied(copy))
    data.path("train", 0).write_bytes(b"gone")
    data.path("test", 0).write_bytes(b"gone")
    again = copied(copy, on_error="skip", clips_per_video=4, batch_size=16)
    again.prepare_data = lambda: None  # the index is older than the fault
    again = ready(again)
    assert again.left_out() == {"videos": 0, "samples": 0}
    order: list[tuple[Subset, int]] = [("train", 4), ("test", 5)]
    for subset, lost in order:
        for batch in again._loader(subset):
            again.on_before_batch_transfer(batch, 0)
        assert again.left_out() == {"videos": 0, "samples": lost}


def test_rank_0_says_why_the_others_have_skipped(
    copy: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ready(copied(copy, on_error="skip"))
    broken = data.path("train", 1)
    broken.write_bytes(b"gone")
    data.on_before_batch_transfer(data.first_batch("train", 4), 0)
    other = ({"videos": 0, "samples": 2}, {*data.reasons, "other.avi: is broken."})
    monkeypatch.setattr(agreement, "gather", lambda mine: [mine, other])
    caplog.clear()
    assert agreement.left_out(data) == {"videos": 0, "samples": 3}
    assert [record.getMessage() for record in caplog.records] == ["skipped on another rank: other.avi: is broken."]


def test_a_batch_of_bad_files_alone_is_an_error_that_says_what_helps(copy: Path) -> None:
    data = ready(copied(copy, on_error="skip", batch_size=1))
    data.path("train", 0).write_bytes(b"gone")
    said = rf"^not one video of this batch of 1 can be read, and a larger data\.batch_size .* {data.path('train', 0)}: "
    with pytest.raises(KinoscopeError, match=said):
        data.on_before_batch_transfer(data.first_batch("train"), 0)


def test_videos_of_several_shapes_need_an_exact_resize(copy: Path) -> None:
    wide = np.zeros((12, 32, 64, 3), np.uint8)
    for path in (copy / "UCF-101/Grow").glob("*_c01.avi"):
        path.write_bytes(motion.encode(wide, 25))
    cropped = ready(copied(copy, batch_size=36))  # crops of one size are cut out of any
    assert next(iter(cropped.train_dataloader()))["video"].shape[-2:] == (24, 24)
    zoomed = {"batch_size": 36, "augment": [RandomResizedCrop()]}
    data = ready(copied(copy, **zoomed))
    with pytest.raises(KinoscopeError, match=r"32×32 and 32×64.*set data\.resize=\[height,width\]"):
        data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    exact = ready(copied(copy, **zoomed, resize=[32, 40]))
    assert next(iter(exact.train_dataloader()))["video"].shape[-2:] == (32, 40)
    with pytest.raises(KinoscopeError, match=r"a crop of data\.size=24 does not fit into its frames of 16×"):
        ready(copied(copy, resize=[16, 40], preprocess=VideoPreprocess(24, None)))


def test_a_spec_that_does_not_hold_is_found_in_setup(data_dir: Path) -> None:
    spec = DataSpec("video", (3, 16, 24, 24), tuple(motion.class_names("local_motion")), 6)
    with pytest.raises(KinoscopeError, match=r"\(3, 16, 24, 24\), the first one is \(3, 4, 24, 24\)"):
        ready(Motion(**SMALL, **CLIP, data_dir=str(data_dir), spec=spec))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"frames": 0}, "data.frames must be at least 1"),
        ({"stride": 0}, "data.stride must be at least 1"),
        ({"test_views": 0}, "data.test_views must be at least 1"),
        ({"size": 200}, "does not fit"),
        ({"test_crops": 2}, "1, 3, 5 or 10"),
        ({"test_crops": 10}, "data.flip=false"),
        ({"split": 4}, "1, 2 or 3"),
        ({"on_error": "ignore"}, "raise or skip"),
        ({"batch_size": 5, "clips_per_video": 2}, "multiple of clips_per_video"),
        ({"validation": 1.5}, "validation is a share"),
        ({"preprocess": VideoPreprocess(56, 64), "batch_size": 0}, "data.batch_size"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Motion(**arguments)


@pytest.mark.skipif(not REAL, reason="KINOSCOPE_DATASETS is not set")
def test_real_videos(tmp_path: Path) -> None:
    data = ready(UCF101(f"{REAL}/ucf101", data_dir=str(tmp_path), batch_size=8, classes=["Punch"], test_views=2))
    assert data.spec.classes == ("Punch",)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["video"].shape == (8, 3, 16, 112, 112)
    assert abs(float(batch["video"].mean())) < 1.5
    assert next(iter(data.test_dataloader()))["clips"].shape[1:] == (2, 3, 16, 112, 112)
