from __future__ import annotations

import ast
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import kinoscope.callbacks
from kinoscope.callbacks import drawing
from kinoscope.callbacks.drawing import Sheet, as_pixels, enlarge, percent, plural, publish, save

LONG = "HandstandPushupsOnTheParallelBars"


def trainer(folder: Path, *loggers: Any, rank: int = 0) -> Any:
    return SimpleNamespace(default_root_dir=str(folder), is_global_zero=rank == 0, loggers=list(loggers))


def test_pixels_are_scaled_clipped_and_grey_where_there_is_one_channel() -> None:
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0]).view(5, 1, 1, 1)
    pixels = as_pixels(values)
    assert pixels.shape == (5, 1, 1, 3) and pixels.dtype == np.uint8
    assert pixels[:, 0, 0].tolist() == [[v] * 3 for v in (0, 0, 128, 255, 255)]
    colours = torch.rand(2, 3, 4, 6)
    assert np.abs(as_pixels(colours) / 255 - colours.permute(0, 2, 3, 1).numpy()).max() <= 0.5 / 255 + 1e-6


def test_tiny_images_are_enlarged_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    enlarged = np.asarray(enlarge(pixels, 18))
    assert (enlarged == pixels.repeat(3, axis=0).repeat(3, axis=1)).all()


def test_an_image_on_a_sheet_is_where_it_was_put_and_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    sheet = Sheet(3.0, "")
    height = sheet.image(1.0, 2.0, pixels, 80 / drawing.DPI)
    page = np.asarray(sheet.picture())
    assert page.shape == (480, 1600, 3) and height * drawing.DPI == 80
    assert (page[320:400, 160:240] == pixels.repeat(10, axis=0).repeat(10, axis=1)).all()
    page = page.copy()
    page[320:400, 160:240] = 255
    assert (page == 255).all()


@pytest.mark.parametrize("words", ["Punch", LONG, LONG * 5, "$x_{", ""])
def test_text_never_leaves_its_room(words: str) -> None:
    sheet = Sheet(1.0, "")
    text = sheet.text(0.1, 0.5, words, size=9, room=0.9)
    assert sheet.extent(text) <= 0.9
    assert words.startswith(text.get_text().removesuffix("…"))
    sheet.picture()


def test_numbers_in_words() -> None:
    assert [percent(share) for share in (1, 0, 0.9583, 0.5, 0.9999)] == ["100 %", "0 %", "95.8 %", "50 %", "99.9 %"]
    assert plural(1, "image") == "1 image" and plural(12000, "update") == "12,000 updates"


def test_a_picture_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (4, 4), "red")
    path = tmp_path / "pictures" / "a.png"
    save(picture, path)
    before = path.read_bytes()

    def half(self: Image.Image, name: Path, **_: Any) -> None:
        Path(name).write_bytes(before[:20])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="No space"):
        save(Image.new("RGB", (4, 4), "blue"), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_no_run_ends_for_a_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def log_image(self, key: str, images: list[Any]) -> None:
            raise RuntimeError("server gone")

    got: list[tuple[str, list[Any]]] = []
    working = SimpleNamespace(log_image=lambda key, images: got.append((key, images)))
    picture = Image.new("RGB", (4, 4))
    publish(trainer(tmp_path, Broken(), object(), working), picture, "a")
    assert [(key, len(images)) for key, images in got] == [("pictures/a", 1)]
    assert "server gone" in caplog.text

    (tmp_path / "taken").write_text("a file where the folder should be")
    publish(trainer(tmp_path / "taken", working), picture, "b")
    assert "was not written" in caplog.text and len(got) == 1


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    publish(trainer(tmp_path, rank=1), Image.new("RGB", (4, 4)), "a", final=True)
    assert not list(tmp_path.iterdir())


def test_a_final_picture_is_announced_relative_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, logger="kinoscope"):
        publish(trainer(tmp_path / "outputs"), Image.new("RGB", (4, 4)), "a")
        assert not caplog.messages
        publish(trainer(tmp_path / "outputs"), Image.new("RGB", (4, 4)), "a", final=True)
    assert caplog.messages == [f"picture: {Path('outputs/pictures/a.png')}"]


def test_drawing_libraries_are_imported_when_needed_only() -> None:
    for file in Path(cast(str, kinoscope.callbacks.__file__)).parent.glob("*.py"):
        names = set()
        for node in ast.parse(file.read_text()).body:
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
        assert not {name.split(".")[0] for name in names} & {"matplotlib", "PIL", "wandb"}, file
        assert "matplotlib.pyplot" not in file.read_text()
