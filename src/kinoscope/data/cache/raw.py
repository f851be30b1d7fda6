"""The cache ``raw``: the pixels themselves, 3 bytes each. Reading a clip costs little more than copying it.

The kernel keeps what is read often in memory. From there, reading is cheaper than mapping the file: a map that is used
once pays for every page that is touched, and again when it goes. A checksum would cost as much as the read, so a file
is known to be damaged by its size and footer alone: changed pixels go unnoticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kinoscope.data.cache.kept import Coder, FrameKeeper, Kept, KeptFrames

if TYPE_CHECKING:
    from kinoscope.data.sources import Box


class RawKeeper(FrameKeeper):
    """Keeps pixels."""

    kind = "raw"
    suffix = ".raw"
    indexed = False

    def coder(self, height: int, width: int) -> Coder:
        return lambda pixels: np.ascontiguousarray(pixels).reshape(-1).data

    def bytes_of_frame(self, height: int, width: int) -> int:
        return 3 * height * width


class RawFrames(KeptFrames):
    """Frames as they lie in the file, of which no more than the rows of the box are read, or few more."""

    cache = RawKeeper

    def frames(self, kept: Kept, indices: NDArray[np.int64], box: Box) -> NDArray[np.uint8]:
        top, left, height, width = box
        whole_height, whole_width = kept.size
        row = 3 * whole_width
        if 2 * height >= whole_height and (np.diff(indices) == 1).all():  # rows too many cost less than many reads
            pixels = np.empty((len(indices), whole_height, whole_width, 3), np.uint8)
            kept.fill(pixels, int(indices[0]) * whole_height * row)
            return pixels[:, top : top + height, left : left + width]
        pixels = np.empty((len(indices), height, whole_width, 3), np.uint8)
        for number, frame in zip(indices.tolist(), pixels, strict=True):
            kept.fill(frame, (number * whole_height + top) * row)
        return pixels[:, :, left : left + width]
