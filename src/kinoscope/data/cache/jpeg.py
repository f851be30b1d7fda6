"""The cache ``jpeg``: every frame a JPEG of its own, so any frame costs as much as any other.

Colours have half the resolution of brightness, as in the videos themselves; simplejpeg is a thin layer over
libjpeg-turbo and decodes twice as fast as Pillow or FFmpeg.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kinoscope.data.cache.kept import CodedFrames, Coder, FrameKeeper, Kept, Resize

if TYPE_CHECKING:
    from kinoscope.data.sources import Box

QUALITY = 90


class JpegKeeper(FrameKeeper):
    """Keeps JPEGs.

    Args:
        resize: see `FrameKeeper`.
        quality: 1 to 100.
    """

    kind = "jpeg"
    suffix = ".jpegs"

    def __init__(self, resize: Resize = None, quality: int = QUALITY) -> None:
        super().__init__(resize)
        self.quality = quality

    def parameters(self) -> dict[str, Any]:
        return {**super().parameters(), "quality": self.quality}

    def coder(self, height: int, width: int) -> Coder:
        from simplejpeg import encode_jpeg

        return lambda pixels: encode_jpeg(np.ascontiguousarray(pixels), self.quality, "RGB", "420")

    def bytes_of_frame(self, height: int, width: int) -> int:
        return 640 + height * width * 3 // 5  # the tables in each file's head, and pixels


class JpegFrames(CodedFrames):
    """Frames from JPEGs."""

    cache = JpegKeeper

    def decoded(self, kept: Kept, wanted: Sequence[int], box: Box) -> Iterator[NDArray[np.uint8]]:
        from simplejpeg import decode_jpeg

        top, left, height, width = box
        memory = np.empty((*kept.size, 3), np.uint8)  # of one frame, used again and again
        for number in wanted:
            try:
                frame = decode_jpeg(kept.packet(number), "RGB", buffer=memory)
            except ValueError as error:
                raise kept.damaged(f"is damaged in frame {number} ({error})") from None
            yield frame[top : top + height, left : left + width]
