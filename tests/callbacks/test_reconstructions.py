from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_fakes import Run, System
from torch import Tensor

from kinoscope.callbacks import reconstructions
from kinoscope.callbacks.reconstructions import ReconstructionStrip, draw_strip

Check = Callable[[str], tuple[int, int]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, str]]:
    calls = []
    draw = reconstructions.draw_strip

    def spy(images: Tensor, others: Tensor, subset: str) -> Any:
        calls.append((images, others, subset))
        return draw(images, others, subset)

    monkeypatch.setattr(reconstructions, "draw_strip", spy)
    return calls


def test_the_same_images_after_every_validation(run: Run, picture: Check, drawn: list[Any]) -> None:
    run("fit", ReconstructionStrip(samples=6), num_sanity_val_steps=1)
    assert [subset for *_, subset in drawn] == ["validation"] * 2  # two epochs; the sanity check draws nothing
    images, others, _ = drawn[0]
    assert images.shape == (6, 1, 8, 8) and torch.equal(images, drawn[1][0])
    assert images.min() >= 0 and images.max() <= 1
    assert torch.allclose(others, images.clamp(max=0.5))
    assert picture("reconstructions")[0] > 800


def test_a_test_shows_test_images(run: Run, picture: Check, drawn: list[Any]) -> None:
    run("test", ReconstructionStrip(samples=3))
    assert [subset for *_, subset in drawn] == ["test"]
    picture("reconstructions")


def test_errors_are_summed_over_pixels() -> None:
    images = torch.ones(3, 3, 4, 4)
    others = images - torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    words = [text.get_text() for text in draw_strip(images, others, "test").figure.texts]
    assert {"0", "12", "48"} <= set(words)  # 3 · 4 · 4 pixels, squared differences 0, 1/4 and 1
    assert any("3 test images" in word and word.endswith("mean 20") for word in words)
    assert words[-2:] == ["1", "0"]  # the scale's ends


def test_looking_changes_nothing(run: Run, tmp_path: Path) -> None:
    system = System()
    before = system.norm.running_mean.clone()  # type: ignore[union-attr]
    run("fit", ReconstructionStrip(samples=2), system=system)
    assert torch.equal(system.norm.running_mean, before)  # type: ignore[arg-type]
    assert system.training
