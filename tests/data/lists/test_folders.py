"""Folders of class folders, with and without folders for the subsets."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinoscope.data.lists import folders
from kinoscope.data.lists.listing import counts
from kinoscope.errors import Refusal

CLASSES = ("cat", "dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """2 classes × 20 videos, some of them a folder deeper, empty files."""
    for name in CLASSES:
        (tmp_path / name / "deep").mkdir(parents=True)
        for k in range(20):
            (tmp_path / name / ("deep" if k % 4 == 0 else "") / f"{k:02d}.mp4").touch()
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    return tmp_path


@pytest.fixture
def divided(root: Path) -> Path:
    """The same: 0–9 for training, 10–14 val, 15–19 test."""
    for name in CLASSES:
        for file in sorted(root.glob(f"{name}/**/*.mp4")):
            subset = ("train", "train", "val", "test")[int(file.stem) // 5]
            (root / subset / name).mkdir(parents=True, exist_ok=True)
            file.rename(root / subset / name / file.name)
        (root / name).rename(root / f"_{name}")
    return root


def test_shares_of_every_class_are_test_and_validation(root: Path) -> None:
    table = folders.read(root, test=0.25, validation=0.2)
    assert counts(table) == {"train": 24, "validation": 6, "test": 10}
    rows = table.to_pylist()
    assert sorted(row["path"] for row in rows) == [row["path"] for row in rows]
    for label, name in enumerate(CLASSES):
        of_class = [row for row in rows if row["labels"] == [label]]
        assert all((root / row["path"]).is_file() and row["path"].startswith(f"{name}/") for row in of_class)
        assert sum(row["subset"] == "test" for row in of_class) == 5


def test_a_new_video_leaves_the_others_nearly_where_they_are(root: Path) -> None:
    before = {row["path"]: row["subset"] for row in folders.read(root).to_pylist()}
    (root / "cat" / "new.mp4").touch()
    after = {row["path"]: row["subset"] for row in folders.read(root).to_pylist()}
    # Of the class at most one video enters and one leaves each of test and validation.
    assert sum(after[path] != subset for path, subset in before.items()) <= 4


def test_named_subsets_are_taken(divided: Path) -> None:
    table = folders.read(divided)
    assert counts(table) == {"train": 20, "validation": 10, "test": 10}
    folder = {"train": "train", "validation": "val", "test": "test"}
    assert all(row["path"].startswith(f"{folder[row['subset']]}/") for row in table.to_pylist())


@pytest.mark.parametrize("left", ["val", "test"])
def test_one_other_subset_is_the_test(divided: Path, left: str) -> None:
    (divided / ({"val", "test"} - {left}).pop()).rename(divided / "_gone")
    table = folders.read(divided, validation=0.2)
    assert counts(table) == {"train": 16, "validation": 4, "test": 10}
    assert all(row["path"].startswith(f"{left}/") for row in table.to_pylist() if row["subset"] == "test")


def test_training_alone_is_divided(divided: Path) -> None:
    for name in ("val", "test"):
        (divided / name).rename(divided / f"_{name}")
    assert counts(folders.read(divided, test=0.5, validation=0.2)) == {"train": 8, "validation": 2, "test": 10}


def test_classes_can_be_chosen(root: Path) -> None:
    assert folders.class_names(root) == list(CLASSES)
    table = folders.read(root, ["Dog"])
    assert len(table) == 20
    assert table["labels"].to_pylist() == [[0]] * 20
    with pytest.raises(Refusal, match=r"'dgo' is not a class of .*did you mean 'dog'"):
        folders.class_names(root, ["dgo"])
    with pytest.raises(Refusal, match=r"must be a list of names, got the text 'dog'"):
        folders.class_names(root, "dog")


def test_links_that_lead_out_are_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "x.mp4").touch()
    (root / "cat" / "x.mp4").symlink_to(outside / "x.mp4")
    with pytest.raises(Refusal, match=r"cat/x.mp4 leads out of .*, to .*outside.*x\.mp4"):
        folders.read(root)
    (root / "cat" / "x.mp4").unlink()
    (root / "cow").symlink_to(outside)
    with pytest.raises(Refusal, match=r"cow is a link that leads out of"):
        folders.class_names(root)
    (root / "cow").unlink()
    (root / "cat" / "all").symlink_to(root)  # a circle inside is walked once
    assert len(folders.read(root)) == 40


def test_what_cannot_be_is_said(root: Path, divided: Path) -> None:
    (divided / "test" / "dag").mkdir()
    with pytest.raises(Refusal, match=r"test/dag: there is no such class in .*train \(did you mean 'dog'"):
        folders.class_names(divided)
    (divided / "test" / "dag").rmdir()
    (divided / "train" / "cow").mkdir()
    with pytest.raises(Refusal, match=r"train/cow: there is not one video for training"):
        folders.read(divided)
    (divided / "cow").mkdir()
    with pytest.raises(Refusal, match=r"beside them 'cow'"):
        folders.class_names(divided)
    (divided / "cow").rmdir()
    (divided / "train").rename(divided / "_train")
    with pytest.raises(Refusal, match=r"none is named 'train'"):
        folders.class_names(divided)
    with pytest.raises(Refusal, match=r"no folder"):
        folders.class_names(divided / "nowhere")
    with pytest.raises(Refusal, match=r"0 < test < 1, got 1"):
        folders.read(root, test=1)
