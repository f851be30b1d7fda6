"""A sample that never ends, or crashes its reader, costs that sample and no more; whatever the decoder is doing."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import spinning
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from kinoscope.data import decode, loading, watchdog
from kinoscope.data.loading import Key, KeyedBatchSampler, KeyedLoader
from kinoscope.data.manifest import Manifest
from kinoscope.data.watchdog import Watchdog
from kinoscope.errors import DecodeError, KinoscopeError

LIMIT = 60  # seconds; where one of these samples spins, they pass at once
SHORT = 0.8  # seconds; where they really pass


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead worker is noticed soon: torch asks every 5 seconds whether its workers live."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


class Source:
    """Sample k is the number k. Some never come, some end their process."""

    def __init__(self, n: int, bad: dict[int, str], limit: float | None = LIMIT) -> None:
        self.n, self.bad, self.watchdog = n, bad, Watchdog(limit)

    def __len__(self) -> int:
        return self.n

    def path(self, index: int) -> str:
        return f"video{index}.avi"

    def work(self, index: int) -> None:
        if index in self.bad:
            spinning.hang(self.bad[index])

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        kept, reasons = [], []
        for _, index in keys:
            try:
                with self.watchdog.over(index):
                    self.work(index)
                    kept.append(index)
            except DecodeError as error:
                reasons.append(str(error))
        return {"index": torch.tensor(kept), "skipped": reasons, "process": os.getpid()}


def loader(source: Source, workers: int, shuffle: bool = True) -> KeyedLoader:
    return KeyedLoader(source, KeyedBatchSampler(len(source), 3, seed=1, shuffle=shuffle), workers)


def indices(batches: list[dict[str, Any]]) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stuck", [1, 2])
def test_workers_that_hang_before_they_begin_are_started_anew(
    workers: int, stuck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a forked process does that waits for a lock which another thread of its parent held."""
    begin, stuck_ones = watchdog.start, multiprocessing.get_context("fork").RawArray("q", stuck)  # their numbers
    ahead = 0.0

    def start(reading: Any, worker: int) -> None:
        if worker == max(workers, 1) - 1 and 0 in stuck_ones[:]:
            stuck_ones[stuck_ones[:].index(0)] = os.getpid()
            spinning.hang("lock")
        begin(reading, worker)

    def monotonic() -> float:
        """Leaps where one of the workers hangs; the others have all the time that a busy machine may need."""
        nonlocal ahead
        if any(worker.pid in stuck_ones[:] for worker in under_test._iterator._workers):  # type: ignore[union-attr]
            ahead += loading.START
        return time.monotonic() + ahead

    good = loader(Source(20, {}), workers)
    expected = indices(list(good))
    good.close()
    monkeypatch.setattr(watchdog, "start", start)
    monkeypatch.setattr(loading, "START", 300.0)
    monkeypatch.setattr(loading, "time", SimpleNamespace(monotonic=monotonic, sleep=time.sleep))
    under_test = loader(Source(20, {}), workers)
    assert indices(list(under_test)) == expected
    assert 0 not in stuck_ones[:]
    under_test.close()


def test_workers_that_never_begin_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "start", lambda *_: spinning.hang("free"))
    monkeypatch.setattr(loading, "START", 0.2)
    with pytest.raises(KinoscopeError, match=r"did not start within 0\.2 s, 3 times in a row; try data\.workers=0"):
        next(iter(loader(Source(20, {}), 0)))


