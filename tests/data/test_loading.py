"""Keyed loaders: which batches a real Trainer sees, with any number of workers, stopped anywhere and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from kinoscope.contracts import DataSpec
from kinoscope.data import loading
from kinoscope.data.datamodule import KeyedDataModule
from kinoscope.data.loading import Key, KeyedBatchSampler, KeyedLoader, Subset, keyed_draws
from kinoscope.data.preprocess import ImagePreprocess
from kinoscope.errors import KinoscopeError
from kinoscope.launch.processes import STOP_SIGNALS

if TYPE_CHECKING:
    from kinoscope.contracts import Batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning against a newer torch
]


class Numbers:
    """Sample i is a 1 × 1 image of value i; a batch also carries its keys' epochs."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, keys: list[Key]) -> Batch:
        epochs, indices = torch.tensor(keys).T
        return {
            "image": indices.to(torch.uint8).view(-1, 1, 1, 1),
            "label": indices % 3,
            "index": indices,
            "epoch": epochs,
            "draws": keyed_draws(0, keys, ["flip"]),
        }


class Data(KeyedDataModule):
    def __init__(self, n: int = 22, batch_size: int = 4, workers: int = 0) -> None:
        super().__init__(batch_size, workers, validation=0.0, seed=5)
        self.spec = DataSpec("image", (1, 1, 1), ("a", "b", "c"), 3)
        self.preprocess = ImagePreprocess(1, 1, 0.0, 1.0)
        self.subsets = {"train": Numbers(n), "validation": Numbers(6), "test": Numbers(7)}

    def preprocessed(self, batch: Batch) -> Batch:
        return {**batch, "image": self.preprocess(batch["image"])}


