"""The libraries that can read a video, each behind ``read(path, wanted, target, box) → uint8 (T, H, W, 3)``.

``wanted`` are sorted frame numbers without repeats, ``target`` is (height, width) or None, ``box`` is what to keep of
the scaled frames, or None. A reader works with one
thread, is opened for the call and closed at once. Where it meets anything but what it expected it raises `Astray`, and
``decode`` has the frames counted from the file's start by PyAV, whose word is the last.
"""

import numpy as np

Target = tuple[int, int] | None  # (height, width) to scale to
Box = tuple[int, int, int, int] | None  # top, left, height, width, in pixels of the scaled frame


def cut(frames: np.ndarray, box: Box) -> np.ndarray:
    """Whole frames (T, H, W, 3) cut to ``box``, a view."""
    if box is None:
        return frames
    top, left, height, width = box
    return frames[:, top : top + height, left : left + width]


class Astray(Exception):
    """Frames could not be had by random access; why, for the log."""
