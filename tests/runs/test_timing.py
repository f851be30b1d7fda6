"""Where a run's seconds go: the phases with a clock of their own, the hooks that switch them, what a summary keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import kinoscope
from kinoscope.data.image import ImageDataset
from kinoscope.errors import Interrupted
from kinoscope.runs import fit_loop, stopwatch, timing
from kinoscope.runs.folder import RunFolder, write_text
from kinoscope.runs.quiet import quiet
from kinoscope.runs.stopwatch import PHASES, Stopwatch
from kinoscope.runs.timing import Timing
from kinoscope.systems.base import System

DATA, TRANSFER, FORWARD, BACKWARD, STEP, LOGGING, VALIDATION, PICTURE, CHECKPOINT, TEST = (10**i for i in range(10))


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Ticking(Clock):
    """Time that passes with each look at it besides: every phase takes some, however fast or coarse the machine's."""

    def perf_counter(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopwatch, "time", made)
    stopwatch.begin()
    return made


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    made = Ticking()
    monkeypatch.setattr(stopwatch, "time", made)
    return made


def test_the_phases_are_all_of_the_time(clock: Clock) -> None:
    clock.now = 5.0
    watch = Stopwatch()
    watch.switch("data")
    clock.now = 7.0
    watch.fetched()
    clock.now = 8.0
    with watch.during("checkpoints"):
        clock.now = 12.0
    clock.now = 12.5
    seconds = watch.read()
    assert {phase: value for phase, value in seconds.items() if value} == {
        "startup": 5.0,
        "data": 2.0,
        "transfer": 1.5,
        "checkpoints": 4.0,
    }
    assert sum(seconds.values()) == 12.5


def test_a_wait_for_data_behind_a_device_that_works_is_not_one(clock: Clock) -> None:
    watch = Stopwatch()
    for works, expected in ((True, "device"), (False, "data")):
        watch.device_works = lambda works=works: works
        watch.switch("data")
        before = dict(watch.seconds)
        clock.now += 3.0
        watch.fetched()
        assert watch.seconds[expected] - before[expected] == 3.0  # type: ignore[index]


class Numbers(Dataset[Any]):
    """Three samples, each of which takes its time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.clock.now += DATA
        return {"image": torch.ones(4) * index}


class Data(pl.LightningDataModule):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Numbers(self.clock))

    val_dataloader = test_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.clock.now += TRANSFER
        return batch

    def cures(self) -> list[str]:
        return ["data.faster=true"]


class Optimizer(torch.optim.SGD):
    def __init__(self, parameters: Any, clock: Clock) -> None:
        super().__init__(parameters, lr=0.1)
        self.clock = clock

    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            closure()
        self.clock.now += STEP
        return super().step()  # whose own hooks are called, too, if anyone has made an SGD before


class Slow(System):
    """Takes its time in each part of a step; as a ``manual`` one it takes two steps a batch."""

    def __init__(self, clock: Clock, manual: bool) -> None:
        super().__init__()
        self.ticking = clock
        self.layer = nn.Linear(4, 1)
        self.automatic_optimization = not manual

    def configure_optimizers(self) -> Any:
        return Optimizer(self.parameters(), self.ticking)

    def _spend(self, seconds: float) -> None:
        self.ticking.now += seconds

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        loss = self._loss(batch)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        for each in (loss, self._loss(batch)):
            optimizer.zero_grad()
            self.manual_backward(each)
            optimizer.step()
        return None

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        self._spend(FORWARD)
        loss = self.layer(batch["image"]).sum()
        loss.register_hook(lambda _: self._spend(BACKWARD))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._spend(VALIDATION)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._spend(TEST)

    def conclude(self, stage: str) -> None:
        """Nothing was measured."""


class Others(pl.Callback):
    """What other callbacks spend, one of them on a checkpoint."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.clock.now += LOGGING

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.now += PICTURE
        with fit_loop.stopwatch(trainer).during("checkpoints"):
            self.clock.now += CHECKPOINT


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.create(tmp_path, "toy", "00000000")
    write_text(made.config_file, "model: {}\ndata: {}\n")
    made.write_summary(status="running", time={}, memory={})
    return made


