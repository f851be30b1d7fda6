"""metrics.csv: one row a step, exact over a resume. TensorBoard: pictures and histograms."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinoscope.errors import KinoscopeError
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.loggers import MetricsFile, tensorboard_logger


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


def test_tensorboard_takes_pictures_and_histograms(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = tensorboard_logger(RunFolder(tmp_path))
    for _ in range(2):
        logger.log_image("pictures/curves", [Image.new("RGB", (6, 4), "red")])  # pyright: ignore[reportAttributeAccessIssue]
    counts, edges = np.histogram(np.arange(10.0), 5)
    logger.log_histograms({"weights/a": (counts, edges)}, step=7)  # pyright: ignore[reportAttributeAccessIssue]
    logger.finalize("success")
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    images = read.Images("pictures/curves")
    assert [(image.width, image.height, image.step) for image in images] == [(6, 4, 0), (6, 4, 1)]
    (histogram,) = read.Histograms("weights/a")
    assert histogram.step == 7 and histogram.histogram_value.num == 10
    assert list(histogram.histogram_value.bucket) == counts.tolist()
