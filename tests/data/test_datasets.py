"""The data sets with lists of their own, on the embedded videos laid out like them: through the public command too."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml

import kinoscope
from kinoscope.cli import main
from kinoscope.config.signatures import find
from kinoscope.data import motion
from kinoscope.data.clip_dataset import VideoDataset
from kinoscope.data.datasets import HMDB51, Folders, Kinetics, Sports1M
from kinoscope.data.lists.listing import kernels
from kinoscope.data.lists.sports1m import LINE
from kinoscope.data.manifest import Manifest
from kinoscope.data.motion import MotionParameters
from kinoscope.data.video import Videos
from kinoscope.errors import KinoscopeError

ROOT = Path(__file__).parents[2]
SMALL = MotionParameters("local_motion", 0, 5, 2, 32, 12)  # six classes × five scenes × two videos
CLIP: dict[str, Any] = {"frames": 4, "stride": 2, "resize": 32, "size": 24, "batch_size": 4, "workers": 0}
CLASSES = sorted(motion.class_names("local_motion"))
SUBSETS = ("train", "test")
VIDEO_YAML = ("ucf101", "motion", "hmdb51", "kinetics", "sports1m", "folders")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("motion")
    motion.generate(folder, SMALL, progress=False)
    return sorted(motion.folder(folder, SMALL).glob("UCF-101/*/*.avi"))


def link(video: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    os.link(video, to)


def hmdb51(root: Path, videos: Iterable[Path]) -> HMDB51:
    (root / "testTrainMulti_7030_splits").mkdir()
    for video in videos:
        name = video.parent.name
        film, clip = int(video.stem.split("_")[2][1:]), int(video.stem.split("_")[3][1:])
        link(video, root / name / f"Film{film}_{name}_u_nm_np1_ba_goo_{clip}.avi")
        with (root / "testTrainMulti_7030_splits" / f"{name}_test_split1.txt").open("a") as file:
            file.write(f"Film{film}_{name}_u_nm_np1_ba_goo_{clip}.avi {1 if film > 1 else 2} \n")
    return HMDB51(str(root), data_dir=str(root.parent / "data"), validation=0.25, **CLIP)


def kinetics(root: Path, videos: Iterable[Path]) -> Kinetics:
    lines = ["label,youtube_id,time_start,time_end,split"]
    for number, video in enumerate(videos):
        split = "validate" if number % 5 == 0 else "train"
        link(video, root / "clips" / video.parent.name / f"id-{number}_000003_000013.mp4")
        lines.append(f"{video.parent.name},id-{number},3,13,{split}")
    (root / "all.csv").write_text("\n".join(lines))
    return Kinetics(str(root), data_dir=str(root.parent / "data"), validation=0.25, **CLIP)


def sports1m(root: Path, videos: Iterable[Path]) -> Sports1M:
    (root / "labels.txt").write_text("\n".join(CLASSES))
    (root / "original").mkdir()
    with ExitStack() as files:
        lists = [files.enter_context((root / f"original/{subset}_partition.txt").open("w")) for subset in SUBSETS]
        for number, video in enumerate(videos):
            label = CLASSES.index(video.parent.name)
            second = f",{(label + 1) % 6}" if number % 3 == 0 else ""
            lists[number % 5 == 0].writelines(
                f"https://www.youtube.com/watch?v={name}\n"
                for name in (f"id-{number:02d} {label}{second}", f"gone-{number} {label}")
            )
            link(video, root / "videos" / f"id-{number:02d}.avi")
    return Sports1M(str(root), data_dir=str(root.parent / "data"), validation=0.25, **CLIP)


def folders(root: Path, videos: Iterable[Path]) -> Folders:
    for video in videos:
        link(video, root / video.parent.name / video.name)
    return Folders(str(root), data_dir=str(root.parent / "data"), validation=0.25, **CLIP)


LAYOUTS = {"hmdb51": hmdb51, "kinetics": kinetics, "sports1m": sports1m, "folders": folders}


@pytest.fixture(scope="module", params=LAYOUTS)
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, videos: list[Path]) -> Videos:
    """Each layout, prepared."""
    root = tmp_path_factory.mktemp(request.param) / "root"
    root.mkdir()
    return ready(LAYOUTS[request.param](root, videos))


def ready(data: Videos) -> Videos:
    data.prepare_data()
    data.setup()
    return data


def test_every_sample_is_a_clip_of_the_file_with_its_labels(data: Videos, videos: list[Path]) -> None:
    names = {file.stat().st_ino: file.parent.name for file in videos}
    assert sum(data.counts().values()) == len(videos)
    assert min(data.counts().values()) > 0
    seen: set[int] = set()
    for subset in ("train", "validation", "test"):
        found = data.subsets[subset]
        assert isinstance(found, VideoDataset)
        for index in range(len(found)):
            file = found.path(index).stat().st_ino
            batch = found.__getitems__([(0, index)])
            label = batch["label"][0]
            assert data.spec.classes == tuple(CLASSES)
            own = CLASSES.index(names[file])
            assert label[own] == 1 if data.spec.multi_label else label == own
            seen.add(file)
    assert len(seen) == len(videos)  # no video in two subsets


def test_a_batch_trains_a_network_of_the_promised_shape(data: Videos) -> None:
    batch = next(iter(data.train_dataloader()))
    batch = data.on_after_batch_transfer(data.on_before_batch_transfer(batch, 0), 0)
    assert tuple(batch["video"].shape[1:]) == data.spec.shape == (3, 4, 24, 24)
    assert batch["label"].shape == ((4, 6) if data.spec.multi_label else (4,))


def test_identity_is_of_the_files_whether_they_are_prepared_or_not(data: Videos, tmp_path: Path) -> None:
    def anew(root: Path) -> Videos:
        return type(data)(str(root), data_dir=str(tmp_path / "data"), validation=0.25, **CLIP)

    copy = Path(shutil.copytree(data.root, tmp_path / "copy"))
    assert anew(copy).fingerprint() == data.fingerprint()
    next(copy.rglob("*.avi" if list(copy.rglob("*.avi")) else "*.mp4")).unlink()
    assert anew(copy).fingerprint() != data.fingerprint()


def test_missing_videos_are_counted_and_no_fault(
    tmp_path: Path, videos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "root").mkdir()
    data = sports1m(tmp_path / "root", videos)
    with caplog.at_level(logging.WARNING, "kinoscope"):
        ready(data)
    assert "of 120 listed videos 60 are missing" in caplog.text
    manifest = Manifest.open(data.manifest_file)
    assert int(manifest.missing().sum()) == 60
    assert not (manifest.missing() & manifest.good()).any()
    assert data.left_out()["videos"] == 0  # none was left out for being bad
    row = int(manifest.missing().argmax())
    assert manifest.error(row) == "videos/gone-1: there is no such file."


def test_without_one_video_it_is_said(tmp_path: Path, videos: list[Path]) -> None:
    (tmp_path / "root").mkdir()
    data = sports1m(tmp_path / "root", videos[:5])
    for file in (tmp_path / "root/videos").glob("*"):
        file.unlink()
    data.prepare_data()
    with pytest.raises(KinoscopeError, match=r"not one training video can be used"):
        data.setup()


def test_two_labels_are_both_hot(tmp_path: Path, videos: list[Path]) -> None:
    (tmp_path / "root").mkdir()
    data = ready(sports1m(tmp_path / "root", videos))
    for subset in ("train", "validation", "test"):
        found = data.subsets[subset]
        assert isinstance(found, VideoDataset)
        for index in range(len(found)):
            number = int(found.path(index).stem.removeprefix("id-"))
            own = CLASSES.index(videos[number].parent.name)
            expected = torch.zeros(6, dtype=torch.uint8)
            expected[[own, (own + 1) % 6] if number % 3 == 0 else [own]] = 1
            assert torch.equal(found.__getitems__([(0, index)])["label"][0], expected)


def command(data: Videos, *more: str) -> Path:
    """Trains a tiny network for two steps through the public command; the run's folder."""
    return Path(
        kinoscope.train([
            "experiment=video/single_frame_small", f"data={data.name}", f"data.root={data.root}",
            f"data_dir={data.data_dir}", "data.validation=0.25", "data.batch_size=4", "data.workers=0",
            "data.resize=32", "data.size=24", "model.network.channels=[4,4,4,4,4]", "model.network.fc=[8]",
            "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu", "logger=csv",
            "callbacks.progress=null", "callbacks.learning_curves=null", *more,
        ])
    )  # fmt: skip


