"""``kinoscope prepare … shards=<folder>``, then training and evaluating with nothing else left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny import ONE_EPOCH, VIDEO, Command

from kinoscope.data.shards.description import describe
from kinoscope.runs.folder import RunFolder

MOTION = ["data=motion", "data.groups=8", "data.clips_per_group=1"]
TRAIN = [key for key in VIDEO if not key.startswith(("data.groups", "data.clips_per_group"))]
SMALL = ["data.frames=1", "data.resize=64", "data.size=56", "data.test_views=2", "data.window=2"]


@pytest.fixture
def shards(run: Command, here: Path) -> Path:
    """Shards, beside nothing that they were made from."""
    outcome = run("prepare", *MOTION, "shards=shards", "shard_megabytes=0.15")
    assert outcome.code == 0, outcome.err
    assert "data=shards data.root=shards trains from them" in outcome.out
    shutil.rmtree(here / "data")
    return here / "shards"


def test_a_run_needs_nothing_but_shards(run: Command, shards: Path, here: Path) -> None:
    first = run("train", *TRAIN, *SMALL, *ONE_EPOCH, "data=shards", "data.root=shards")
    assert first.code == 0, first.err
    folder = RunFolder.open(first.out.strip().splitlines()[-1])
    summary = json.loads(folder.summary_file.read_text())
    assert summary["status"] == "finished"
    again = run("evaluate", f"run={folder.path}", "accelerator=cpu", "workers=0")
    assert again.code == 0, again.err

    # The same, fetched into a folder that holds no more than the shards in use: the same run, to the last number.
    known = describe(str(shards))
    room = sum(sorted(shard.bytes for shard in known.shards)[-6:]) / 1e9
    url = (here / "shards").as_uri()
    other = run("train", *TRAIN, *SMALL, *ONE_EPOCH, "data=shards", f"data.root={url}", f"data.cache_gigabytes={room}")
    assert other.code == 0, other.err
    twin = json.loads(RunFolder.open(other.out.strip().splitlines()[-1]).summary_file.read_text())
    assert twin["signature"] == summary["signature"]
    assert (twin["last"], twin["test"]) == (summary["last"], summary["test"])
    held = sum(path.stat().st_size for path in (here / "data" / "shards").rglob("*.tar"))
    assert 0 < held <= room * 1e9 < sum(shard.bytes for shard in known.shards)


def test_what_cannot_be_is_refused(run: Command, shards: Path, here: Path) -> None:
    data = ["data=shards", "data.root=shards"]
    for arguments, sentence in (
        (["data=shards", "data.root=nowhere"], "'nowhere' holds no shards"),
        ([*data, "data.validation=0.5"], "data.validation=0.5: shards was written with 0.1"),
        ([*data, "data.cache=jpeg"], "shards are read as they are"),
        ([*data, "data/flow=dis"], "holds videos alone"),
        (["data=shards"], "data.root"),
    ):
        outcome = run("train", *TRAIN, *SMALL, *arguments)
        assert outcome.code == 2, outcome.err
        assert sentence in outcome.err
    for arguments, sentence in (
        (["data=digits", "shards=more"], "only videos in files of their own"),
        ([*data, "shards=more"], "are shards already"),
    ):
        outcome = run("prepare", *arguments)
        assert outcome.code == 2
        assert sentence in outcome.err
    assert not (here / "more").exists()
    assert not (here / "outputs").exists()


def test_without_its_library_nothing_begins(run: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    outcome = run("prepare", *MOTION, "shards=shards")
    assert outcome.code == 2
    assert "pip install 'kinoscope[shards]'" in outcome.err
    assert not (here / "data").exists()
