"""The small runs of the resume tests, and what it means for two runs to be the same."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder

COMMON = [
    "logger=csv", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.progress=null",
    "callbacks.learning_curves=null",
]  # fmt: skip
IMAGES = ["data=digits", "data.batch_size=128", "trainer.limit_train_batches=5", "trainer.limit_val_batches=1"]
SYSTEMS = {
    "autoencoder": [
        "experiment=autoencoder/conv_small", *IMAGES, "model.log_every=4", "callbacks.reconstructions=null",
        "+trainer.val_check_interval=2", "model.scheduler_monitor=val/squared_error",
        "model.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true, patience: 0, "
        "threshold: 0.5, factor: 0.5}",
    ],
    "adversarial": [
        "experiment=gan/dcgan_small", *IMAGES, "model.log_every=4", "callbacks.samples=null", "model.ema_decay=0.9",
        "model.generator.width=4",
    ],
    "classification": [
        "experiment=video/slow_fusion_small", "data.batch_size=8", "model.log_every=4", "data.groups=8",
        "data.clips_per_group=2", "data.workers=0", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=1", "callbacks.contact_sheet=null", "callbacks.confusion_matrix=null",
        "callbacks.mistakes=null",
        "model.network.channels=[4,4,4,4,4]", "model.network.fc=[8]", "model.network.dropout=0.5",
    ],
}  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_equal(ours: Any, theirs: Any, where: str = "") -> None:
    """Deep equality, tensors bit for bit."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    else:
        assert ours == theirs or (ours != ours and theirs != theirs), where


def assert_same_run(ours: RunFolder, theirs: RunFolder) -> None:
    assert rows(ours.metrics_file) == rows(theirs.metrics_file)
    for name in ("last", "best"):
        if not theirs.checkpoint(name).exists():
            continue
        mine, other = (read_checkpoint(run.checkpoint(name)) for run in (ours, theirs))
        for part in (
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
            "window",
            "adversarial",
            "global_step",
            "epoch",
        ):
            assert_equal(mine.get(part), other.get(part), part)
        for part in ("best", "rng"):
            assert_equal(mine["kinoscope"][part], other["kinoscope"][part], part)
    summaries = [run.read_summary() for run in (ours, theirs)]
    assert all(summary["status"] == "finished" for summary in summaries)
    clocks = ("seconds", "time", "memory")
    mine, other = ({name: value for name, value in s.items() if name not in clocks} for s in summaries)
    assert mine == other
