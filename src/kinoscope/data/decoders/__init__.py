"""The libraries that can read a video, each behind ``read(path, wanted, target) → uint8 (T, H, W, 3)``.

``wanted`` are sorted frame numbers without repeats, ``target`` is (height, width) or None. A reader works with one
thread, is opened for the call and closed at once. Where it meets anything but what it expected it raises `Astray`, and
``decode`` has the frames counted from the file's start by PyAV, whose word is the last.
"""

Target = tuple[int, int] | None  # (height, width) to scale to


class Astray(Exception):
    """Frames could not be had by random access; why, for the log."""
