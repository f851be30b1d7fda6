"""Which frames of a video make a clip: starts and frame indices, exact to the frame.

A clip of T frames with stride s spans (T − 1)·s + 1 frames, so a video of n frames holds n − span + 1 different clips.
Everything here is a pure function of its arguments; the draws come from ``kinoscope.data.draws``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from kinoscope.errors import DecodeError

Short = Literal["error", "loop"]


def span(frames: int, stride: int = 1) -> int:
    """Number of consecutive video frames that a clip covers, first to last."""
    if frames < 1 or stride < 1:
        raise ValueError(f"a clip needs frames >= 1 and stride >= 1, got frames={frames}, stride={stride}")
    return (frames - 1) * stride + 1


def starts(n_frames: ArrayLike, frames: int, stride: int = 1, short: Short = "error") -> np.ndarray:
    """Number of different clip starts in videos of ``n_frames`` frames (array of any shape, int64).

    A video shorter than one clip has none: a DecodeError, or with ``short="loop"`` the video repeats without end and
    each of its frames is a start.
    """
    n_frames = np.asarray(n_frames, dtype=np.int64)
    if (n_frames < 1).any():
        raise DecodeError("a video without a single frame holds no clip.")
    needed = span(frames, stride)
    too_short = n_frames < needed
    if short == "error" and too_short.any():
        raise DecodeError(
            f"a video of {int(n_frames[too_short].min())} frames is too short for a clip of {frames} frames with "
            f"stride {stride}, which spans {needed}; choose fewer data.frames or a smaller data.stride."
        )
    return np.where(too_short, n_frames, n_frames - needed + 1)


def random_starts(
    draws: ArrayLike, n_frames: ArrayLike, frames: int, stride: int = 1, short: Short = "error"
) -> np.ndarray:
    """Clip starts, each of the video's starts equally likely, the last one included.

    Args:
        draws: uniform in [0, 1), one per clip, any shape that broadcasts with ``n_frames``.
        n_frames: length of the videos in frames.
        frames: length of the clip, T.
        stride: video frames from one clip frame to the next.
        short: what to do with a video shorter than the clip, see ``starts``.

    Returns:
        int64 starts in the broadcast shape.
    """
    return np.floor(np.asarray(draws, dtype=np.float64) * starts(n_frames, frames, stride, short)).astype(np.int64)


def view_starts(n_frames: int, frames: int, stride: int, views: int, short: Short = "error") -> np.ndarray:
    """Starts (views,) of the test views, evenly spread from the first possible start to the last.

    One view is the middle clip. With more views than starts, neighbouring views coincide.
    """
    if views < 1:
        raise ValueError(f"a test needs at least one view, got views={views}")
    last = int(starts(n_frames, frames, stride, short)) - 1
    if views == 1:
        return np.array([last // 2], dtype=np.int64)
    return np.arange(views, dtype=np.int64) * last // (views - 1)


def indices(start: ArrayLike, frames: int, stride: int = 1, n_frames: int | None = None) -> np.ndarray:
    """Frame indices (*start.shape, T) of the clips that begin at ``start``, int64.

    Args:
        start: first frame, a number or an array of them.
        frames: length of the clip, T.
        stride: video frames from one clip frame to the next.
        n_frames: length of a video that is looped; without it the indices are not wrapped.
    """
    span(frames, stride)
    clip = np.asarray(start, dtype=np.int64)[..., None] + stride * np.arange(frames, dtype=np.int64)
    return clip if n_frames is None else clip % n_frames
