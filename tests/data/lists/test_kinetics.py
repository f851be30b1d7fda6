"""CSV lists like those of Kinetics, on small ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinoscope.data.lists import kinetics
from kinoscope.data.lists.listing import counts
from kinoscope.errors import Refusal

HEADER = ",".join(kinetics.HEADER)
CLASSES = ("abseiling", "massaging person's head, slowly")


def name(label: int, number: int) -> str:
    return f"-A_{label}{number:03d}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """2 classes × (10 training and 3 other videos), empty files, in class folders."""
    for split, numbers in (("train", range(10)), ("validate", range(10, 13))):
        lines = [HEADER]
        for label, title in enumerate(CLASSES):
            folder = tmp_path / "clips" / title.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for number in numbers:
                (folder / f"{name(label, number)}_{number:06d}_{number + 10:06d}.mp4").write_bytes(b"x")
                lines.append(f'"{title}",{name(label, number)},{number},{number + 10},{split}')
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_published_validation_is_the_test_and_training_is_held_out(root: Path) -> None:
    table = kinetics.read(root, validation=0.2)
    assert counts(table) == {"train": 16, "validation": 4, "test": 6}
    for row in table.to_pylist():
        assert (root / row["path"]).is_file()
        label, number = row["labels"][0], int(row["group"][-3:])
        assert row["group"] == name(label, number)
        assert (row["subset"] == "test") == (number >= 10)


def test_all_three_subsets_are_taken_as_listed(root: Path) -> None:
    text = (root / "validate.csv").read_text()
    (root / "validate.csv").write_text(text.replace("012,12,22,validate", "012,12,22,test"))
    assert counts(kinetics.read(root, validation=0.2)) == {"train": 20, "validation": 4, "test": 2}


def test_a_list_without_labels_gives_no_rows(root: Path) -> None:
    (root / "hidden.csv").write_text(f"{HEADER}\n,abc,1,2,test\n")
    assert counts(kinetics.read(root, validation=0)) == {"train": 20, "test": 6}


def test_flat_or_nested_is_the_same_but_for_the_folder(root: Path) -> None:
    before = kinetics.read(root)
    for file in root.glob("clips/*/*.mp4"):
        file.rename(root / file.name)
    after = kinetics.read(root)
    assert after["path"].to_pylist() == [Path(path).name for path in before["path"].to_pylist()]
    assert after.drop_columns("path") == before.drop_columns("path")


def test_classes_can_be_chosen(root: Path) -> None:
    assert kinetics.class_names(root) == list(CLASSES)
    table = kinetics.read(root, [CLASSES[1]])
    assert len(table) == 13
    assert table["labels"].to_pylist() == [[0]] * 13
    with pytest.raises(Refusal, match=r"'absailing' is not a class of .*did you mean 'abseiling'"):
        kinetics.class_names(root, ["absailing"])


def test_a_missing_video_keeps_its_row_and_its_subset(root: Path) -> None:
    before = kinetics.read(root)
    for file in list(root.glob("clips/abseiling/*"))[::2]:
        file.unlink()
    after = kinetics.read(root)
    assert after.drop_columns("path") == before.drop_columns("path")
    assert sum(not (root / path).exists() for path in after["path"].to_pylist()) == 7


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("abseiling,abc,1,2,tain", r"line 2: split is train, validate or test, found 'tain' \(did you mean 'train'"),
        ("abseiling,../../x,1,2,train", r"line 2: a youtube_id has letters, digits, - and _, found '\.\./\.\./x'"),
        ("abseiling,,1,2,train", "line 2: a youtube_id"),
        ("abseiling,abc,one,2,train", "line 2: time_start is in whole seconds, found 'one'"),
        ("abseiling,abc,1,2", "line 2: expected 5 values, found 4"),
        ("abseiling,abc,1,2,train\nboxing,abc,1,2,train", "line 3: abc_000001_000002 has been listed before, in "),
    ],
)
def test_a_bad_line_is_refused_with_its_number(root: Path, line: str, fault: str) -> None:
    (root / "zzz.csv").write_text(f"{HEADER}\n{line}\n")
    with pytest.raises(Refusal, match=rf"zzz.csv, {fault}"):
        kinetics.read(root)


def test_a_link_that_leads_out_is_refused_with_its_line(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.mp4"
    outside.write_bytes(b"x")
    path = root / f"clips/abseiling/{name(0, 3)}_000003_000013.mp4"
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(Refusal, match=r"train.csv, line 5: clips/abseiling/.* leads out of .*secret\.mp4"):
        kinetics.read(root)


def test_what_is_not_there_is_said(root: Path) -> None:
    (root / "a.csv").write_text("label,id\n")
    with pytest.raises(
        Refusal, match=r"a.csv, line 1: the header must hold label, youtube_id.*; youtube_id is not there"
    ):
        kinetics.class_names(root)
    with pytest.raises(Refusal, match=r"there is no list \*.csv"):
        kinetics.class_names(root / "clips")
    (root / "a.csv").unlink()
    (root / "validate.csv").unlink()
    with pytest.raises(Refusal, match=r"none to test"):
        kinetics.read(root)
