"""decord: its own index of the file, its own seeks.

It is off in AVIs with B-frames and several key frames, which ``probe`` finds. And in a stream with B-frames the last
frame is a race within it: now and then an error, now and then the frame before in its stead. So that one is left to
counting.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kinoscope.data.decoders import Astray, Box, Target, cut, pyav

log = logging.getLogger("kinoscope")


def read(path: str | Path, wanted: Sequence[int], target: Target, box: Box = None) -> np.ndarray:
    """Frames by decord, by PyAV where there is no decord. Raises `Astray`."""
    decord = library()
    if decord is None:
        return pyav.read(path, wanted, target, box)
    height, width = target or (-1, -1)
    try:
        # Without this tolerance it fills a frame that it fails to get with a copy of another one and says nothing.
        reader = decord.VideoReader(str(path), width=width, height=height, num_threads=1, fault_tol=0.0001)
        if wanted[-1] >= len(reader) - 1:
            raise Astray(f"decord finds {len(reader)} frames and is not to be trusted with the last")
        return cut(reader.get_batch(wanted).asnumpy(), box)
    except Astray:
        raise
    except Exception as error:  # decord raises half a dozen unrelated types, also for some files that are fine
        raise Astray(f"decord gives up: {str(error).strip().splitlines()[0]}") from None


@cache
def library() -> Any | None:
    """The decord module, told to be quiet, or None where there is no wheel for this machine."""
    try:
        import decord
    except (ImportError, OSError):
        log.warning("decord cannot be imported on this machine; PyAV decodes instead.")
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord
