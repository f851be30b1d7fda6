"""``-m`` with real trainings: each in a process of its own, one table of all."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

from tiny import AUTOENCODER, ONE_EPOCH

from kinoscope.runs.folder import RunFolder

QUICK = [*AUTOENCODER, *ONE_EPOCH, "callbacks.reconstructions=null", "trainer.limit_test_batches=1"]


def sweep(here: Path, *overrides: str) -> tuple[subprocess.CompletedProcess[str], Path, list[dict[str, str]]]:
    """A sweep in a process, its folder, and the rows of its table."""
    command = [sys.executable, "-m", "train", *QUICK, *overrides]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=500, env=os.environ)
    (last,) = done.stdout.splitlines()
    with (here / last / "sweep.csv").open(newline="") as file:
        return done, here / last, list(csv.DictReader(file))


def test_a_failing_job_does_not_stop_the_rest(here: Path) -> None:
    """Two at a time. The first learning rate is absurd; the second trains as if it had been typed alone."""
    done, folder, rows = sweep(here, "-m", "seed=3", "model.optimizer.lr=1e20,0.002", "sweep.n_jobs=2")
    assert done.returncode == 1, done.stderr
    assert folder.parent == here / "outputs" / "sweeps"
    assert [(row["status"], row["exit_code"]) for row in rows] == [("failed", "1"), ("finished", "0")]
    assert [float(row["model.optimizer.lr"]) for row in rows] == [1e20, 0.002]
    assert "Traceback" not in done.stderr
    runs = [RunFolder.open(here / row["folder"]) for row in rows]
    assert [run.read_summary()["status"] for run in runs] == ["failed", "finished"]
    summary = runs[1].read_summary()
    assert float(rows[1]["test/squared_error"]) == summary["test"]["test/squared_error"]
    monitor = summary["monitor"]
    assert float(rows[1][f"best/{monitor}"]) == summary["best"][monitor]
    *_, head, first, second, blank, counts, best = done.stderr.splitlines()
    table = [line.split()[:4] for line in (head, first, second)]
    assert table[0] == ["job", "model.optimizer.lr", "status", "seconds"]
    assert [line[:3] for line in table[1:]] == [["0", "1e+20", "failed"], ["1", "0.002", "finished"]]
    assert (blank, counts) == ("", "2 jobs: 1 failed, 1 finished")
    assert best == f"best: {monitor} = {summary['best'][monitor]:.4g} in job 1, {rows[1]['folder']}"
    assert "sweep" not in runs[1].read_config()


SPY = """
import json
from pathlib import Path

import lightning.pytorch as pl


class Spy(pl.Callback):
    \"\"\"Each rank writes down with what it trains, not what it was told.\"\"\"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (group,) = trainer.optimizers[0].param_groups
        weights = sum(float(parameter.double().sum()) for parameter in pl_module.parameters())
        seen = {"lr": group["initial_lr"] if "initial_lr" in group else group["lr"], "weights": weights}
        folder = Path(trainer.default_root_dir)
        (folder / f"rank-{trainer.global_rank}-of-{trainer.world_size}.json").write_text(json.dumps(seen))
"""


def test_all_ranks_of_a_suggested_job_train_with_the_same_values(here: Path) -> None:
    """Two ranks, two suggestions of optuna's: what each rank's optimizer holds is what the table says."""
    (here / "spy.py").write_text(SPY)
    search = ["sweep=optuna", "sweep.trials=2", "model.optimizer.lr=tag(log,interval(1e-4,1e-2))"]
    ranks = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "+callbacks.spy={_target_: spy.Spy}"]
    done, _, rows = sweep(here, *search, *ranks)
    assert done.returncode == 0, done.stderr
    assert len({row["model.optimizer.lr"] for row in rows}) == 2
    for row in rows:
        seen = [json.loads(file.read_text()) for file in sorted((here / row["folder"]).glob("rank-*-of-2.json"))]
        assert len(seen) == 2
        assert seen[0] == seen[1]
        assert seen[0]["lr"] == float(row["model.optimizer.lr"])
