"""The manifest: what is in each file, bad ones included, measured once."""

import os
import pickle
from pathlib import Path

import numpy as np
import preparing
import pyarrow as pa
import pytest

from kinoscope.data import motion, prepare
from kinoscope.data.lists.listing import VideoEntry, listing
from kinoscope.data.manifest import Manifest
from kinoscope.errors import KinoscopeError

LENGTHS = (5, 24, 31)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos of 5, 24 and 31 frames, and one of each kind of bad file."""
    root = tmp_path_factory.mktemp("videos")
    noise = np.random.default_rng(0).integers(0, 255, (max(LENGTHS), 32, 48, 3), dtype=np.uint8)
    for length in LENGTHS:
        (root / f"good{length}.avi").write_bytes(motion.encode(noise[:length], 25))
    whole = (root / "good31.avi").read_bytes()
    (root / "empty.avi").write_bytes(b"")
    (root / "text.avi").write_bytes(b"these are words\n" * 300)
    (root / "half.avi").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    chunk = whole.index(b"movi")
    for _ in range(max(LENGTHS)):  # in the pictures' data, behind the headers that hold the stream together
        chunk = whole.index(b"00dc", chunk) + 4
        damaged[chunk + 504 : chunk + 508] = b"\xff" * 4
    (root / "damaged.avi").write_bytes(damaged)
    return root


def entries(*names: str) -> pa.Table:
    rows = [VideoEntry(name, k % 2, f"g{k}", "test" if k % 3 == 2 else "train") for k, name in enumerate(names)]
    return listing(rows)


def build(root: Path, destination: Path, *names: str, **options: float) -> Manifest:
    return prepare.build(root, entries(*names), destination, "pyav", progress=False, workers=1, **options)  # type: ignore[arg-type]


GOOD = tuple(f"good{length}.avi" for length in LENGTHS)


def test_good_videos_are_measured(videos: Path, tmp_path: Path) -> None:
    built = prepare.build(videos, entries(*GOOD), tmp_path / "new" / "m.arrow", "decord", progress=False, workers=1)
    assert built.column("frames").tolist() == list(LENGTHS)
    assert built.column("key_frame_spacing").tolist() == [5, 12, 12]
    assert built.column("width").tolist() == [48] * 3
    assert built.column("height").tolist() == [32] * 3
    assert built.column("fps").tolist() == [25.0] * 3
    assert built.column("damaged").tolist() == [0] * 3
    assert built.column("bytes").tolist() == [(videos / name).stat().st_size for name in GOOD]
    assert all(len(sha) == 64 for sha in built.column("sha"))
    assert built.good().all()
    assert [built.path(row) for row in range(3)] == list(GOOD)
    assert built.rows("train").tolist() == [0, 1]
    assert built.rows("test").tolist() == [2]
    assert built.rows("validation").tolist() == []
    assert built.labels()[0].tolist() == [0, 1, 0]
    assert built.labels()[1].tolist() == [0, 1, 2, 3]


def test_bad_files_are_rows_with_a_reason(videos: Path, tmp_path: Path) -> None:
    reasons = {
        "absent.avi": "no such file",
        "empty.avi": "is empty",
        "text.avi": "is not a video",
        "half.avi": "is cut short or damaged; of the 31 frames it announces",
        "damaged.avi": "frames do not decode cleanly",
    }
    built = build(videos, tmp_path / "m.arrow", *reasons, GOOD[0])
    assert built.good().tolist() == [False] * 5 + [True]
    for row, (name, reason) in enumerate(reasons.items()):
        assert built.error(row).startswith(name)
        assert reason in built.error(row)
        assert "\n" not in built.error(row)
        assert str(videos) not in built.error(row)


def test_a_file_that_takes_too_long_is_given_up(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(preparing.WATCHED))
        patched.setenv("KINOSCOPE_TEST_PASSING", f"hold:{GOOD[0]}")
        built = build(videos, tmp_path / "m.arrow", GOOD[0], time_limit=0.1)
    assert built.error(0) == f"{GOOD[0]}: decoding it took more than 0.1 s and was stopped."
    assert built.column("frames").tolist() == [0]
    again = build(videos, tmp_path / "m.arrow", GOOD[0])  # the disk may have stalled
    assert again.good().tolist() == [True]
    assert again.column("frames").tolist() == [LENGTHS[0]]


def test_only_new_and_changed_files_are_measured(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    original = prepare.in_children

    def counted(function, calls, *rest):
        measured.extend(Path(call[0]).name for call in calls)
        return original(function, calls, *rest)

    monkeypatch.setattr(prepare, "in_children", counted)
    root = tmp_path / "root"
    root.mkdir()
    for name in GOOD:
        (root / name).write_bytes((videos / name).read_bytes())
    destination = tmp_path / "m.arrow"
    first = build(root, destination, *GOOD[:2])
    assert measured == list(GOOD[:2])
    build(root, destination, *GOOD[:2])
    assert measured == list(GOOD[:2])

    measured.clear()
    (root / GOOD[0]).write_bytes((root / GOOD[2]).read_bytes())  # another size
    os.utime(root / GOOD[1], ns=(1, 1))  # another time
    again = build(root, destination, GOOD[2], GOOD[1], GOOD[0])
    assert sorted(measured) == sorted(GOOD)
    assert again.column("frames").tolist() == [31, 24, 31]
    assert first.column("frames").tolist() == [5, 24]  # the file that is mapped lives on
    measured.clear()
    moved = build(root, destination, GOOD[1], GOOD[2])
    assert measured == []
    assert moved.column("frames").tolist() == [24, 31]
    assert moved.column("sha")[1] == again.column("sha")[0]
    prepare.build(root, entries(GOOD[0]), destination, "decord", progress=False, workers=1)
    assert measured == [GOOD[0]]  # another decoder has to try it again


def test_workers_map_the_same_file(videos: Path, tmp_path: Path) -> None:
    built = build(videos, tmp_path / "m.arrow", *GOOD)
    pickled = pickle.dumps(built)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert np.array_equal(copy.column("frames"), built.column("frames"))
    assert not built.column("frames").flags.owndata


def test_no_entries_are_an_empty_manifest(tmp_path: Path) -> None:
    built = build(tmp_path, tmp_path / "m.arrow")
    assert len(built) == 0
    assert built.column("frames").shape == (0,)
    assert built.rows("train").shape == (0,)


def test_faults_are_one_sentence_and_leave_nothing(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(KinoscopeError, match="there is no manifest"):
        Manifest.open(tmp_path / "m.arrow")
    (tmp_path / "m.arrow").write_text("these are words")
    with pytest.raises(KinoscopeError, match="is not a manifest"):
        Manifest.open(tmp_path / "m.arrow")
    assert build(videos, tmp_path / "m.arrow", GOOD[0]).good().all()  # what cannot be read is written anew
    with pytest.raises(KinoscopeError, match="cannot be written") as caught:
        build(videos, tmp_path / "m.arrow" / "below" / "a-file.arrow", GOOD[0])
    assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".m.arrow.lock", "m.arrow"]
