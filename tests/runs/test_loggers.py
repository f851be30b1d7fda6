"""metrics.csv: one row a step, exact over a resume. W&B: offline, silent, read back."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from kinoscope.errors import KinoscopeError
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.loggers import MetricsFile, wandb_logger


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def log_steps(metrics: MetricsFile, steps: range) -> None:
    for step in steps:
        metrics.log_metrics({"train/loss": 1 / step, "epoch": step // 4}, step=step)
        if step % 4 == 0:
            metrics.log_metrics({"val/accuracy": step / 10}, step=step)


def test_one_row_per_step_and_new_columns_keep_old_rows(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    log_steps(metrics, range(1, 6))
    metrics.finalize("success")
    rows = rows_of(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert [row["val/accuracy"] for row in rows] == ["", "", "", "0.4", ""]
    assert float(rows[2]["train/loss"]) == 1 / 3


def test_what_is_logged_after_finalize_at_the_same_step_joins_its_row(tmp_path: Path) -> None:
    """A fit finalizes its loggers; the test that follows logs at the fit's last step."""
    metrics = MetricsFile(tmp_path / "metrics.csv")
    log_steps(metrics, range(1, 4))
    metrics.finalize("success")
    assert len(rows_of(tmp_path / "metrics.csv")) == 3
    metrics.log_metrics({"test/accuracy": 0.5}, step=3)
    metrics.finalize("success")
    rows = rows_of(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert rows[2]["test/accuracy"] == "0.5"
    assert float(rows[2]["train/loss"]) == 1 / 3


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole = MetricsFile(tmp_path / "whole.csv")
    log_steps(whole, range(1, 11))
    whole.finalize("success")

    killed = MetricsFile(tmp_path / "killed.csv")
    log_steps(killed, range(1, stop + 1))
    state = killed.state_dict()
    log_steps(killed, range(stop + 1, 9))  # lost: after the checkpoint, before the kill

    resumed = MetricsFile(tmp_path / "killed.csv")
    resumed.load_state_dict(state)
    log_steps(resumed, range(stop + 1, 11))
    resumed.finalize("success")
    assert rows_of(tmp_path / "killed.csv") == rows_of(tmp_path / "whole.csv")


def test_lost_rows_are_noticed(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    log_steps(metrics, range(1, 6))
    state = metrics.state_dict()
    (tmp_path / "metrics.csv").write_text("step\n")
    with pytest.raises(KinoscopeError, match="has lost rows"):
        MetricsFile(tmp_path / "metrics.csv").load_state_dict(state)


def test_wandb_offline_keeps_everything_in_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder.create("outputs", "gan/x", "89abcdef")
    config = {"seed": 3, "card": {"year": 2016, "lecture": "CS231n 2016, lecture 14"}}
    logger = wandb_logger(folder, config, run_id="89abcdef-now", name="gan/x")
    logger.log_metrics({"train/loss": 0.5}, step=20)
    logger.finish(0, {"val/accuracy": 0.75})
    (written,) = (folder.path / "wandb").glob("offline-run-*-89abcdef-now/run-*.wandb")
    content = written.read_bytes()
    for expected in (b"train/loss", b"val/accuracy", b"gan/x", b"89abcdef-now", b"lecture 14"):
        assert expected in content
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_wandb_online_without_a_key_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    folder = RunFolder.create(tmp_path / "outputs", "gan/x", "89abcdef")
    with caplog.at_level("WARNING", logger="kinoscope"):
        logger = wandb_logger(folder, {}, run_id="89abcdef-then", name="gan/x", mode="online")
    logger.finish(0, {})
    assert "no API key" in caplog.text
    assert list((folder.path / "wandb").glob("offline-run-*"))