@pytest.mark.parametrize(("workers", "how"), [(0, "lock"), (1, "free"), (2, "lock"), (2, "crash")])
def test_batches_are_the_others_in_their_order(workers: int, how: str) -> None:
    good = loader(Source(20, {}), workers)
    expected = [[[i for i in batch if i not in (4, 11)] for batch in indices(list(good))] for _ in range(2)]
    good.close()
    source = Source(20, {4: how, 11: how})
    under_test = loader(source, workers)
    found, batches = [], []
    for _ in range(2):  # in the second epoch nothing has to end any more
        batches = list(under_test)
        found.append(indices(batches))
        reasons = sorted(reason for batch in batches for reason in batch["skipped"])
        said = "ended the process that worked on it (SIGSEGV)" if how == "crash" else (
            f"took more than data.time_limit={LIMIT} s and was stopped"
        )  # fmt: skip
        assert reasons == [f"video{i}.avi: decoding it {said}." for i in (11, 4)]
    assert found == expected
    assert os.getpid() not in {batch["process"] for batch in batches}  # which no time limit could have ended
    under_test.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stall_that_passes_costs_no_sample(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    """As of a job that is suspended for a while: the clock runs on, and the alarm rings as soon as it continues."""
    stalled = multiprocessing.get_context("fork").RawArray("b", 20)  # no file: a disk may stall as well

    class Stalls(Source):
        def work(self, index: int) -> None:
            if index in (4, 11) and not stalled[index]:
                stalled[index] = 1
                # Where this process is too slow to be suspended by then, the alarm has ended it before.
                subprocess.Popen(["sh", "-c", f"sleep {2 * SHORT}; kill -CONT {os.getpid()}"])
                os.kill(os.getpid(), signal.SIGSTOP)

    good = loader(Source(20, {}), workers)
    expected = indices(list(good))
    good.close()
    source = Stalls(20, {}, limit=SHORT)
    under_test = loader(source, workers)
    with caplog.at_level(logging.WARNING, "kinoscope"):
        assert [indices(list(under_test)) for _ in range(2)] == [expected, expected]
    assert not source.watchdog.lost
    assert {record.getMessage() for record in caplog.records} >= {
        f"video{index}.avi: decoding it took more than data.time_limit={SHORT} s; it is read once more"
        for index in (4, 11)
    }
    under_test.close()


def test_what_is_waited_for_is_no_time_of_the_sample() -> None:
    class Waits(Source):
        def work(self, index: int) -> None:
            if index in (1, 4):
                with watchdog.paused():
                    time.sleep(1.5 * SHORT)
            super().work(index)

    source = Waits(6, {4: "free"}, limit=SHORT)  # whose time goes on afterwards
    under_test = loader(source, 1, shuffle=False)
    assert indices(list(under_test)) == [[0, 1, 2], [3, 5]]
    assert source.watchdog.lost.keys() == {4}
    under_test.close()


def test_an_epoch_that_began_late_goes_on_late() -> None:
    whole = indices(list(loader(Source(20, {}), 1)))
    under_test = loader(Source(20, {whole[4][1]: "free"}), 1)
    under_test.batch_sampler.start_at(0, 2)
    batches = iter(under_test)
    under_test.batch_sampler.set_epoch(1)  # as Lightning does between iter() and the first batch
    found = [batch["index"].tolist() for batch in batches]
    assert found == [whole[2], whole[3], [whole[4][0], whole[4][2]], *whole[5:]]
    assert (under_test.batch_sampler.epoch, under_test.batch_sampler.start) == (1, 0)
    under_test.close()


def test_a_sample_read_ahead_and_not_awaited_ends_the_next_epoch_s_beginning_only() -> None:
    source = Source(20, {9: "free"})
    under_test = loader(source, 1, shuffle=False)
    first = iter(under_test)
    assert next(first)["index"].tolist() == [0, 1, 2]
    assert next(first)["index"].tolist() == [3, 4, 5]  # and the worker goes on to 9
    under_test.batch_sampler.set_epoch(1)
    assert [i for batch in indices(list(under_test)) for i in batch] == [i for i in range(20) if i != 9]
    under_test.close()


def test_the_training_process_is_not_disturbed_where_it_works() -> None:
    under_test = loader(Source(9, {4: "free"}), 1, shuffle=False)
    batches = iter(under_test)
    next(batches)
    worker: Any = under_test._iterator._workers[0]  # type: ignore[union-attr]
    deadline = time.monotonic() + 60
    while worker.is_alive() and time.monotonic() < deadline:  # a step, in which the worker dies
        time.sleep(0.01)
    assert worker.exitcode == -signal.SIGALRM
    assert indices(list(batches)) == [[3, 5], [6, 7, 8]]
    under_test.close()


def test_a_worker_that_was_killed_is_no_file_s_fault() -> None:
    source = Source(90, {3: "free"}, limit=None)
    under_test = loader(source, 1, shuffle=False)
    batches = iter(under_test)
    next(batches)
    under_test._iterator._workers[0].kill()  # type: ignore[union-attr]  # as a machine does that runs out of memory
    with pytest.raises(KinoscopeError, match=r"^a process that reads the data .*SIGKILL.*take fewer data.workers"):
        list(batches)
    assert not source.watchdog.lost
    under_test.close()


def test_time_is_counted_per_sample() -> None:
    class Slow(Source):
        def work(self, index: int) -> None:
            """The kernel's clock of this sample goes on by 0.4 of the limit, if as much is left."""
            left, _ = signal.getitimer(signal.ITIMER_REAL)
            if left <= 0.4 * LIMIT:
                signal.raise_signal(signal.SIGALRM)
            signal.setitimer(signal.ITIMER_REAL, left - 0.4 * LIMIT)

    source = Slow(6, {})
    under_test = loader(source, 1, shuffle=False)
    assert indices(list(under_test)) == [[0, 1, 2], [3, 4, 5]]  # each batch takes longer than the limit
    assert not source.watchdog.lost
    under_test.close()


def test_no_limit_and_no_workers_reads_in_this_process() -> None:
    batches = list(loader(Source(3, {}, limit=None), 0))
    assert batches[0]["process"] == os.getpid()


VIDEO = "v_MoveLeft_g05_c01.avi"
SMALL: dict[str, Any] = {"groups": 8, "clips_per_group": 1, "image_size": 32, "length": 12}
CLIP: dict[str, Any] = {"frames": 4, "resize": 32, "size": 24, "batch_size": 8}


def test_a_video_that_never_ends_stops_training_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = spinning.Spinning(**SMALL, **CLIP, data_dir=str(tmp_path), workers=0, time_limit=LIMIT)
    data.prepare_data()
    monkeypatch.setenv(spinning.HANGS, f"{VIDEO}=free")
    monkeypatch.setitem(decode.READERS, "pyav", spinning.read)
    data.setup()
    said = rf"^{tmp_path}/.*/{VIDEO}: decoding it took more than data.time_limit={LIMIT} s and was stopped.$"
    with pytest.raises(KinoscopeError, match=said):
        for batch in data.train_dataloader():
            data.on_before_batch_transfer(batch, 0)
    # … and setup itself reads one sample, within the limit too.
    again = spinning.Spinning(**SMALL, **CLIP, data_dir=str(tmp_path), workers=0, time_limit=LIMIT)
    again.prepare_data()
    first = Manifest.open(again.manifest_file)
    monkeypatch.setenv(spinning.HANGS, f"{Path(first.path(first.rows('train')[0])).name}=lock")
    with pytest.raises(KinoscopeError, match=rf"took more than data.time_limit={LIMIT} s"):
        again.setup()


def test_a_run_goes_on_without_the_video_and_counts_it(tmp_path: Path) -> None:
    overrides = [
        "experiment=video/single_frame_small", "data._target_=spinning.Spinning", "data.on_error=skip",
        "data.groups=8", "data.clips_per_group=1", "data.batch_size=10", "data.workers=1", f"data.time_limit={LIMIT}",
        "model.network.channels=[4,4,4,4,4]", "model.network.fc=[8]", "trainer.accelerator=cpu", "trainer.max_epochs=2",
        "logger=none", "callbacks.progress=null", "callbacks.contact_sheet=null", "callbacks.learning_curves=null",
        "callbacks.confusion_matrix=null",
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-m", "train", *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=450,
        env={**os.environ, "PYTHONPATH": path, spinning.HANGS: f"{VIDEO}=lock"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert f"{VIDEO}: decoding it took more than data.time_limit={LIMIT} s and was stopped." in ended.stderr
    summary = json.loads((tmp_path / ended.stdout.splitlines()[-1] / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["skipped"] == {"videos": 0, "samples": 2}  # once in each epoch
