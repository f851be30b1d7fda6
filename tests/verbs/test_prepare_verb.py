"""``kinoscope prepare``: generates or indexes once, and says what is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tiny import VIDEO, Command

from kinoscope.runs.folder import RunFolder

MOTION = ["data=motion", "data.groups=8", "data.clips_per_group=1"]
SAMPLES = """
subset          samples
train                30
validation            6
test                 12
6 classes of video; data hash """


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_it_prints_a_table_and_a_second_call_does_nothing(run: Command, here: Path) -> None:
    first = run("prepare", *MOTION)
    assert first.code == 0, first.err
    assert first.out.startswith("videos of        listed   missing     bad        frames     hours     bytes\ntrain")
    assert SAMPLES in first.out
    assert {path.name for path in here.iterdir()} == {"data"}
    written = times(here / "data")
    assert sum(path.suffix == ".avi" for path in written) == 48
    second = run("prepare", *MOTION)
    assert second.out == first.out
    after = times(here / "data")
    assert after == written
    assert "generating" not in second.err
    assert "indexing" not in second.err


def test_a_cache_is_made_once_by_prepare_or_by_training(run: Command, here: Path, data_dir: str) -> None:
    """Both keep the same frames in the same place; whoever comes second finds them."""
    videos = ["data.groups=8", "data.clips_per_group=1", "data.cache=raw"]
    train = ["train", *VIDEO, data_dir, *videos, "trainer.max_epochs=1"]
    prepared = run("prepare", "data=motion", *videos, data_dir)
    assert prepared.code == 0, prepared.err
    cache = Path(data_dir.removeprefix("data_dir=")) / "cache"
    (line,) = re.findall(r"^raw +48 +0 .*", prepared.out, re.MULTILINE)
    first = times(cache)
    assert sum(path.suffix == ".raw" for path in first) == 48
    trained = run(*train)
    assert trained.code == 0, trained.err
    assert times(cache) == first
    shutil.rmtree(cache)
    trained = run(*train, "data.seed=1")
    assert trained.code == 0, trained.err
    assert "preparing" in trained.err
    assert {path.relative_to(cache) for path in times(cache)} == {path.relative_to(cache) for path in first}
    assert line in run("prepare", "data=motion", *videos, data_dir).out


def test_the_hash_is_that_of_a_run_on_these_data(run: Command, classifier: RunFolder, data_dir: str) -> None:
    import json

    outcome = run("prepare", *MOTION, data_dir)
    found = re.search(r"data hash ([0-9a-f]{16})$", outcome.out.strip())
    assert found is not None
    assert json.loads(classifier.provenance_file.read_text())["data_hash"].startswith(found[1])


def test_images(run: Command, here: Path) -> None:
    outcome = run("prepare", "data=digits", "data.validation=0.25")
    assert outcome.code == 0, outcome.err
    assert [line.split() for line in outcome.out.splitlines()[1:4]] == [
        ["train", "1,078"], ["validation", "359"], ["test", "360"],
    ]  # fmt: skip
    assert list(here.iterdir()) == []


def test_a_folder_that_is_not_there_is_refused(run: Command, here: Path) -> None:
    outcome = run("prepare", "data=ucf101", "data.root=nowhere")
    assert outcome.code == 2
    assert "there is no folder 'nowhere'" in outcome.err
    assert list(here.iterdir()) == []


def test_a_data_folder_that_cannot_be_written_is_one_sentence(run: Command, here: Path) -> None:
    (here / "data").write_text("a file in its place")
    for command in (["prepare", *MOTION], ["train", "experiment=video/single_frame_small", *MOTION, "logger=csv"]):
        outcome = run(*command)
        assert outcome.code in (1, 2)
        assert outcome.err.startswith("kinoscope: ")
        assert outcome.err.count("\n") == 1
    assert [path.name for path in here.iterdir()] == ["data"]


def test_bad_files_are_listed(run: Command, videos: Path) -> None:
    """`prepare` names each bad file with its reason; nothing is half-written."""
    bad = sorted(videos.rglob("*.avi"))[:2]
    for path in bad:
        path.write_bytes(b"")
    command = ["prepare", "data=ucf101", f"data.root={videos}", "data.frames=10"]
    outcome = run(*command, "data.on_error=skip")
    assert outcome.code == 0, outcome.err
    assert all(path.name in outcome.err for path in bad)
    names = ", ".join(str(path.relative_to(videos)) for path in bad)
    assert re.search(rf"^ +2   the file is empty \(# bytes\): {re.escape(names)}$", outcome.out, re.MULTILINE)
    strict = run(*command)  # what training would refuse, prepare says, behind the table
    assert strict.code == 1
    assert f"{bad[0].name}: the file is empty" in strict.err
    assert "the file is empty (# bytes)" in strict.out
