"""Samples with what a classifier says of them, as tiles of one sheet; for videos also as a sheet that moves.

Shape legend: B batch, V views, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinoscope.callbacks.drawing import (
    DPI,
    HEADER,
    INK,
    MARGIN,
    RIGHT,
    SMALL,
    WIDTH,
    WRONG,
    Pixels,
    Sheet,
    as_pixels,
    enlarge,
    unit_range,
)

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from kinoscope.contracts import Batch

STRIP = 4  # frames in the strip under a video's centre frame
GAP, ROW_GAP, CAPTION = 0.16, 0.16, 0.4  # inches between tiles, between rows, and for the words below a tile

Frames = NDArray[np.uint8]  # (T, H, W, 3)


@dataclass(frozen=True)
class Tile:
    """One sample and what was said of it.

    Args:
        label: its (first) true class, −1 for none.
        truth: its true classes in words.
        predicted: the class it was given.
        probability: of that class.
        right: whether that is true.
        frames: (T, H, W, 3) uint8, its middle view; an image is one frame.
        index: its position in its subset.
    """

    label: int
    truth: str
    predicted: str
    probability: float
    right: bool
    frames: Frames
    index: int = -1

    @property
    def centre(self) -> Pixels:
        return self.frames[len(self.frames) // 2]

    @property
    def strip(self) -> list[Pixels]:
        """``STRIP`` frames from the first to the last; none of an image."""
        t = len(self.frames)
        return [self.frames[j] for j in np.linspace(0, t - 1, STRIP).round().astype(int)] if t > 1 else []


@dataclass(frozen=True)
class Layout:
    """Where each of ``n`` equal tiles lies on a page, in inches.

    Args:
        n: how many.
        columns: tiles in a row.
        shape: (height, width) of a frame in pixels.
        strip: whether a strip of small frames lies under each.
    """

    n: int
    columns: int
    shape: tuple[int, int]
    strip: bool

    @property
    def width(self) -> float:
        # Few samples get larger tiles, but not so large that the page becomes a poster.
        return min((WIDTH - 2 * MARGIN - (self.columns - 1) * GAP) / self.columns, 2.2)

    @property
    def picture(self) -> float:
        return self.width * self.shape[0] / self.shape[1]

    @property
    def small(self) -> float:
        return (self.width - (STRIP - 1) * 0.03) / STRIP

    @property
    def height(self) -> float:
        """Of picture and strip."""
        return self.picture + (self.small * self.shape[0] / self.shape[1] + 0.04 if self.strip else 0.0)

    @property
    def pitch(self) -> float:
        return self.height + CAPTION + ROW_GAP

    @property
    def page(self) -> float:
        return HEADER + math.ceil(self.n / self.columns) * self.pitch - ROW_GAP + MARGIN

    def place(self, i: int) -> tuple[float, float]:
        return MARGIN + (i % self.columns) * (self.width + GAP), HEADER + (i // self.columns) * self.pitch


def layout_of(tiles: Sequence[Tile], columns: int) -> Layout:
    height, width = tiles[0].frames.shape[1:3]
    return Layout(len(tiles), min(columns, len(tiles)), (height, width), strip=len(tiles[0].frames) > 1)


def draw_tiles(tiles: Sequence[Tile], columns: int, title: str, subtitle: str) -> Sheet:
    """A sheet of at least one tile: its picture, what was said with how much confidence, and the truth if it differs.

    Args:
        tiles: in reading order; their frames all have one shape.
        columns: tiles in a row.
        title: of the page.
        subtitle: what is shown, in numbers.
    """
    layout = layout_of(tiles, columns)
    width = layout.width
    sheet = Sheet(layout.page, title, subtitle)
    for i, tile in enumerate(tiles):
        left, top = layout.place(i)
        sheet.image(left, top, tile.centre, width)
        for j, frame in enumerate(tile.strip):
            sheet.image(left + j * (layout.small + 0.03), top + layout.picture + 0.04, frame, layout.small)
        colour = RIGHT if tile.right else WRONG
        if not tile.right:
            sheet.frame(left, top, width, layout.height, WRONG, weight=2.5)
        base = top + layout.height + 0.19
        chance = sheet.text(left + width, base, f"{100 * tile.probability:.0f} %", SMALL, colour, align="right")
        room = width - sheet.extent(chance) - 0.06
        sheet.text(left, base, ("✓ " if tile.right else "✗ ") + tile.predicted, SMALL, colour, "bold", room=room)
        if not tile.right:
            sheet.text(left, base + 0.16, f"truth: {tile.truth}", SMALL, INK, room=width)
    return sheet


def film(sheet: Sheet, tiles: Sequence[Tile], columns: int) -> Frames:
    """The frames (T, H, W, 3) of a sheet drawn by `draw_tiles` whose pictures move."""
    layout = layout_of(tiles, columns)
    page = np.asarray(sheet.picture())
    frames = np.repeat(page[None], max(len(tile.frames) for tile in tiles), axis=0)
    for i, tile in enumerate(tiles):
        left, top = (round(inches * DPI) for inches in layout.place(i))
        for t, frame in enumerate(frames):
            raster = np.asarray(enlarge(tile.frames[t % len(tile.frames)], round(layout.width * DPI)))
            frame[top : top + raster.shape[0], left : left + raster.shape[1]] = raster
    return frames


def encode(frames: Frames, path: Path, fps: float) -> None:
    """Writes a silent H.264 video that browsers play (yuv420p, index at the front), whole or not at all.

    Args:
        frames: (T, H, W, 3) uint8; an odd last row or column is left out, which H.264 cannot hold.
        path: the file, ``….mp4``.
        fps: frames per second.
    """
    import av

    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "faststart"}) as container:
            # One thread: the same bytes on every machine, and no core taken from whoever else works.
            stream = container.add_stream("libx264", round(fps), options={"preset": "veryfast", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                pixels = np.ascontiguousarray(frame[:height, :width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def frames_of(trainer: pl.Trainer, batch: Batch, i: int) -> Frames:
    """The ``i``-th sample of a batch as it was seen, (T, H, W, 3): its middle view, or its image as one frame.

    Flow is shown by colours, its direction as the hue.
    """
    if "image" in batch:
        return as_pixels(unit_range(trainer, batch["image"][i : i + 1]))
    if "clips" not in batch and "video" not in batch:
        from kinoscope.data.flow_stacks import colours

        flow = batch["flow"][i]
        flow = flow[len(flow) // 2] if flow.ndim == 4 else flow  # (2L, H, W)
        return as_pixels(colours(flow[None])[0].movedim(1, 0))
    clip = batch["clips"][i, batch["clips"].shape[1] // 2] if "clips" in batch else batch["video"][i]
    return as_pixels(unit_range(trainer, clip[None])[0].movedim(1, 0))
