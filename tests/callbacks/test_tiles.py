"""Videos that players play, and sheets that move."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from kinoscope.callbacks.drawing import DPI
from kinoscope.callbacks.tiles import Frames, Tile, draw_tiles, encode, film, layout_of


def decoded(path: Path) -> tuple[Frames, av.VideoStream]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames).astype(np.uint8), stream


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_an_encoded_video_is_what_went_in(tmp_path: Path, size: tuple[int, int]) -> None:
    levels = [20, 90, 160, 230]
    frames = np.stack([np.full((*size, 3), level, np.uint8) for level in levels])
    encode(frames, tmp_path / "a.mp4", fps=4)
    read, stream = decoded(tmp_path / "a.mp4")
    assert read.shape == (4, size[0] // 2 * 2, size[1] // 2 * 2, 3)
    assert np.abs(read.mean(axis=(1, 2, 3)) - levels).max() < 4  # H.264 keeps a uniform frame to a few levels
    assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "a browser plays it before it has all of it"


def test_nothing_is_left_of_a_video_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        encode(np.zeros((2, 8, 8, 5), np.uint8), tmp_path / "a.mp4", fps=4)
    assert not list(tmp_path.iterdir())


def test_the_pictures_of_a_sheet_move_and_nothing_else() -> None:
    moving = np.stack([np.full((8, 8, 3), 50 * t, np.uint8) for t in range(4)])
    tiles = [Tile(i, "a", "b", 0.5, i == 0, moving) for i in range(2)]
    sheet = draw_tiles(tiles, 2, "Title", "subtitle")
    frames = film(sheet, tiles, 2)
    layout = layout_of(tiles, 2)
    assert len(frames) == 4
    side = round(layout.width * DPI)
    outside = np.ones(frames.shape[1:3], bool)
    for i in range(2):
        left, top = (round(inches * DPI) for inches in layout.place(i))
        outside[top : top + side, left : left + side] = False
        for t in range(4):
            assert (frames[t, top : top + side, left : left + side] == 50 * t).all()
    assert (frames[:, outside] == np.asarray(sheet.picture())[outside]).all()
