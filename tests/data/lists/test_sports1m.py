"""Sports-1M's lists: small ones, and one of the real length."""

from __future__ import annotations

import logging
import random
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from kinoscope.data.lists import sports1m
from kinoscope.data.lists.listing import counts
from kinoscope.errors import Refusal

URL = "https://www.youtube.com/watch?v="


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """4 classes; 40 training and 10 test videos, every fifth with two labels; half of them are there."""
    (tmp_path / "labels.txt").write_text("boomerang\nboxing\nbowling\nmodel aircraft\n")
    (tmp_path / "original").mkdir()
    (tmp_path / "videos").mkdir()
    for subset, numbers in (("train", range(40)), ("test", range(40, 50))):
        lines = [f"{URL}-a_{k:03d} {labels(k)}\r\n" for k in numbers]
        (tmp_path / "original" / f"{subset}_partition.txt").write_bytes("".join(lines).encode())
        for k in numbers[::2]:
            (tmp_path / "videos" / f"-a_{k:03d}.{'flv' if k % 4 else 'mp4'}").write_bytes(b"x" * k)
    return tmp_path


def labels(k: int) -> str:
    return f"{k % 4},{(k + 1) % 4}" if k % 5 == 0 else f"{k % 4}"


def write(root: Path, text: str, subset: str = "train") -> None:
    (root / "original" / f"{subset}_partition.txt").write_text(text)


def test_rows_labels_and_subsets_are_those_of_the_lists(root: Path) -> None:
    table = sports1m.read(root, validation=0)
    assert counts(table) == {"train": 40, "test": 10}
    for k, row in enumerate(table.to_pylist()):
        assert row["labels"] == [int(label) for label in labels(k).split(",")]
        assert row["group"] == f"-a_{k:03d}"
        assert (root / row["path"]).is_file() == (k % 2 == 0)
        assert row["path"].startswith(f"videos/-a_{k:03d}")


def test_videos_are_found_at_any_depth(root: Path) -> None:
    before = sports1m.read(root)
    (root / "videos/a/b").mkdir(parents=True)
    for file in root.glob("videos/*.flv"):
        file.rename(root / "videos/a/b" / file.name)
    after = sports1m.read(root)
    assert after.drop_columns("path") == before.drop_columns("path")
    assert sum((root / path).is_file() for path in after["path"].to_pylist()) == 25


def test_of_two_containers_the_first_suffix_counts(root: Path) -> None:
    (root / "videos/-a_000.webm").touch()
    (root / "videos/-a_000.avi").touch()
    assert sports1m.read(root)["path"][0].as_py() == "videos/-a_000.avi"


def test_what_is_held_out_does_not_depend_on_what_is_there(root: Path) -> None:
    before = sports1m.read(root, validation=0.3)
    for file in root.glob("videos/*"):
        file.unlink()
    after = sports1m.read(root, validation=0.3)
    assert counts(before) == {"train": 28, "validation": 12, "test": 10}
    assert before["subset"] == after["subset"]