class Watcher(pl.LightningModule):
    """Writes down what it sees; a step draws from the global generator, as dropout does."""

    def __init__(self, save_at: int = 0, path: Path | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[tuple[int, ...]] = []
        self.noise: list[float] = []
        self.save_at, self.path = save_at, path

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert set(batch["epoch"].tolist()) == {self.current_epoch}
        self.seen.append((self.current_epoch, *batch["index"].tolist()))
        self.noise.append(torch.rand(()).item())
        return self.layer(batch["image"].flatten(1)).square().mean()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.save_at and self.global_step == self.save_at:
            self.trainer.save_checkpoint(str(self.path))
            self.trainer.should_stop = True

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert "epoch" in batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def trainer(**settings: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu", "max_epochs": 3}
    return pl.Trainer(**{**quiet, **settings})


def fit(data: Data, module: Watcher | None = None, ckpt: Path | None = None, **settings: Any) -> Watcher:
    module = module or Watcher()
    torch.manual_seed(1)
    trainer(**settings).fit(module, datamodule=data, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return module


def test_an_epoch_is_every_sample_once_in_keyed_order() -> None:
    sampler = KeyedBatchSampler(22, 4, seed=5, shuffle=True)
    assert len(sampler) == 6
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
        assert {e for batch in batches for e, _ in batch} == {epoch}
        epochs.append([index for batch in batches for _, index in batch])
        assert sorted(epochs[-1]) == list(range(22))
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(KeyedBatchSampler(22, 4, drop_last=True)) == 5
    assert len(list(KeyedBatchSampler(22, 4, drop_last=True))) == 5
    assert len(KeyedBatchSampler(0, 4)) == 0


@pytest.mark.parametrize("start", [0, 1, 5, 6])
def test_starting_late_yields_the_rest_once(start: int) -> None:
    sampler = KeyedBatchSampler(22, 4, seed=5, shuffle=True)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.start_at(2, start)
    iterator = iter(sampler)
    sampler.set_epoch(7)  # Lightning does this after iter() and before the first batch
    assert list(iterator) == whole[start:]
    assert len(sampler) == 6
    sampler.set_epoch(2)
    assert list(sampler) == whole


@pytest.mark.parametrize(("n", "batch_size", "world_size"), [(22, 4, 2), (17, 4, 2), (25, 4, 3), (24, 3, 4), (5, 4, 2)])
def test_ranks_share_a_global_batch(n: int, batch_size: int, world_size: int) -> None:
    ranks = [
        list(KeyedBatchSampler(n, batch_size, 5, True, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    alone = [key for batch in KeyedBatchSampler(n, batch_size * world_size, 5, True) for key in batch]
    position = 0
    for parts in zip(*ranks, strict=True):
        assert min(len(part) for part in parts) >= 1
        together = [key for i in range(len(parts[0])) for part in parts for key in part[i : i + 1]]
        assert together == alone[position : position + len(together)]
        position += len(together)
    assert position == n


def test_the_trainer_sees_every_epoch_in_full() -> None:
    module = fit(Data())
    assert len(module.seen) == 15  # 22 samples: five batches of 4, the incomplete one is left out
    for epoch in range(3):
        indices = [i for e, *batch in module.seen if e == epoch for i in batch]
        assert len(set(indices)) == 20
    order = [index for batch in KeyedBatchSampler(22, 4, 5, True) for _, index in batch]
    assert [i for e, *batch in module.seen if e == 0 for i in batch] == order[:20]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"limit_val_batches": 0},
        {"max_epochs": 100, "max_steps": 14},
        {"val_check_interval": 2},
        {"limit_train_batches": 3, "max_epochs": 5},
        {"reload_dataloaders_every_n_epochs": 1},
        {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 2},
    ],
    ids=lambda settings: " ".join(settings) or "plain",
)
@pytest.mark.parametrize("save_at", [1, 2, 4, 5, 6, 8, 10, 13])
def test_resuming_in_mid_epoch_sees_the_same_batches(tmp_path: Path, settings: dict[str, Any], save_at: int) -> None:
    whole = fit(Data(), **settings)
    first = fit(Data(), Watcher(save_at, tmp_path / "x.ckpt"), **settings)
    assert first.seen == whole.seen[:save_at]
    rest = fit(Data(), ckpt=tmp_path / "x.ckpt", **settings)
    assert first.seen + rest.seen == whole.seen


def test_workers_change_nothing_and_resume_too(tmp_path: Path) -> None:
    whole = fit(Data())
    assert fit(Data(workers=2)).seen == whole.seen
    first = fit(Data(workers=2), Watcher(7, tmp_path / "x.ckpt"))
    rest = fit(Data(workers=2), ckpt=tmp_path / "x.ckpt")
    assert first.seen + rest.seen == whole.seen
    # … and a run may go on with another number of workers.
    assert fit(Data(), ckpt=tmp_path / "x.ckpt").seen == rest.seen


def test_a_batch_is_moved_to_another_device_alone() -> None:
    data = Data()
    batch = data.first_batch("train")
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert {moved[name].device.type for name in ("image", "label", "index")} == {"meta"}


def test_loaders_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = [torch.rand(()).item() for _ in range(15)]
    assert fit(Data()).noise == expected
    assert fit(Data(workers=2), val_check_interval=2).noise == expected


class AtEpochEnd(pl.Callback):
    """Saves where Lightning's own checkpoint callback does: at an epoch's end, or after its validation."""

    def __init__(self, path: Path, epoch: int, hook: str) -> None:
        self.path, self.epoch = path, epoch
        setattr(self, hook, self.save)

    def save(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.current_epoch == self.epoch and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("hook", "workers", "settings"),
    [
        ("on_train_epoch_end", 0, {}),
        ("on_train_epoch_end", 2, {}),
        ("on_validation_end", 0, {}),
        ("on_validation_end", 2, {}),
        # Not on_train_epoch_end here: with max_steps, Lightning resumes from there as if one epoch more had passed.
        ("on_validation_end", 0, {"max_steps": 14}),
    ],
)
def test_resuming_from_an_epoch_s_edge_starts_the_right_epoch(
    tmp_path: Path, hook: str, workers: int, settings: dict[str, Any]
) -> None:
    path = tmp_path / "x.ckpt"
    whole = fit(Data(), callbacks=[AtEpochEnd(path, 1, hook)], **settings)
    rest = fit(Data(workers=workers), ckpt=path, **settings)
    assert rest.seen == whole.seen[10:]


def test_overfitting_repeats_the_same_batches() -> None:
    module = fit(Data(), overfit_batches=2)
    assert [batch[1:] for batch in module.seen] == [(0, 1, 2, 3), (4, 5, 6, 7)] * 3


def test_lightning_finds_nothing_to_replace() -> None:
    data = Data()
    module = fit(data, fast_dev_run=2)
    loader = module.trainer.train_dataloader
    assert isinstance(loader, KeyedLoader)
    assert isinstance(loader.sampler, SequentialSampler)
    assert len(loader) == 5


@pytest.mark.filterwarnings("ignore:Total length of `KeyedLoader` across ranks is zero")
def test_an_empty_validation_set_is_skipped() -> None:
    data = Data()
    data.subsets["validation"] = Numbers(0)
    assert len(fit(data).seen) == 15


class Signals(Numbers):
    def __getitems__(self, keys: list[Key]) -> Batch:
        for number in (signal.SIGINT, signal.SIGTERM):  # as when a terminal or a cluster signals the whole group
            os.kill(os.getpid(), number)
        return {**super().__getitems__(keys), "threads": torch.tensor(torch.get_num_threads())}


def test_workers_leave_signals_to_their_parent_and_use_one_thread() -> None:
    loader = KeyedLoader(Signals(8), KeyedBatchSampler(8, 4), workers=1)
    assert [batch["threads"].item() for batch in loader] == [1, 1]
    workers = list(loader._iterator._workers)  # type: ignore[union-attr]
    del loader
    deadline = time.monotonic() + 120
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(worker.is_alive() for worker in workers)


# A fork may fail, or a signal's handler raise, when some workers live and no loader knows them yet.
BREAKS = """
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Workers
def broken(*_, **__): raise SystemExit(0)
Workers._reset = broken
"""


@pytest.mark.parametrize("breaks", ["", BREAKS])
def test_a_process_that_ends_with_live_workers_ends(breaks: str) -> None:
    code = breaks + "import test_loading as t; loader = t.Data(workers=2)._loader('train'); it = iter(loader); next(it)"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    # It would hang for ever; 400 seconds are for a busy machine that has to import torch.
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True, timeout=400)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_worker_leaves_signals_to_its_parent_from_its_first_moment(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own handlers stand before ours: a SIGTERM to the whole group would end a worker that has just begun."""
    begin = loading._start_worker

    def struck(reading: Any, worker: int) -> None:
        os.kill(os.getpid(), number)
        begin(reading, worker)
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # what a worker starts hears everything

    monkeypatch.setattr(loading, "_start_worker", struck)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    loader = KeyedLoader(Numbers(8), KeyedBatchSampler(8, 4), workers=2)
    try:
        assert [batch["index"].tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    finally:
        loader.close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_keyed_draws_are_one_row_per_sample() -> None:
    rows = keyed_draws(3, [(0, 1), (0, 2), (4, 1)], ["a", "b"])
    assert rows.shape == (3, 2)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[2], keyed_draws(3, [(4, 1)], ["a", "b"])[0])
    assert len(np.unique(rows)) == 6


def test_a_spec_that_does_not_hold_is_one_sentence() -> None:
    data = Data()
    data.check_spec((1, 1, 1), data.spec.classes)
    with pytest.raises(KinoscopeError, match=r"promises samples of shape \(1, 1, 1\), the first one is \(3, 1, 1\)"):
        data.check_spec((3, 1, 1), data.spec.classes)
    with pytest.raises(KinoscopeError, match="the data have four, three, two, one"):
        data.check_spec((1, 1, 1), ["four", "three", "two", "one"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 0, 0.1, 0), "batch_size must be at least 1"),
        ((1, -1, 0.1, 0), "workers must be at least 0"),
        ((1, 0, 1.0, 0), "validation is a share"),
        ((1, 0, -0.1, 0), "validation is a share"),
    ],
)
def test_nonsense_is_refused(arguments: tuple[int, int, float, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        KeyedDataModule(*arguments)


def test_subsets_have_loaders() -> None:
    data = Data(workers=0)
    names: list[Subset] = ["train", "validation", "test"]
    assert [len(data._loader(name)) for name in names] == [6, 2, 2]
    loader = data.test_dataloader()
    assert [batch["index"].tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6]]
    with pytest.raises(RuntimeError, match="position"):
        loader.state_dict()
