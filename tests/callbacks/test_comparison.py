"""The page that compares runs: every run has its colour, its row and a bar as long as its time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
from told_runs import make

from kinoscope.callbacks.comparison import MOST_ROWS, PARTS, draw_comparison
from kinoscope.callbacks.drawing import DPI, SERIES, WIDTH, Sheet
from kinoscope.runs.report import Told, read

METRIC = "val/video_accuracy"


def words(sheet: Sheet) -> list[str]:
    return [text.get_text() for text in sheet.figure.texts]


def runs(folder: Path, accuracies: list[float], **config: Any) -> list[Told]:
    return [
        read(make(folder, number, [0.1, accuracy], seed=number, seconds=number, **config))
        for number, accuracy in enumerate(accuracies, start=1)
    ]


def has(pixels: np.ndarray, colour: str) -> int:
    """How many pixels are of that colour exactly."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == wanted).all(axis=-1).sum())


def test_every_run_is_drawn_in_its_colour_the_best_one_first(tmp_path: Path) -> None:
    sheet = draw_comparison(runs(tmp_path, [0.5, 0.9, 0.7]), [METRIC])
    found = words(sheet)
    assert found[0] == "3 runs of video/toy"
    assert found[1] == "what differs: seed"
    rows = [word for word in found if word.startswith("seed ")]
    assert rows == ["seed 2", "seed 3", "seed 1"]
    assert [word for word in found if word.endswith(" %")] == ["90 %", "80 %", "70 %", "60 %", "50 %", "40 %"]
    pixels = np.asarray(sheet.picture())
    assert pixels.shape[1] == round(WIDTH * DPI)
    for colour in SERIES[:3]:
        assert has(pixels, colour) > 100, "a stroke in its row, and its curve"
    assert has(pixels, SERIES[3]) == 0


def test_less_is_better_for_a_loss(tmp_path: Path) -> None:
    rows = [word for word in words(draw_comparison(runs(tmp_path, [0.5, 0.9]), ["train/loss"])) if "seed " in word]
    assert rows == ["seed 2", "seed 1"]  # 2 − accuracy


def test_a_bar_is_as_long_as_the_run_took(tmp_path: Path) -> None:
    """In pixels of each part's colour: the longest run's bar is twice as long as that of half its time."""
    lengths = []
    for folder, accuracies in (("one", [0.5]), ("two", [0.5, 0.5])):
        pixels = np.asarray(draw_comparison(runs(tmp_path / folder, accuracies), []).picture())
        lengths.append(has(pixels, PARTS[0][1]))
    alone, both = lengths  # the longest is always as long as the room allows
    assert both / alone == pytest.approx(1.5, rel=0.1)  # a little is the key's square


def test_many_runs_are_grey_and_the_last_ones_are_counted(tmp_path: Path) -> None:
    many = runs(tmp_path, [0.1 + 0.01 * i for i in range(MOST_ROWS + 3)])
    found = words(draw_comparison(many, [METRIC]))
    assert "and 3 more runs" in found
    assert len([word for word in found if word.startswith("seed ")]) == MOST_ROWS


def test_a_run_that_monitors_something_else_shows_its_own_best(tmp_path: Path) -> None:
    one = read(make(tmp_path, 1, [0.5]))
    other = read(make(tmp_path, 2, [7.25, 9.0], name="autoencoder/toy", monitor="val/bound"))
    found = words(draw_comparison([one, other], [METRIC, "val/bound"]))
    assert found[0] == "2 runs"
    assert "50 %" in found and "9" in found
    assert {METRIC, "val/bound"} <= set(found), "a panel for each"


def test_runs_without_curves_have_their_rows(tmp_path: Path) -> None:
    bare = read(make(tmp_path, 1, [], status="failed"))
    sheet = draw_comparison([bare, read(make(tmp_path, 2, [0.5], seed=1))], [METRIC])
    assert any("(failed)" in word for word in words(sheet))
    assert draw_comparison([bare], []).picture().height < sheet.picture().height