def test_addresses_may_be_written_in_several_ways(root: Path) -> None:
    write(root, "https://youtu.be/aaa 0\nhttp://www.youtube.com/watch?feature=x&v=bbb&t=3 1,2\nccc  3\n\nddd 0")
    table = sports1m.read(root, validation=0)
    assert table["group"].to_pylist()[:4] == ["aaa", "bbb", "ccc", "ddd"]
    assert table["labels"].to_pylist()[:4] == [[0], [1, 2], [3], [0]]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"{URL}abc 0\n\n{URL}abd\n", "line 3: expected an address and labels like 168,169, found '.*abd'"),
        (f"{URL}abc 0,\n", "line 1: expected"),
        (f"{URL}../../etc/passwd 0\n", "line 1: expected"),
        ("/etc/passwd 0\n", "line 1: expected"),
        (f"{URL}abc 0 1\n", "line 1: expected"),
        (f'"{URL}abc 0"\n', "line 1: expected"),
        (f"{URL}abc 0\n{URL}abd 1,4\n", "line 2: the label 4 is none of the 4 of labels.txt, counted from 0"),
        (f"{URL}abc 0\n\n{URL}abd 1\n{URL}abc 1\n", "line 4: abc has been listed before, in line 1"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(root: Path, text: str, fault: str) -> None:
    write(root, text)
    with pytest.raises(Refusal, match=rf"train_partition.txt, {fault}"):
        sports1m.read(root)


def test_a_video_in_training_and_test_is_refused(root: Path) -> None:
    write(root, f"{URL}xyz 0\n{URL}-a_007 1\n", "test")
    with pytest.raises(Refusal, match=r"test_partition.txt, line 2: -a_007 is in train_partition.txt too"):
        sports1m.read(root)


def test_a_fold_may_have_a_video_on_both_sides(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "cross-validation").mkdir()
    (root / "cross-validation/sports3_train.txt").write_text(f"{URL}-a_000 0\n{URL}-a_001 1\n{URL}-a_002 1\n")
    (root / "cross-validation/sports3_test.txt").write_text(f"{URL}-a_000 2\n")
    with caplog.at_level(logging.INFO, "kinoscope"):
        rows = sports1m.read(root, fold=3, validation=0).to_pylist()
    assert [(row["group"], row["labels"], row["subset"]) for row in rows] == [
        ("-a_000", [0], "train"), ("-a_001", [1], "train"), ("-a_002", [1], "train"), ("-a_000", [2], "test"),
    ]  # fmt: skip
    assert "fold 3 has 1 videos with several labels both in training and in the test" in caplog.text
    with pytest.raises(Refusal, match=r"sports4_train.txt is missing"):
        sports1m.read(root, fold=4)


def test_a_link_that_leads_out_is_refused_with_its_line(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "-a_005.mp4").write_bytes(b"x")
    (root / "videos/-a_005.mp4").symlink_to(outside / "-a_005.mp4")
    with pytest.raises(Refusal, match=r"train_partition.txt, line 6: videos/-a_005.mp4 leads out of .*, to .*outside"):
        sports1m.read(root)
    (root / "videos/-a_005.mp4").unlink()
    (root / "videos/more").symlink_to(outside)
    with pytest.raises(Refusal, match=r"videos/more is a link that leads out of .*, to .*outside"):
        sports1m.read(root)


def test_what_is_not_there_is_said(root: Path) -> None:
    (root / "labels.txt").write_text("boomerang\n\nboxing\n")
    with pytest.raises(Refusal, match=r"labels.txt, line 2: is empty"):
        sports1m.class_names(root)
    (root / "labels.txt").write_text("boomerang\nboxing\nboomerang\n")
    with pytest.raises(Refusal, match=r"line 3: the class 'boomerang' has been named before, in line 1"):
        sports1m.class_names(root)
    (root / "labels.txt").unlink()
    with pytest.raises(Refusal, match=r"labels.txt is missing"):
        sports1m.class_names(root)
    (root / "labels.txt").write_text("boomerang\n" + "\n".join("abc"))
    (root / "original/test_partition.txt").rename(root / "original/test_partition.txt.gz")
    with pytest.raises(Refusal, match=r"test_partition.txt is missing; unpack it with gzip -d"):
        sports1m.read(root)
    with pytest.raises(Refusal, match=r"data.fold is 0 to 9"):
        sports1m.read(root, fold=10)


def test_a_million_lines_never_become_python_objects(root: Path) -> None:
    """The real number of lines: Python, with NumPy, never holds as much as the ids alone would take as strings."""
    draw = random.Random(0)
    total = 1_133_158
    test = total // 5
    with (root / "original/test_partition.txt").open("w") as file:
        file.writelines(f"{URL}{k:011x} {draw.randrange(4)}\n" for k in range(test))
    with (root / "original/train_partition.txt").open("w") as file:
        file.writelines(f"{URL}{k:011x} {draw.randrange(4)},{draw.randrange(4)}\n" for k in range(test, total))
    tracemalloc.start()
    try:
        table = sports1m.read(root)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(table) == total
    assert counts(table)["validation"] == pytest.approx(0.1 * (total - test), abs=4)  # rounded once per class
    assert peak < sys.getsizeof("x" * 11) * total
    pa.default_memory_pool().release_unused()
