"""Where a data set's frames come from: one call, whether they are decoded, or were stored as pixels before.

    source.read(row, indices, box) → uint8 (n, h, w, 3)

A source knows the manifest and the size that frames are resized to, so frames of the same row and index are the same
pixels from any of them, but for what a lossy cache loses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kinoscope.data.decode import Decoder, decode, target_size
from kinoscope.data.manifest import Manifest

Box = tuple[int, int, int, int]  # top, left, height, width, in pixels of the resized frame


class FrameSource(Protocol):
    """Frames by the manifest's row and their number in the video."""

    def read(self, row: int, indices: NDArray[np.int64], box: Box | None = None) -> NDArray[np.uint8]:
        """The frames at ``indices`` (n,), each cut to ``box``: (n, h, w, 3), RGB.

        Raises:
            DecodeError: the video cannot be read.
        """
        ...

    def path(self, row: int) -> Path:
        """The video's file, to name it."""
        ...


class Files:
    """Frames decoded from the data set's own files.

    Args:
        root: folder that the manifest's paths are relative to.
        manifest: the videos.
        resize: of the decoded frames, see ``decode``.
        decoder: pyav, decord or torchcodec.
    """

    def __init__(
        self, root: Path, manifest: Manifest, resize: int | tuple[int, int] | None, decoder: Decoder = "pyav"
    ) -> None:
        self.root, self.manifest, self.resize = root, manifest, resize
        self.decoder: Decoder = decoder
        self.random_access = manifest.column("random_access")
        self.heights, self.widths = manifest.column("height"), manifest.column("width")

    def path(self, row: int) -> Path:
        return self.root / self.manifest.path(row)

    def read(self, row: int, indices: NDArray[np.int64], box: Box | None = None) -> NDArray[np.uint8]:
        return self.decoded(self.path(row), row, indices, box)

    def decoded(
        self, file: str | Path, row: int, indices: NDArray[np.int64], box: Box | None = None
    ) -> NDArray[np.uint8]:
        """What `read` promises, from a file that holds this row's video."""
        # A short side would have to be turned into height and width by opening the file once more.
        height, width = int(self.heights[row]), int(self.widths[row])
        size = None if self.resize is None else target_size(height, width, self.resize)
        return decode(file, indices, size, self.decoder, not self.random_access[row], box)
