"""Whole trainings, read back from what W&B has written: what failed, what was resumed, what two ranks did."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kinoscope
from fake_wandb import KEY, FakeWandB
from kinoscope.cli import main
from kinoscope.errors import KinoscopeError
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.wandb import WandB
from wandb_records import Records, files

COMMON = ["logger=wandb", "trainer.accelerator=cpu", "callbacks.progress=null", "callbacks.learning_curves=null"]
AUTOENCODER = [
    *COMMON, "experiment=autoencoder/conv_small", "data.batch_size=128", "data.workers=0", "model.log_every=1",
    "model.network.widths=[4,4,4]", "callbacks.reconstructions=null", "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
]  # fmt: skip
VIDEO = [
    *COMMON, "experiment=video/slow_fusion_small", "data.groups=8", "data.clips_per_group=1", "data.batch_size=6",
    "data.validation=0.2", "data.workers=0", "model.log_every=1", "model.network.channels=[4,4,4,4,4]",
    "model.network.fc=[8]", "model.network.dropout=0", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_resumed_run_keeps_its_id_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = RunFolder.open(kinoscope.train([*AUTOENCODER, "trainer.max_epochs=1"]))
    kinoscope.train([f"resume={folder.path}", "trainer.max_epochs=2"])
    first, second = map(Records.of, files(folder.path))
    assert first.run["run_id"] == second.run["run_id"]
    assert first.run["run_id"].startswith(folder.read_summary()["signature"])
    assert first.run["resume"] and second.run["resume"], "a sync appends the second to the first"
    steps = [[row["step"] for row in part.history if "train/loss" in row] for part in (first, second)]
    assert steps == [[1, 2, 3], [4, 5, 6]]
    summary = folder.read_summary()
    assert second.summary["val/squared_error"] == summary["best"]["val/squared_error"]
    assert second.summary["best/step"] == summary["best"]["step"]
    assert second.summary["test/squared_error"] == summary["test"]["test/squared_error"]
    assert second.config["trainer"]["max_epochs"] == 2 and second.config["data"]["batch_size"] == 128
    assert second.config["provenance"]["data_hash"] and "diff" not in (second.config["provenance"]["git"] or {})
    assert (first.exit_code, second.exit_code) == (0, 0)


def test_a_run_that_breaks_says_so(tmp_path: Path) -> None:
    with pytest.raises(KinoscopeError, match="became"):
        kinoscope.train([*AUTOENCODER, "model.optimizer.lr=1e30", "trainer.max_epochs=3"])
    (run,) = (tmp_path / "outputs" / "autoencoder" / "conv_small").iterdir()
    read = Records.of(files(run)[0])
    (alert,) = read.kind("alert")
    assert read.exit_code == 1 and "conv_small failed" in alert["title"] and "became" in alert["text"]


def test_a_server_that_goes_away_in_mid_run_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    server = FakeWandB()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()

    log_metrics = WandB.log_metrics

    def die_once_it_has_begun(self: WandB, metrics: Any, step: int | None = None) -> None:
        log_metrics(self, metrics, step)
        server.die()

    monkeypatch.setattr(WandB, "log_metrics", die_once_it_has_begun)
    online = ["logger.mode=online", "logger.timeout=120", "logger.finish_timeout=1"]
    try:
        with caplog.at_level("WARNING", logger="kinoscope"):
            path = kinoscope.train([*AUTOENCODER, *online, "trainer.max_epochs=2"])
    finally:
        server.die()
        wandb.teardown()
    assert RunFolder.open(path).read_summary()["status"] == "finished"
    assert "did not confirm the end" in caplog.text and "kinoscope sync" in caplog.text
    (file,) = files(path)
    assert file.parent.name.startswith("run-"), "it began online"
    assert {row["step"] for row in Records.of(file).history if "train/loss" in row} == set(range(1, 7))


def test_two_ranks_are_one_run_with_the_same_mistakes(tmp_path: Path) -> None:
    """The mistakes of a test on two ranks are those that one process finds with the same weights."""
    command = [sys.executable, "-m", "kinoscope", "train", *VIDEO, "trainer=ddp", "trainer.devices=2"]
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # not this process's service
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    folder = RunFolder.open(done.stdout.splitlines()[-1])
    (file,) = files(folder.path)
    read = Records.of(file)
    assert read.exit_code == 0
    assert {"mistakes", "videos/contact_sheet", "pictures/mistakes", "test/video_accuracy"} <= read.names
    names = sorted(clip.name for clip in (folder.pictures / "mistakes").iterdir())
    assert names
    assert main(["evaluate", f"run={folder.path}", "workers=0", "accelerator=cpu"]) == 0
    assert sorted(clip.name for clip in (folder.pictures / "mistakes").iterdir()) == names