def trainer_of(clock: Clock, timing: Timing) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[timing, Others(clock)], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    fit_loop.repair(trainer)
    return trainer


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_every_second_is_counted_where_it_is_spent(manual: bool, clock: Clock, folder: RunFolder) -> None:
    clock.now = 0.5
    with quiet():
        trainer = trainer_of(clock, Timing(folder))
        trainer.fit(Slow(clock, manual), Data(clock))
        trainer.test(Slow(clock, manual), Data(clock), verbose=False)
    batches, epochs, steps = 6, 2, 12 if manual else 6
    found = folder.read_summary()["time"]
    assert {phase: found[phase] for phase in PHASES} == {
        "startup": 0.5,
        "data": batches * DATA,
        "device": 0,
        "transfer": batches * TRANSFER,
        "forward": steps * FORWARD,
        "backward": steps * BACKWARD,
        "optimizer": steps * STEP,
        "logging": batches * LOGGING + epochs * PICTURE,
        "validation": epochs * 3 * (DATA + TRANSFER + VALIDATION),
        "checkpoints": epochs * CHECKPOINT,
        "test": 3 * (DATA + TRANSFER + TEST),
    }
    assert found["total"] == clock.now
    assert found["batches"] == found["samples"] == batches
    in_steps = sum(found[phase] for phase in ("data", "transfer", "forward", "backward", "optimizer"))
    assert math.isclose(found["samples_per_second"], batches / in_steps, abs_tol=0.01)
    assert math.isclose(found["data_share"], batches * DATA / in_steps, abs_tol=1e-4)


@pytest.mark.parametrize(("share", "warned"), [(0.9, False), (0.00005, True)])
def test_waiting_for_data_is_warned_of_once_with_its_cure(
    share: float, warned: bool, clock: Clock, folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="kinoscope"), quiet():
        trainer_of(clock, Timing(folder, warn_above=share, every=0.5)).fit(Slow(clock, manual=False), Data(clock))
    said = [record.getMessage() for record in caplog.records if "waiting for data" in record.getMessage()]
    once = ["0 % of the training steps' time is spent waiting for data; what helps: data.faster=true"]
    assert said == (once if warned else [])


@pytest.mark.parametrize("wrong", [{"warn_above": 0}, {"warn_above": 1.5}, {"every": 0}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, float], folder: RunFolder) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Timing(folder, **wrong)


# Real runs

TINY = [
    "experiment=autoencoder/conv_small", "model.network.widths=[4,4,4]", "logger=csv", "trainer.accelerator=cpu",
    "callbacks.progress=null", "callbacks.learning_curves=null", "callbacks.reconstructions=null", "data.batch_size=32",
    "trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
    "trainer.max_epochs=2",
]  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "faults"))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def test_a_run_sums_up_over_its_processes(home: Path, ticking: Ticking) -> None:
    fault = "+callbacks.fault={_target_: faults.Fault, at: 6, sends: SIGTERM}"
    with pytest.raises(Interrupted):
        kinoscope.train([*TINY, fault])
    run = RunFolder.open(next(Path("outputs").glob("*/*/*")))
    first = run.read_summary()
    assert first["time"]["batches"] == 6
    kinoscope.train([f"resume={run.path}", "+callbacks.fault=null"])
    second = run.read_summary()
    assert second["time"]["batches"] == 8
    assert second["time"]["samples"] == 8 * 32
    for phase in ("startup", "data", "transfer", "forward", "backward", "optimizer", "logging", "checkpoints"):
        assert second["time"][phase] > first["time"][phase] > 0, phase
    assert second["time"]["test"] > first["time"]["test"] == 0
    total = sum(second["time"][phase] for phase in PHASES)
    assert math.isclose(second["time"]["total"], total, abs_tol=0.01)
    assert second["memory"]["process"] >= first["memory"]["process"] > 100e6  # torch alone


def test_a_slow_disk_is_told_with_what_helps(
    home: Path, ticking: Ticking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = ImageDataset.__getitems__

    def slowly(self: ImageDataset, keys: Any) -> Any:
        ticking.now += 0.2
        return read(self, keys)

    monkeypatch.setattr(ImageDataset, "__getitems__", slowly)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    with caplog.at_level("INFO", logger="kinoscope"):
        run = RunFolder.open(kinoscope.train([*TINY, "callbacks.timing.every=0.1", "data.workers=0", "threads=1"]))
    found = run.read_summary()["time"]
    assert found["data"] > 8 * 0.2
    assert found["data_share"] > 0.2
    warned = [text for text in caplog.messages if "waiting for data" in text]
    assert len(warned) == 1
    assert "data.workers=8 (now 0), or a larger data.batch_size (now 32)" in warned[0]
    assert any("samples/s" in text and "start-up" in text for text in caplog.messages), "the run's end tells its time"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peak_memory_is_of_this_process_at_any_time() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # what other tests have needed
    before = timing.peak_resident()
    block = b"x" * 200_000_000
    size = len(block)
    del block
    assert timing.peak_resident() - before > size / 2  # meanwhile the system may take back pages of files
