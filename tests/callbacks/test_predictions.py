from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from picture_fakes import CLASSES, MISTAKES, TOTAL, Run

from kinoscope.callbacks import predictions
from kinoscope.callbacks.choice import Choice
from kinoscope.callbacks.drawing import DPI
from kinoscope.callbacks.predictions import ConfusionMatrix, ContactSheet, Tile, choose_tiles, confusion, draw_confusion
from kinoscope.errors import Refusal
from kinoscope.systems.base import System as Base

Check = Callable[[str], tuple[int, int]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the two drawing functions were last called with; they still draw."""
    calls: dict[str, Any] = {}

    def spy(name: str) -> None:
        draw = getattr(predictions, name)

        def wrapped(*arguments: Any) -> Any:
            calls[name] = arguments
            return draw(*arguments)

        monkeypatch.setattr(predictions, name, wrapped)

    spy("draw_contact_sheet")
    spy("draw_confusion")
    return calls


def test_confusion_counts_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    probs, label = torch.rand(500, 7, generator=generator), torch.randint(7, (500,), generator=generator)
    slow = torch.zeros(7, 7, dtype=torch.int64)
    for truth, row in zip(label.tolist(), probs, strict=True):
        slow[truth, int(row.argmax())] += 1
    assert torch.equal(confusion(probs, label), slow)


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_the_matrix_of_a_run_is_its_mistakes(run: Run, picture: Check, drawn: dict[str, Any], verb: str) -> None:
    run(verb, ConfusionMatrix())
    counts, classes, noun, subset = drawn["draw_confusion"]
    expected = np.zeros((3, 3), dtype=int)
    for i in range(TOTAL):
        expected[i % 3, MISTAKES.get(i, i % 3)] += 1
    assert (counts == expected).all()
    assert (classes, noun, subset) == (CLASSES, "image", {"test": "test", "validate": "validation"}[verb])
    width, height = picture("confusion_matrix")
    assert 500 < width < 2000 and 400 < height < 2000


def test_a_second_test_counts_anew(run: Run, drawn: dict[str, Any]) -> None:
    callback = ConfusionMatrix()
    run("test", callback)
    run("test", callback)
    assert drawn["draw_confusion"][0].sum() == TOTAL


def test_no_matrix_for_several_labels(run: Run, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="kinoscope"):
        run("test", ConfusionMatrix(), ContactSheet(), multi_label=True)
    assert "not defined" in caplog.text
    assert [p.name for p in (tmp_path / "pictures").iterdir()] == ["contact_sheet.png"]


@pytest.mark.parametrize("k", [2, 20, 21, 101])
def test_a_matrix_of_any_size_fits_its_page(k: int) -> None:
    classes = [f"AVeryLongNameOfAClass{i}" for i in range(k)]
    counts = np.diag(np.arange(k))  # class 0 has no sample at all
    counts[1, 0] = 3
    sheet = draw_confusion(counts, classes, "video")
    picture = sheet.picture()
    assert picture.size == (round(sheet.width * DPI), round(sheet.height * DPI))
    assert max(picture.size) < 3000
    renderer = sheet.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for text in sheet.figure.texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= picture.width and box.y1 <= picture.height, text
    words = " ".join(text.get_text() for text in sheet.figure.texts)
    if k > predictions.NAMED_CELLS:
        assert "called AVeryLongNameOfAClass0: 3 of 4" in words
    else:
        cells = [text.get_text() for text in sheet.figure.axes[0].texts]
        assert sorted(cells) == sorted(str(n) for n in counts.ravel() if n)


def test_the_sheet_spreads_over_classes_and_shows_mistakes(run: Run, picture: Check, drawn: dict[str, Any]) -> None:
    run("test", ContactSheet(samples=8, columns=4))
    tiles, columns, noun, seen, right, subset = drawn["draw_contact_sheet"]
    assert (columns, noun, seen, right, subset) == (4, "image", TOTAL, TOTAL - len(MISTAKES), "test")
    wrong = [tile for tile in tiles if not tile.right]
    assert len(tiles) == 8 and len(wrong) == 2  # a quarter
    assert Counter(tile.truth for tile in tiles if tile.right) == dict.fromkeys(CLASSES, 2)
    assert all(tile.predicted != tile.truth for tile in wrong)
    assert all(tile.predicted == tile.truth for tile in tiles if tile.right)
    assert all(tile.probability == pytest.approx(0.8) for tile in tiles)
    assert [tile.label for tile in tiles] == sorted(tile.label for tile in tiles)
    width, height = picture("contact_sheet")
    assert width == 1600 and 500 < height < 2000


def test_the_choice_is_the_same_for_any_batch_size(run: Run, drawn: dict[str, Any], monkeypatch: Any) -> None:
    run("test", ContactSheet(samples=5))
    first = drawn["draw_contact_sheet"][0]
    import picture_fakes
    from torch.utils.data import DataLoader

    monkeypatch.setattr(picture_fakes.Data, "test_dataloader", lambda self: DataLoader(self.samples, batch_size=1))
    run("test", ContactSheet(samples=5))
    again = drawn["draw_contact_sheet"][0]
    assert all((a.centre == b.centre).all() for a, b in zip(first, again, strict=True))


def test_a_video_shows_the_centre_and_its_whole_length(run: Run, picture: Check, drawn: dict[str, Any]) -> None:
    run("test", ContactSheet(samples=4), modality="video")
    tile = drawn["draw_contact_sheet"][0][0]
    # Frame t of the middle view is grey t/10; the other views are its negative.
    assert tile.centre.min() == tile.centre.max() == 51
    assert [round(frame.mean() / 25.5) for frame in tile.strip] == [0, 1, 3, 4]
    picture("contact_sheet")


def tiles(n: int, right: bool) -> Choice[Tile]:
    choice: Choice[Tile] = Choice(24)
    for i in range(n):
        choice.add(i % 5, i / 100, Tile(i % 5, "a", "b", 0.5, right, np.zeros((1, 4, 4, 3), np.uint8)))
    return choice


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [(24, 24, (18, 6)), (24, 2, (22, 2)), (24, 0, (24, 0)), (3, 24, (3, 21)), (0, 24, (0, 24)), (2, 1, (2, 1))],
)
def test_how_many_mistakes_are_shown(right: int, wrong: int, expected: tuple[int, int]) -> None:
    chosen = choose_tiles(tiles(right, True), tiles(wrong, False), 24)
    assert (sum(tile.right for tile in chosen), sum(not tile.right for tile in chosen)) == expected


@pytest.mark.parametrize("callback", [ContactSheet, ConfusionMatrix])
def test_a_system_that_cannot_predict_is_refused(callback: Callable[[], Any]) -> None:
    with pytest.raises(Refusal, match="can predict"):
        callback().setup(None, Base(), "test")
