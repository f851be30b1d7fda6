from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import picture_fakes
import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from picture_fakes import CLASSES, MISTAKES, Run, System
from torch import Tensor
from torch.utils.data import DataLoader

from kinoscope.callbacks.mistakes import Mistakes

Check = Callable[[str], tuple[int, int]]


class Sure(System):
    """As sure of a sample as its index is high."""

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        probs = super().predict(batch)
        return probs * (1 + batch["index"].float()[:, None] / 100)


class Keeper(DummyLogger):
    """Keeps the tables that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[dict[str, Any]] = []

    def log_table(self, **table: Any) -> None:
        self.tables.append(table)


def test_the_table_lists_the_most_confident_first(run: Run, picture: Check, tmp_path: Path) -> None:
    keeper = Keeper()
    run("test", Mistakes(samples=2), system=Sure(), logger=keeper)
    (table,) = keeper.tables
    assert table["key"] == "mistakes" and table["columns"] == [
        "sample", "file", "predicted", "truth", "confidence", "look",
    ]  # fmt: skip
    surest = sorted(MISTAKES, reverse=True)[:2]
    assert [row[0] for row in table["rows"]] == surest
    assert [row[2:4] for row in table["rows"]] == [[CLASSES[MISTAKES[i]], CLASSES[i % 3]] for i in surest]
    assert [row[4] for row in table["rows"]] == pytest.approx([0.8 * (1 + i / 100) for i in surest])
    assert all(row[5].size == (8, 8) for row in table["rows"])
    picture("mistakes")
    assert not (tmp_path / "pictures" / "mistakes").exists(), "images have no clips"


def test_a_video_mistake_has_a_clip(run: Run, picture: Check, tmp_path: Path) -> None:
    keeper = Keeper()
    run("test", Mistakes(), modality="video", system=Sure(), logger=keeper)
    clips = [row[5] for row in keeper.tables[0]["rows"]]
    names = [f"{place:02d}-{i}.mp4" for place, i in enumerate(sorted(MISTAKES, reverse=True), 1)]
    assert clips == [tmp_path / "pictures" / "mistakes" / name for name in names]
    assert all(clip.stat().st_size > 500 for clip in clips)
    picture("mistakes")


@pytest.mark.parametrize("batch", [1, 4, 18])
def test_the_choice_is_the_same_for_any_batch_size(run: Run, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    def loader(data: picture_fakes.Data) -> DataLoader[Any]:
        return DataLoader([*data.samples, data.samples[15]], batch)  # type: ignore[arg-type]

    monkeypatch.setattr(picture_fakes.Data, "test_dataloader", loader)
    keeper = Keeper()
    run("test", Mistakes(samples=3), logger=keeper)  # all equally sure: the order is that of the samples
    assert [row[0] for row in keeper.tables[0]["rows"]] == sorted(MISTAKES), "one that is seen twice is shown once"


def test_what_an_earlier_test_left_is_gone(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run("test", Mistakes(), modality="video")
    assert (tmp_path / "pictures" / "mistakes.png").exists()
    monkeypatch.setattr(picture_fakes, "MISTAKES", {})
    keeper = Keeper()
    run("test", Mistakes(), modality="video", logger=keeper)
    assert not [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()] and not keeper.tables


def test_several_labels(run: Run) -> None:
    keeper = Keeper()
    run("test", Mistakes(), multi_label=True, logger=keeper)
    assert [row[0] for row in keeper.tables[0]["rows"]] == sorted(MISTAKES)
