from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_fakes import Run, System

from kinoscope.callbacks.drawing import DPI, HEADER, MARGIN
from kinoscope.callbacks.samples import SampleGrid, draw_samples


def test_a_training_keeps_its_history(run: Run, tmp_path: Path, picture: Callable[[str], tuple[int, int]]) -> None:
    system = System()
    run("fit", SampleGrid(samples=5), system=system, limit_val_batches=0)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["samples.png", "samples_0000003.png", "samples_0000006.png", "samples_latest.png"]
    folder = tmp_path / "pictures"
    assert (folder / "samples_latest.png").read_bytes() == (folder / "samples_0000006.png").read_bytes()
    assert system.asked == [(5, None, False)] * 3  # the fixed latent, in evaluation mode


def test_every_other_epoch(run: Run, tmp_path: Path) -> None:
    run("fit", SampleGrid(samples=1, every_n_epochs=2), limit_val_batches=0)
    assert not (tmp_path / "pictures" / "samples_0000003.png").exists()
    assert (tmp_path / "pictures" / "samples_0000006.png").exists()


def test_looking_changes_nothing(run: Run) -> None:
    system = System()
    before = {name: value.clone() for name, value in system.norm.state_dict().items()}
    system.norm.eval()  # a part that is kept in evaluation mode stays there
    run("fit", SampleGrid(samples=4), system=system, limit_val_batches=0)
    assert all(torch.equal(value, before[name]) for name, value in system.norm.state_dict().items())
    assert system.training and not system.norm.training


def test_a_test_draws_what_it_tested(run: Run, picture: Callable[[str], tuple[int, int]]) -> None:
    run("test", SampleGrid(samples=4))
    picture_size = picture("samples")
    assert min(picture_size) > 500


@pytest.mark.parametrize(("n", "side"), [(1, 28), (64, 32), (7, 48), (100, 64)])
def test_small_images_are_enlarged_by_whole_factors(n: int, side: int) -> None:
    pixels = torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8).numpy()
    sheet = draw_samples(pixels, clock=1)
    columns = next(c for c in range(1, 11) if c * c >= n)
    tile = (sheet.width - 2 * MARGIN - (columns - 1) * 0.05) / columns * DPI
    assert tile == pytest.approx(side * round(tile / side), abs=1e-3)
    page = sheet.picture()
    assert page.width <= 1600
    if side <= 40:  # smoothing blurs larger ones, on purpose
        left, top, end = round(MARGIN * DPI), round(HEADER * DPI), round(tile)
        first = np.asarray(page)[top : top + end, left : left + end]
        factor = end // side
        assert (first == pixels[0].repeat(factor, axis=0).repeat(factor, axis=1)).all()