def test_the_public_command_trains_on_it(data: Videos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = command(data)
    summary = json.loads((found / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)
    assert 0 <= summary["test"]["test/video_accuracy"] <= summary["test"]["test/video_hit5"] <= 1
    assert kinoscope.load_run(found).spec.multi_label == (data.name == "sports1m")


def test_sports1m_over_real_videos(tmp_path: Path, datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sports-1M's own label file, real videos of which every second one is missing, trained on from the lists alone."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "root"
    (root / "videos").mkdir(parents=True)
    (root / "original").mkdir()
    shutil.copy(datasets / "sports-1m" / "labels.txt", root)
    files = sorted((datasets / "ucf101" / "UCF-101").rglob("*.avi"))[::4]
    for number, file in enumerate(files):
        with (root / "original" / f"{SUBSETS[number % 4 == 0]}_partition.txt").open("a") as text:
            text.write(f"https://www.youtube.com/watch?v={file.stem} {number % 3},{168 + number % 3}\n")
        if number % 2 == 0:
            shutil.copy(file, root / "videos")
    assert main(["prepare", "data=sports1m", f"data.root={root}", "data.validation=0.25"]) == 0
    data = Sports1M(str(root), validation=0.25, **CLIP)
    found = command(data)
    manifest = Manifest.open(data.manifest_file)
    assert int(manifest.missing().sum()) == len(files) // 2
    assert int(manifest.good().sum()) == len(files) - len(files) // 2
    assert json.loads((found / "summary.json").read_text())["status"] == "finished"
    assert kinoscope.load_run(found).spec.num_classes == 487


def test_every_video_config_has_the_keys_that_all_video_data_sets_have() -> None:
    own = {"self", "root", "choice", "videos"}
    common = set(find("kinoscope.data.video.Videos").parameters) - own
    for name in VIDEO_YAML:
        config = yaml.safe_load((ROOT / "configs/data" / f"{name}.yaml").read_text())
        chosen = {group for each in config["defaults"] if isinstance(each, dict) for group in each}
        lacking = common - config.keys() - chosen
        assert not lacking, f"{name}.yaml lacks {sorted(lacking)}"


def test_ids_of_a_list_can_only_be_names() -> None:
    """Whatever stands in a line, its id is a plain file name."""
    lines = ["../x 0", "a/b 0", "https://www.youtube.com/watch?v=../x 0", "/abs 0", "a\\b 0", "~x 0", ". 0", "v=.. 0"]
    assert not kernels().extract_regex(pa.array(lines), LINE).drop_null().to_pylist()
