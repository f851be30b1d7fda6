"""HMDB51's split files and folders, on a small copy of their layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinoscope.data.lists import hmdb51
from kinoscope.data.lists.listing import counts
from kinoscope.errors import Refusal

CLASSES = ("brush_hair", "cartwheel")


def stem(name: str, film: int, clip: int) -> str:
    return f"Film_{film}_{name}_u_nm_np1_ba_goo_{clip}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """2 classes × 10 films × 3 clips, empty files. Split 1: films 0–5 train, 6–8 test, 9 left out."""
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    for name in CLASSES:
        (tmp_path / name).mkdir()
        lines = []
        for film in range(10):
            for clip in range(3):
                (tmp_path / name / f"{stem(name, film, clip)}.avi").write_bytes(b"x" * film)
                lines.append(f"{stem(name, film, clip)}.avi {1 if film < 6 else 2 if film < 9 else 0} \r\n")
        (lists / f"{name}_test_split1.txt").write_bytes("".join(lines).encode())
    return tmp_path


def write(root: Path, text: str, name: str = CLASSES[0]) -> None:
    (root / hmdb51.LISTS / f"{name}_test_split1.txt").write_text(text)


def test_flags_say_the_subset(root: Path) -> None:
    table = hmdb51.read_split(root, 1, validation=0)
    assert counts(table) == {"train": 36, "test": 18}
    for row in table.to_pylist():
        assert (root / row["path"]).is_file()
        name = CLASSES[row["labels"][0]]
        film = int(Path(row["path"]).stem.split("_")[1])
        assert row["path"].startswith(f"{name}/")
        assert row["group"] == f"{name}/Film_{film}"
        assert row["subset"] == ("train" if film < 6 else "test")


def test_validation_holds_out_whole_films_of_every_class(root: Path) -> None:
    rows = hmdb51.read_split(root, 1, validation=0.3).to_pylist()
    for label in range(2):
        held = {row["group"] for row in rows if row["subset"] == "validation" and row["labels"] == [label]}
        kept = {row["group"] for row in rows if row["subset"] == "train" and row["labels"] == [label]}
        assert (len(held), len(kept)) == (2, 4)  # 0.3 of six films
        assert not held & kept


@pytest.mark.parametrize("folder", hmdb51.FOLDERS)
def test_class_folders_may_lie_deeper(root: Path, folder: str) -> None:
    before = hmdb51.read_split(root, 1)
    (root / folder).mkdir()
    for name in CLASSES:
        (root / name).rename(root / folder / name)
    after = hmdb51.read_split(root, 1)
    assert after["path"].to_pylist() == [f"{folder}/{path}" for path in before["path"].to_pylist()]
    assert after.drop_columns("path") == before.drop_columns("path")


def test_classes_are_those_on_disk_or_chosen(root: Path) -> None:
    assert hmdb51.class_names(root, 1) == list(CLASSES)
    assert hmdb51.class_names(root, 1, ["CARTWHEEL"]) == ["cartwheel"]
    assert {tuple(row) for row in hmdb51.read_split(root, 1, ["cartwheel"])["labels"].to_pylist()} == {(0,)}
    (root / "brush_hair").rename(root / "_elsewhere")
    assert hmdb51.class_names(root, 1) == ["cartwheel"]
    with pytest.raises(Refusal, match=r"'brush_hair' has no folder"):
        hmdb51.class_names(root, 1, ["brush_hair"])
    with pytest.raises(Refusal, match=r"'cartweel' is not a class of .*did you mean 'cartwheel'"):
        hmdb51.class_names(root, 1, ["cartweel"])


def test_a_missing_video_keeps_its_row(root: Path) -> None:
    before = hmdb51.read_split(root, 1)
    gone = root / CLASSES[0] / f"{stem(CLASSES[0], 0, 0)}.avi"
    gone.unlink()
    after = hmdb51.read_split(root, 1)
    assert after.drop_columns("path") == before.drop_columns("path")
    assert after["path"][0].as_py() == f"{CLASSES[0]}/{stem(CLASSES[0], 0, 0)}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a.avi 1\nb.avi 3\n", "line 2: expected '<name>.avi 1', 2 or 0, found 'b.avi 3'"),
        ("a.avi\n", "line 1: expected"),
        ("\n../b.avi 1\n", r"line 2: expected .* found '\.\./b.avi 1'"),
        ("/etc/passwd.avi 1\n", "line 1: expected"),
        ("..\\b.avi 1\n", "line 1: expected"),
        ("a.avi 1\nb.avi 2\na.avi 2\n", "line 3: 'a' has been listed before, in line 1"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(root: Path, text: str, fault: str) -> None:
    write(root, text)
    with pytest.raises(Refusal, match=rf"brush_hair_test_split1.txt, {fault}"):
        hmdb51.read_split(root, 1)


def test_a_link_that_leads_out_is_refused_with_its_line(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.avi"
    outside.write_bytes(b"x")
    path = root / CLASSES[0] / f"{stem(CLASSES[0], 0, 1)}.avi"
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(Refusal, match=r"brush_hair_test_split1.txt, line 2: brush_hair/.* leads out of .*secret\.avi"):
        hmdb51.read_split(root, 1)
    path.unlink()
    path.symlink_to(root / CLASSES[0] / f"{stem(CLASSES[0], 0, 2)}.avi")  # inside: a name is as good as another
    assert hmdb51.read_split(root, 1)["path"].to_pylist()[1] == path.relative_to(root).as_posix()


def test_what_is_not_there_is_said(root: Path) -> None:
    with pytest.raises(Refusal, match=r"no folder '.*nowhere'"):
        hmdb51.class_names(root / "nowhere", 1)
    with pytest.raises(Refusal, match=r"_test_split2.txt: there is no such file"):
        hmdb51.class_names(root, 2)
    with pytest.raises(Refusal, match=r"data.split is 1, 2 or 3, got 4"):
        hmdb51.class_names(root, 4)
