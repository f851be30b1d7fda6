"""The pictures of a sweep: where a value lies, what mattered, and that no sweep ends for a picture."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from kinoscope.launch.sweep_jobs import Job
from kinoscope.launch.sweep_pictures import Pictures, Scale, importances, varied
from kinoscope.launch.sweep_table import best

VERMILLION = (213, 94, 0)


def jobs(count: int = 24, failed: int = 0) -> list[Job]:
    """The loss depends on the learning rate alone; the seed is noise of no effect."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        lr = 10 ** draw.uniform(-4, -1)
        values = {
            "model.lr": f"{lr:.6g}",
            "seed": str(draw.randrange(5)),
            "model/optimizer": draw.choice(["adam", "sgd"]),
        }
        summary = {"best": {"val/loss": (math.log10(lr) + 2) ** 2}}
        made.append(Job(number, [], values, exit_code=int(number < failed), summary=summary))
    return made


def test_a_scale_of_numbers() -> None:
    scale = Scale.of(["1", "2", "5"])
    assert [scale.place(value) for value in ("1", "3", "5")] == [0, 0.5, 1]
    assert scale.ticks == ((0, "1"), (0.25, "2"), (1, "5"))
    log = Scale.of(["0.001", "1"])  # spans more than can be told apart otherwise
    assert log.place("0.1") == pytest.approx(2 / 3)
    assert log.place("0") is None
    assert Scale.of(["0.001", "1"], log=False).place("0.5005") == pytest.approx(0.5)


def test_a_scale_of_words() -> None:
    scale = Scale.of(["adam", "sgd", "adam"])
    assert [scale.place(word) for word in ("adam", "sgd", "rmsprop")] == [0.25, 0.75, None]
    assert [label for _, label in scale.ticks] == ["adam", "sgd"]
    assert Scale.of(["1", "adam"]).place("1") == 0.25  # a number among words is one of them


def test_what_varies() -> None:
    fixed = [Job(n, [], {"a": "1", "b": str(n)}) for n in range(3)]
    assert varied(fixed) == ["b"]


def test_importance_finds_what_mattered() -> None:
    """The learning rate alone makes the loss; a forest of 24 jobs leaves it more than nine tenths."""
    shares = importances(jobs(), {"val/loss": "min"}, {"model.lr": True})
    assert shares is not None
    assert next(iter(shares)) == "model.lr"
    assert shares["model.lr"] > 0.9
    assert sum(shares.values()) == pytest.approx(1)


def test_too_little_says_nothing() -> None:
    assert importances(jobs(3), {"val/loss": "min"}, {}) is None
    same = jobs(6)
    for job in same:
        job.summary = {"best": {"val/loss": 1.0}}
    assert importances(same, {"val/loss": "min"}, {}) is None


def test_the_best_is_drawn_where_its_values_are(tmp_path: Path) -> None:
    """The one line in vermillion begins at its learning rate's height on the first axis."""
    made = jobs(failed=4)
    Pictures(tmp_path, "video/c3d", {"val/loss": "min"}, {"model.lr": True}).draw(made, final=True)
    (winner,) = best(made, {"val/loss": "min"})
    rates = [math.log10(float(job.values["model.lr"])) for job in made]
    height = (math.log10(float(winner.values["model.lr"])) - min(rates)) / (max(rates) - min(rates))
    pixels: Any = np.asarray(Image.open(tmp_path / "pictures" / "parallel_coordinates.png").convert("RGB"))
    line = np.abs(pixels.astype(int) - VERMILLION).sum(axis=-1) < 12
    columns = np.flatnonzero(line.any(axis=0))
    first = cast(float, np.flatnonzero(line[:, columns[0] + 3]).mean())
    ink = (pixels < 60).all(axis=-1)
    inked = np.flatnonzero(ink[:, ink.sum(axis=0).argmax()])  # the result's axis alone is drawn in ink, below its name
    axis = max(np.split(inked, np.flatnonzero(np.diff(inked) > 1) + 1), key=len)
    assert abs((axis.max() - first) / (axis.max() - axis.min()) - height) < 0.02


def test_there_may_be_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for some in ([], jobs(1), jobs(5, failed=5)):
        Pictures(tmp_path, "video/c3d", {"val/loss": "min"}).draw(some, final=True)
    assert not (tmp_path / "pictures").exists()
    assert capsys.readouterr().err == ""


def test_no_sweep_ends_for_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").write_text("in the way")
    Pictures(tmp_path, "video/c3d", {"val/loss": "min"}).draw(jobs(), final=True)
    assert capsys.readouterr().err.count("kinoscope: no picture '") == 2
