"""``-m`` with real trainings: each in a process of its own, one table of all."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

from tiny import AUTOENCODER, ONE_EPOCH

from kinoscope.runs.folder import RunFolder

QUICK = [*AUTOENCODER, *ONE_EPOCH, "callbacks.reconstructions=null", "trainer.limit_test_batches=1"]


def sweep(here: Path, *overrides: str) -> tuple[subprocess.CompletedProcess[str], Path, list[dict[str, str]]]:
    """A sweep in a process, its folder, and the rows of its table."""
    command = [sys.executable, "-m", "train", "-m", *QUICK, *overrides]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300, env=os.environ)
    (last,) = done.stdout.splitlines()
    with (here / last / "sweep.csv").open(newline="") as file:
        return done, here / last, list(csv.DictReader(file))


def test_a_failing_job_does_not_stop_the_rest(here: Path) -> None:
    """The first of two learning rates is absurd; the second trains as if it had been typed alone."""
    done, folder, rows = sweep(here, "seed=3", "model.optimizer.lr=1e20,0.002")
    assert done.returncode == 1, done.stderr
    assert folder.parent == here / "outputs" / "sweeps"
    assert [(row["status"], row["exit_code"]) for row in rows] == [("failed", "1"), ("finished", "0")]
    assert [float(row["model.optimizer.lr"]) for row in rows] == [1e20, 0.002]
    assert "Traceback" not in done.stderr
    statuses = {
        path: RunFolder.open(path).read_summary()["status"] for path in (here / "outputs").glob("autoencoder/*/*")
    }
    assert sorted(statuses.values()) == ["failed", "finished"]
    assert statuses[here / rows[1]["folder"]] == "finished"


def test_two_seeds(here: Path) -> None:
    done, _, rows = sweep(here, "seed=1,2")
    assert done.returncode == 0, done.stderr
    assert [(row["seed"], row["status"]) for row in rows] == [("1", "finished"), ("2", "finished")]
    for row in rows:
        summary = RunFolder.open(here / row["folder"]).read_summary()
        assert float(row["test/squared_error"]) == summary["test"]["test/squared_error"]
        assert float(row[f"best/{summary['monitor']}"]) == summary["best"][summary["monitor"]]
    assert rows[0]["test/squared_error"] != rows[1]["test/squared_error"]
    table = [line.split()[:4] for line in done.stderr.splitlines()[-3:]]
    assert table[0] == ["job", "seed", "status", "seconds"]
    assert [line[:3] for line in table[1:]] == [["0", "1", "finished"], ["1", "2", "finished"]]
