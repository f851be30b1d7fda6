"""What only a CUDA GPU can show: it gives the CPU's numbers, resumes to the bit, and is never waited for in a step."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from same_run import COMMON, SYSTEMS, assert_same_run

import kinoscope
from kinoscope.data.keys import KeyedBatchSampler
from kinoscope.data.loading import KeyedLoader
from kinoscope.errors import Interrupted
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = ["trainer.accelerator=gpu", "deterministic=true"]
# Dropout is drawn by the device's own generator.
ALIKE = {"classification": ["model.network.dropout=0"]}


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One working directory for the module, so that the videos are generated once."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(Path(__file__).parents[1] / "faults"))
        patch.syspath_prepend(str(Path(__file__).parent))
        threads = torch.get_num_threads()
        yield folder
        torch.set_num_threads(threads)


def trained(system: str, *extra: str) -> RunFolder:
    return RunFolder.open(kinoscope.train([*SYSTEMS[system], *COMMON, "trainer.max_epochs=3", *extra]))


def terms(run: RunFolder) -> list[dict[str, float]]:
    """The rows of metrics.csv without the clock's columns."""
    with run.metrics_file.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if "/" in name and value} for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_gives_the_cpu_s_numbers(system: str) -> None:
    """In float32: both draw the same samples, crops and latents, and round differently."""
    alike = ALIKE.get(system, [])
    ours, theirs = terms(trained(system, *alike, *GPU)), terms(trained(system, *alike))
    assert len(ours) == len(theirs) > 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=0.02, abs=0.02)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_stopped_run_goes_on_to_the_same_bits(system: str, precision: str) -> None:
    """Also in the middle of an epoch, with dropout drawn on the device, and with the scale of 16-bit losses."""
    asked = [*GPU, f"trainer.precision={precision}"]
    theirs = trained(system, *asked)
    before = set(Path("outputs").glob("*/*/*"))
    with pytest.raises(Interrupted):
        trained(system, *asked, "+callbacks.fault={_target_: faults.Fault, at: 7, sends: SIGTERM}")
    (folder,) = set(Path("outputs").glob("*/*/*")) - before
    ours = RunFolder.open(folder)
    assert ours.read_summary()["status"] == "interrupted"
    kinoscope.train([f"resume={ours.path}", "+callbacks.fault=null"])
    assert_same_run(ours, theirs)
    if precision == "16-mixed":
        assert read_checkpoint(ours.checkpoint("last"))["MixedPrecision"]["scale"] > 1
    assert ours.read_summary()["memory"]["cuda"] > 1e6


def test_c3d_is_the_same_each_time() -> None:
    """Its poolings span time, too."""
    small = ["data.groups=8", "data.clips_per_group=2", "data.batch_size=4", "data.workers=0", "trainer.max_epochs=1"]
    few = ["trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    quiet = [f"callbacks.{name}=null" for name in ("contact_sheet", "confusion_matrix", "mistakes")]
    command = ["experiment=video/c3d_small", *COMMON, *small, *few, *quiet, *GPU, "trainer.precision=bf16-mixed"]
    ours, theirs = (RunFolder.open(kinoscope.train(command)) for _ in range(2))
    assert_same_run(ours, theirs)


class Waits(pl.Callback):
    """Notes where the host waits for the device while batches are trained on, but for each epoch's first."""

    seen: list[str]

    def __init__(self) -> None:
        type(self).seen = []
        self._caught: Any = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 0:
            torch.cuda.set_sync_debug_mode("warn")
            self._caught = warnings.catch_warnings(record=True)
            self._warned = self._caught.__enter__()
            warnings.simplefilter("always")
        elif trainer.is_last_batch:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            self.seen += [
                f"{one.filename}:{one.lineno}" for one in self._warned if "called a synchronizing" in str(one.message)
            ]
        else:
            self.seen += [f"step {batch_idx}"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_no_step_waits_for_the_device(system: str, precision: str) -> None:
    """Outside the logging windows; the copy of a batch, its augmentation and all callbacks are part of a step."""
    watch = ["+callbacks.waits={_target_: test_gpu.Waits}", "model.log_every=100", "trainer.max_epochs=2"]
    without = ["trainer.val_check_interval=null"] if system == "autoencoder" else []
    trained(system, "trainer.accelerator=gpu", f"trainer.precision={precision}", *watch, *without)
    import test_gpu

    assert test_gpu.Waits.seen == [f"step {batch}" for _ in range(2) for batch in (1, 2, 3)]


class Numbers:
    """A source of batches."""

    def __len__(self) -> int:
        return 4

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        return {"video": torch.tensor([index for _, index in keys], dtype=torch.uint8)}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_lie_in_pinned_memory(workers: int) -> None:
    loader = KeyedLoader(Numbers(), KeyedBatchSampler(4, 2), workers, pin_memory=True)
    try:
        batches = list(loader)
    finally:
        loader.close()
    assert [batch["video"].tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert all(batch["video"].is_pinned() and batch["video"].dtype == torch.uint8 for batch in batches)
