"""Frames kept on disk at the size that training wants: videos are decoded once, when a data set is prepared.

    raw        pixels: nothing is decoded any more
    jpeg       each frame for itself: any frame at the price of one
    reencode   MPEG-4 with a key frame every few: the smallest, and quick to enter anywhere

All three give frame k of a video as frame k; only raw gives it to the bit, as PyAV decodes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kinoscope.data.manifest import Manifest
    from kinoscope.data.sources import FrameSource

Cache = Literal["none", "reencode", "jpeg", "raw"]


def make_source(
    kind: Literal["reencode", "jpeg", "raw"],
    folder: Path,
    root: Path,
    manifest: Manifest,
    resize: int | tuple[int, int] | None,
) -> FrameSource:
    """The frames that a cache holds.

    Args:
        kind: of the cache.
        folder: where its files are, see `kinoscope.data.keeping.keeper`.
        root: the data set's folder, to name its videos.
        manifest: the videos; only rows that are kept may be read.
        resize: what the frames were resized to.
    """
    # Only the one that is used: each brings its own library.
    if kind == "raw":
        from kinoscope.data.cache.raw import RawFrames as Frames
    elif kind == "jpeg":
        from kinoscope.data.cache.jpeg import JpegFrames as Frames
    else:
        from kinoscope.data.cache.reencode import ReencodedFrames as Frames
    return Frames(folder, root, manifest, resize)
