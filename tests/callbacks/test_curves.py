from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from picture_fakes import Run

from kinoscope.callbacks import curves
from kinoscope.callbacks.curves import LearningCurves, draw_curves, names_of, panels_of, read_series
from kinoscope.callbacks.series import smoothed
from kinoscope.errors import KinoscopeError
from kinoscope.runs.loggers import MetricsFile


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


CLASSIFICATION: list[dict[str, Any]] = [
    {"step": 2, "epoch": 0, "seconds": 1, "train/loss": 2.0, "train/accuracy": 0.2, "lr-SGD": 0.1},
    {"step": 4, "epoch": 0, "seconds": 2, "train/loss": 1.0, "train/accuracy": 0.5},
    {"step": 4, "epoch": 0, "seconds": 3, "val/loss": 1.5, "val/clip_accuracy": 0.3, "val/video_accuracy": 0.4},
    {"step": 6, "epoch": 1, "seconds": 4, "train/loss": "nan", "train/accuracy": 0.9},
    {"step": 8, "epoch": 1, "seconds": 5, "val/loss": 1.7, "val/clip_accuracy": 0.5, "val/video_accuracy": 0.6},
    {"step": 10, "epoch": 2, "seconds": 6, "val/loss": 1.6, "val/clip_accuracy": 0.4, "val/video_accuracy": 0.5},
    {"step": 10, "epoch": 2, "seconds": 65, "test/loss": 9.0},
]


def words(path: Path) -> str:
    return " | ".join(text.get_text() for text in draw_curves(path).texts)


def test_sparse_cells_are_read_as_they_stand(tmp_path: Path) -> None:
    series, length = read_series(write(tmp_path / "m.csv", CLASSIFICATION))
    read = {f"{s.stage}/{s.term}": dict(zip(s.steps, s.values, strict=True)) for s in series}
    assert read == {
        "train/loss": {2: 2.0, 4: 1.0},
        "train/accuracy": {2: 0.2, 4: 0.5, 6: 0.9},
        "val/loss": {4: 1.5, 8: 1.7, 10: 1.6},
        "val/clip_accuracy": {4: 0.3, 8: 0.5, 10: 0.4},
        "val/video_accuracy": {4: 0.4, 8: 0.6, 10: 0.5},
    }
    assert length == "10 steps, 3 epochs, 65 s"


def test_the_best_validation_is_marked(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", CLASSIFICATION)
    said = words(path)
    assert "best 1.5 at step 4" in said  # the least loss
    assert "best 60 % at step 8" in said  # the greatest accuracy, of videos
    rings = [line for axes in draw_curves(path).axes for line in axes.lines if line.get_markersize() == 9]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(4, 1.5), (8, 0.6)]  # type: ignore[index]


def test_clips_are_told_from_videos(tmp_path: Path) -> None:
    panels = panels_of(read_series(write(tmp_path / "m.csv", CLASSIFICATION))[0])
    assert names_of(panels["Accuracy"]) == ["training", "validation video", "validation clip"]


def test_training_comes_first_and_twins_are_left_out(tmp_path: Path) -> None:
    rows = [row | {"val/clip_accuracy": row.get("val/video_accuracy", "")} for row in CLASSIFICATION]
    panels = panels_of(read_series(write(tmp_path / "m.csv", rows))[0])
    assert {title: names_of(lines) for title, lines in panels.items()} == {
        "Loss": ["training", "validation"],
        "Accuracy": ["training", "validation"],
    }


def test_a_game_has_its_losses_and_its_critics_answers(tmp_path: Path) -> None:
    rows = [
        {"step": i, "train/critic_loss": 1.0, "train/generator_loss": i, "train/critic_real": 0.7}
        | {"train/critic_fake": 0.2, "val/critic_loss": 1.2}
        for i in range(1, 4)
    ]
    path = write(tmp_path / "m.csv", rows)
    panels = panels_of(read_series(path)[0])
    assert {title: names_of(lines) for title, lines in panels.items()} == {
        "Loss": ["critic", "generator", "validation critic"],
        "Critic's answers": ["D(real)", "D(fake)"],
    }
    assert "best" not in words(path)  # a player's least loss is not its best


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "train/loss": 1.0}],
        [{"step": 1, "val/squared_error": 3.0}],
        [{"step": i, f"train/term_{i}": i} for i in range(1, 8)],
        [{"step": i, "train/loss": 10.0 ** -(i % 5)} for i in range(500)],
        [{"step": 20_000, "train/loss": -1.0, "val/accuracy": 1.0}, {"step": "", "train/loss": 3}],
    ],
)
def test_any_columns_make_a_picture(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    figure = draw_curves(write(tmp_path / "m.csv", rows))
    assert figure.axes
    assert all(axes.lines for axes in figure.axes)


def test_a_later_row_of_a_step_counts(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", [{"step": 2, "train/loss": 5.0}, {"step": 1, "train/loss": 0.0}])
    (series,), _ = read_series(path, newest=[{"step": 2, "train/loss": 7.0}])
    assert (series.steps, series.values) == ((1, 2), (0.0, 7.0))


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(KinoscopeError, match="cannot be read"):
        draw_curves(tmp_path / "missing.csv")
    with pytest.raises(KinoscopeError, match="no training or validation metrics"):
        draw_curves(write(tmp_path / "m.csv", [{"step": 1, "lr-SGD": 0.1}]))


def test_smoothing_does_not_lag() -> None:
    line = [3.0 * i for i in range(400)]
    assert smoothed(line) == pytest.approx(line)
    alternating = [float(i % 2) for i in range(400)]
    assert max(abs(value - 0.5) for value in smoothed(alternating)[20:-20]) < 0.05


class Logs(pl.Callback):
    """Logs as a system does: a validation at each epoch's end, after which no later step writes the row out."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            for logger in trainer.loggers:
                logger.log_metrics({"val/loss": 1.0 / trainer.global_step, "epoch": 0}, step=trainer.global_step)


def test_the_last_validation_is_in_the_last_picture(
    run: Run, tmp_path: Path, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    draw = curves._draw
    monkeypatch.setattr(curves, "_draw", lambda *a: drawn.append(panels_of(read_series(*a)[0])) or draw(*a))
    run("fit", Logs(), LearningCurves(), logger=MetricsFile(tmp_path / "metrics.csv"), log_every_n_steps=1)
    (series,) = drawn[-1]["Loss"]
    assert series.steps == (3, 6)
    assert picture("learning_curves")[0] == 1600


def test_a_run_without_metrics_file_says_so(run: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run("fit", LearningCurves(), limit_val_batches=0)
    assert caplog.text.count("no learning curves") == 1
    assert not (tmp_path / "pictures").exists()
