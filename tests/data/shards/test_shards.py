"""Shards: what is written can be read by others, gives the same samples, and fits into a cache of limited size."""

from __future__ import annotations

import gc
import http.server
import json
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinoscope.data import motion
from kinoscope.data.clip_dataset import VideoDataset
from kinoscope.data.datasets import UCF101
from kinoscope.data.manifest import Manifest
from kinoscope.data.motion import MotionParameters
from kinoscope.data.shards import description, store, writing
from kinoscope.data.shards.description import Description, describe
from kinoscope.data.shards.reading import Sharded
from kinoscope.data.shards.store import Ahead, Store
from kinoscope.data.video import Videos
from kinoscope.errors import KinoscopeError, Refusal

CLIP: dict[str, Any] = {"frames": 4, "stride": 2, "resize": 32, "size": 24, "batch_size": 6, "workers": 0}
CLIP |= {"validation": 0.25, "flip": False}
SIZE = 0.05  # megabytes: a dozen shards


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    motion.generate(folder, MotionParameters("local_motion", 0, 5, 2, 32, 12), progress=False)
    return folder


@pytest.fixture(scope="module")
def files(data_dir: Path) -> UCF101:
    root = motion.folder(data_dir, MotionParameters("local_motion", 0, 5, 2, 32, 12))
    data = UCF101(str(root), data_dir=str(data_dir), **CLIP)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def written(files: UCF101, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    files.write_shards(folder, SIZE)
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """The shards in a folder of their own, to be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "shards"))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAUSE", 0.0)


def sharded(root: Path | str, data_dir: Path, **changes: Any) -> Sharded:
    data = Sharded(str(root), data_dir=str(data_dir), **{**CLIP, "window": 2, **changes})
    data.prepare_data()
    data.setup()
    return data


def dataset(data: Videos, subset: str) -> VideoDataset:
    found = data.subsets[subset]  # type: ignore[index]
    assert isinstance(found, VideoDataset)
    return found


def url(folder: Path) -> str:
    return folder.as_uri()


def test_a_shard_is_a_tar_file_of_one_subset_in_random_order(files: UCF101, written: Path) -> None:
    known = describe(str(written))
    manifest = Manifest.open(files.manifest_file)
    seen: list[str] = []
    order: list[int] = []
    for shard in known.shards:
        subset = shard.name.split("-")[0]
        with tarfile.open(written / shard.name) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert (written / shard.name).stat().st_size == shard.bytes <= SIZE * 1e6 + 10240
        for name in [name for name in members if name.endswith(".avi")]:
            said = json.loads(members[name.replace(".avi", ".json")])
            assert members[name] == (files.root / said["path"]).read_bytes()
            assert said["subset"] == subset
            row = int(name.removesuffix(".avi"))
            assert manifest.path(row) == said["path"]
            assert said["frames"] == 12
            (label,) = said["labels"]
            assert known.classes[label] == said["path"].split("/")[1]
            seen.append(said["path"])
            order.append(row)
    assert sorted(seen) == sorted(manifest.column("path"))
    train = [row for row in order if manifest.column("subset")[row] == "train"]
    # Of 36 videos in the order of their classes, shards that were cut without shuffling would hold one class each.
    assert train != sorted(train)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files to be closed
def test_its_library_reads_it(files: UCF101, written: Path) -> None:
    from webdataset.compat import WebDataset

    known = describe(str(written))
    found = WebDataset([str(written / shard.name) for shard in known.shards], shardshuffle=False)
    samples = list(found)
    assert len(samples) == 60
    for sample in samples[::7]:
        assert sample["avi"] == (files.root / json.loads(sample["json"])["path"]).read_bytes()
    del found, samples
    gc.collect()  # or its warnings would meet another test


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("remote", [False, True])
def test_samples_are_those_of_the_files(
    files: UCF101, written: Path, copy: Path, tmp_path: Path, decoder: Any, remote: bool, monkeypatch: Any
) -> None:
    text = (copy / description.NAME).read_text()
    (copy / description.NAME).write_text(text.replace('"decoder": "pyav"', f'"decoder": "{decoder}"'))
    data = sharded(url(copy) if remote else copy, tmp_path, decoder=decoder)
    for subset in ("train", "validation", "test"):
        ours, theirs = dataset(data, subset), dataset(files, subset)
        assert [ours.path(i).relative_to(data.root) for i in range(len(ours))] == [
            theirs.path(i).relative_to(files.root) for i in range(len(theirs))
        ]
        keys = [(3, index) for index in range(len(ours))]
        a, b = ours.__getitems__(keys), theirs.__getitems__(keys)
        assert a.keys() == b.keys()
        for name in ("video", "clips", "draws", "label", "index"):
            if name in a and decoder == "pyav":
                assert torch.equal(a[name], b[name])
        for pixels in {"video", "clips"} & a.keys():
            assert (a[pixels].int() - b[pixels].int()).abs().float().mean() < 1


def test_an_epoch_has_the_same_samples_with_any_number_of_workers(files: UCF101, written: Path, tmp_path: Path) -> None:
    alone = list(sharded(url(written), tmp_path / "a").train_dataloader())
    several = list(sharded(url(written), tmp_path / "b", workers=2).train_dataloader())
    for a, b in zip(alone, several, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("video", "draws", "label", "index"))
    index = torch.cat([batch["index"] for batch in alone])
    assert sorted(index.tolist()) == list(range(36))
    by_index = {int(i): clip for batch in files.train_dataloader() for i, clip in zip(batch["index"], batch["video"], strict=True)}  # fmt: skip  # noqa: E501
    for batch in alone:  # the epoch's order is another one, its clips are the same
        assert all(torch.equal(clip, by_index[int(i)]) for i, clip in zip(batch["index"], batch["video"], strict=True))


def test_a_batch_holds_videos_of_few_shards(written: Path, tmp_path: Path) -> None:
    data = sharded(written, tmp_path)
    source, rows = data.source(Manifest.open(data.manifest_file)), dataset(data, "train").rows
    batches = [{int(source.shards[rows[i]]) for i in batch["index"].tolist()} for batch in data.train_dataloader()]
    assert len(set.union(*batches)) >= 6
    assert max(map(len, batches)) <= 4  # the two of the window, and the two that follow them


def test_writing_again_writes_what_is_missing(files: UCF101, copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}

    before, text = times(), (copy / description.NAME).read_text()
    files.write_shards(copy, SIZE)
    assert times() == before
    victim = describe(str(copy)).shards[2].name
    (copy / victim).unlink()
    files.write_shards(copy, SIZE)
    changed = {name for name, when in times().items() if before[name] != when}
    assert victim in changed
    assert not {name for name in changed if name.endswith(".tar")} - {victim}
    assert (copy / description.NAME).read_text() == text  # the same bytes, and so the same hashes
    files.write_shards(copy, 2 * SIZE)
    assert "earlier data set and can be removed" in caplog.text
    assert len(describe(str(copy)).shards) < len(json.loads(text)["shards"])


def test_what_was_broken_off_is_never_read(files: UCF101, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, whole, calls = tmp_path / "shards", writing._write_shard, []

    def killed(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 3:
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(writing, "_write_shard", killed)
    monkeypatch.setattr(writing, "cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        files.write_shards(folder, SIZE)
    with pytest.raises(Refusal, match=r"holds no shards \(shards\.json is missing\)"):
        describe(str(folder))
    monkeypatch.setattr(writing, "_write_shard", whole)
    done = {path.name for path in folder.glob("*.tar")}
    assert len(done) == 3
    known = files.write_shards(folder, SIZE)
    assert done < {shard.name for shard in known.shards}
    assert sharded(folder, tmp_path).counts() == files.counts()


def test_a_video_that_has_changed_is_not_written(data_dir: Path, files: UCF101, tmp_path: Path) -> None:
    root = Path(shutil.copytree(files.root, tmp_path / "videos"))
    data = UCF101(str(root), data_dir=str(tmp_path / "data"), **CLIP)
    data.prepare_data()
    path = next(root.rglob("*.avi"))
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(KinoscopeError, match=rf"{path.name}: has changed while it was prepared"):
        data.write_shards(tmp_path / "shards", SIZE)
    for shard in (tmp_path / "shards").iterdir():
        assert shard.suffix == ".tar"  # neither half-written nor described
        assert str(path.relative_to(root)).encode() not in shard.read_bytes()


def test_a_bad_video_stays_out_and_keeps_its_reason(files: UCF101, tmp_path: Path) -> None:
    root = Path(shutil.copytree(files.root, tmp_path / "videos"))
    bad = sorted(root.rglob("*_g02_c01.avi"))[0]
    bad.write_bytes(b"no video at all")
    data = UCF101(str(root), data_dir=str(tmp_path / "data"), on_error="skip", **CLIP)
    data.prepare_data()
    data.setup()
    data.write_shards(tmp_path / "shards", SIZE)
    shutil.rmtree(root)
    again = sharded(tmp_path / "shards", tmp_path / "other", on_error="skip")
    assert again.counts() == data.counts() == {"train": 35, "validation": 12, "test": 12}
    assert again.unusable == 1
    assert len(list(again.train_dataloader())) == 5
    with pytest.raises(KinoscopeError, match=bad.name):
        sharded(tmp_path / "shards", tmp_path / "other")


def contents(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.tar*"))


def test_the_cache_stays_below_its_limit_whoever_fetches(written: Path, tmp_path: Path) -> None:
    known = describe(str(written))
    limit = 4 * max(shard.bytes for shard in known.shards)
    stores = [Store(url(written), tmp_path, limit) for _ in range(3)]
    stop = threading.Event()
    most: list[int] = []
    faults: list[BaseException] = []

    def watch() -> None:
        while not stop.is_set():
            try:
                most.append(contents(tmp_path))
            except FileNotFoundError:  # it was evicted between listing and asking
                continue

    def fetch(number: int) -> None:
        try:
            for shard in np.random.default_rng(number).integers(0, len(known.shards), 25).tolist():
                file = known.shards[shard]
                try:
                    size = stores[number].local(file).stat().st_size
                except FileNotFoundError:  # evicted by another one; a reader would ask again
                    continue
                assert size == file.bytes
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(3)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *threads):
        thread.start()
    for thread in threads:
        thread.join(400)
    stop.set()
    watcher.join(100)
    most.append(contents(tmp_path))  # if the watcher's every look met an eviction
    assert not faults
    assert 0 < max(most) <= limit
    assert contents(tmp_path) > limit / 2  # what fits is kept
    assert not list(tmp_path.glob("*.partial"))


def test_what_was_used_last_is_kept(written: Path, tmp_path: Path) -> None:
    known = describe(str(written))
    first, second, third = known.shards[:3]
    held = Store(url(written), tmp_path, first.bytes + second.bytes + third.bytes - 1)
    for shard in (first, second, first, third):
        held.local(shard)
        time.sleep(0.02)
    assert {path.name for path in tmp_path.glob("*.tar")} == {first.name, third.name}


@pytest.mark.parametrize("fails", ["utime", "mkdir"])
def test_a_folder_that_cannot_be_written_is_one_sentence(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    shard = describe(str(written)).shards[0]
    held = Store(url(written), tmp_path / "shards", 10**9)
    if fails == "utime":
        held.local(shard)

    def forbidden(*_: Any, **__: Any) -> None:  # by hand: the tests may run as root, who may do everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(store.os if fails == "utime" else Path, fails, forbidden)
    with pytest.raises(KinoscopeError, match=r"\.tar cannot be written: Permission denied\.$"):
        held.local(shard)


def test_a_fetch_that_was_killed_leaves_no_room_taken(written: Path, tmp_path: Path) -> None:
    known = describe(str(written))
    held = Store(url(written), tmp_path, known.shards[0].bytes)
    abandoned = tmp_path / f"{known.shards[1].name}.partial"
    abandoned.write_bytes(b"x" * known.shards[1].bytes)
    assert held.local(known.shards[0]).exists()
    assert not abandoned.exists()


def test_a_shard_that_is_evicted_is_fetched_again(written: Path, tmp_path: Path) -> None:
    data = sharded(url(written), tmp_path)
    train = dataset(data, "train")
    before = train.__getitems__([(0, 5)])["video"]
    for path in data.store.folder.glob("*.tar"):
        path.unlink()
    assert torch.equal(train.__getitems__([(0, 5)])["video"], before)


def test_a_shard_that_is_not_whole_is_no_shard(copy: Path, tmp_path: Path) -> None:
    file = describe(str(copy)).shards[0]
    whole = (copy / file.name).read_bytes()
    (copy / file.name).write_bytes(whole[:-700] + bytes(700)[:-1] + b"x")
    held = Store(url(copy), tmp_path / "cache", 1 << 30)
    with pytest.raises(KinoscopeError, match=r"cannot be fetched in 3 attempts: .* others than were written"):
        held.local(file)
    assert not list((tmp_path / "cache").glob("*.tar*"))
    (copy / file.name).unlink()
    with pytest.raises(KinoscopeError, match=f"{file.name} cannot be fetched"):
        held.local(file)
    with pytest.raises(KinoscopeError, match=rf"{file.name}: has 0 bytes instead of {file.bytes}"):
        sharded(copy, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_storage_that_fails_ends_the_run_with_one_sentence(copy: Path, tmp_path: Path, workers: int) -> None:
    data = sharded(url(copy), tmp_path, workers=workers, on_error="skip")
    for path in (*copy.glob("*.tar"), *data.store.folder.glob("*.tar")):
        path.unlink()
    with pytest.raises(KinoscopeError, match="cannot be fetched in 3 attempts") as caught:
        data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert "\n" not in str(caught.value)


def test_waiting_for_a_shard_is_no_fault_of_its_video(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Store._download

    def slow(self: Store, *arguments: Any) -> None:
        time.sleep(2.5)
        quick(self, *arguments)

    data = sharded(url(written), tmp_path, workers=1, time_limit=2.0, window=1)
    monkeypatch.setattr(Store, "_download", slow)
    data.ahead.expect = lambda shard: None  # type: ignore[method-assign]
    loader = data.train_dataloader()
    assert len(next(iter(loader))["index"]) == 6
    loader.close()
    assert data.store.folder.exists()
    assert loader.watchdog is not None
    assert not loader.watchdog.lost


def test_shards_are_fetched_ahead(written: Path, tmp_path: Path) -> None:
    held = Store(url(written), tmp_path, 1 << 30)
    ahead = Ahead(held)
    for shard in (3, 1):
        ahead.expect(shard)
    wanted = {held.description.shards[shard].name for shard in (3, 1)}
    deadline = time.monotonic() + 120
    while {path.name for path in tmp_path.glob("*.tar")} != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {path.name for path in tmp_path.glob("*.tar")} == wanted


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def server(written: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(written))) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join(10)


def test_shards_come_from_a_web_server(files: UCF101, server: str, tmp_path: Path) -> None:
    data = sharded(server, tmp_path, workers=1)
    batches = list(data.train_dataloader())
    assert sum(len(batch["index"]) for batch in batches) == 36
    theirs = dataset(files, "train").__getitems__([(0, int(batches[0]["index"][0]))])
    assert torch.equal(batches[0]["video"][:1], theirs["video"])
    with pytest.raises(Refusal, match=r"holds no shards \(shards.json is missing\)"):
        describe(f"{server}/elsewhere")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"validation": 0.1}, r"data\.validation=0\.1: .* was written with 0\.25"),
        ({"decoder": "decord"}, r"data\.decoder=decord: .* was prepared for pyav"),
        ({"cache": "jpeg"}, r"data\.cache=jpeg: shards are read as they are"),
        ({"window": 0}, r"data\.window must be at least 1"),
        ({"cache_gigabytes": 1e-5}, r"data\.cache_gigabytes=1e-05 does not hold the 6 shards"),
    ],
)
def test_nonsense_is_refused(written: Path, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises((Refusal, ValueError), match=sentence):
        sharded(url(written), tmp_path, **changes)


def test_shards_of_shards_are_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="are shards already"):
        sharded(written, tmp_path).write_shards(tmp_path / "more", SIZE)


@pytest.mark.parametrize("name", ["../../.bashrc", "/etc/passwd", ".hidden", "a\\b"])
def test_a_description_cannot_name_files_elsewhere(written: Path, name: str) -> None:
    known = describe(str(written))
    spoilt = replace(known, shards=(replace(known.shards[0], name=name), *known.shards[1:]))
    with pytest.raises(Refusal, match="does not lie beside it"):
        Description.parse(spoilt.text(), "shards.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "kinoscope shards 99"}', '{"format": "kinoscope shards 1"}']
)
def test_what_describes_no_shards_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / description.NAME).write_text(text)
    with pytest.raises(Refusal) as caught:
        describe(str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(Refusal, match="cannot be opened"):
        describe("nonsense://host/folder")
