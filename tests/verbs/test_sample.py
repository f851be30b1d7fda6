"""``kinoscope sample``: a generator's grid, an autoencoder's strip, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import Command

from kinoscope.runs.folder import RunFolder


def drawn(run: Command, folder: RunFolder, *overrides: str) -> np.ndarray:
    """The picture that the command has drawn, (H, W, 3) uint8."""
    outcome = run("sample", f"run={folder.path}", *overrides)
    assert outcome.code == 0, outcome.err
    (path,) = outcome.out.splitlines()
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_a_seed_draws_the_same_grid_and_another_seed_another(run: Command, gan: RunFolder) -> None:
    first = drawn(run, gan, "n=9", "seed=3")
    assert np.array_equal(first, drawn(run, gan, "n=9", "seed=3"))
    other = drawn(run, gan, "n=9", "seed=4")
    assert other.shape == first.shape
    assert not np.array_equal(first, other)
    assert {"sample_seed3.png", "sample_seed4.png"} <= {path.name for path in gan.pictures.iterdir()}


def test_an_output_file(run: Command, gan: RunFolder, here: Path) -> None:
    before = sorted(gan.pictures.iterdir())
    drawn(run, gan, "n=4", "output=grids/mine.png")
    assert (here / "grids" / "mine.png").is_file()
    assert sorted(gan.pictures.iterdir()) == before


def test_reconstructions(run: Command, autoencoder: RunFolder) -> None:
    few, many = drawn(run, autoencoder, "n=2"), drawn(run, autoencoder, "n=6")
    assert few.shape[1] < many.shape[1]  # one column an image
    assert few.std() > 10  # digits, not a blank sheet
    assert (autoencoder.pictures / "sample_reconstructions.png").is_file()


def test_a_classifier_is_refused(run: Command, classifier: RunFolder) -> None:
    outcome = run("sample", f"run={classifier.path}")
    assert outcome.code == 2
    assert outcome.err == "kinoscope: run: Classification neither generates nor reconstructs; use evaluate\n"
    assert outcome.out == ""


@pytest.mark.parametrize("n", ["0", "-3"])
def test_no_samples_are_refused(n: str, run: Command, gan: RunFolder) -> None:
    outcome = run("sample", f"run={gan.path}", f"n={n}")
    assert outcome.code == 2
    assert outcome.err.startswith("kinoscope: n")
    assert len(outcome.err.splitlines()) == 1


def test_an_output_that_cannot_be_written_is_one_sentence(run: Command, gan: RunFolder, here: Path) -> None:
    (here / "file").write_text("no folder")
    outcome = run("sample", f"run={gan.path}", "n=4", "output=file/grid.png")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "cannot be written" in outcome.err
