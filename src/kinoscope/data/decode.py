"""Reads chosen frames of a video file: one function, two decoders, exact frames or a clear error.

    decode(path, indices, size) → uint8 (T, H, W, 3), RGB

decord seeks, and is the default where it has a wheel; PyAV counts frames from the start, whatever the container says.
A reader is opened for each call, with one thread, and closed at once: one opened before a fork deadlocks, and one kept
open grows. Both scale while they decode, bilinearly, and agree but for the last digits. The libraries are kept from
printing, except for one line of decord's own about a file that it cannot open.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from kinoscope.errors import DecodeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Decoder = Literal["decord", "pyav"]
Size = int | Sequence[int]

log = logging.getLogger("kinoscope")


@dataclass(frozen=True)
class VideoInfo:
    """What a video holds, found by decoding all of it.

    Args:
        frames: frames that can be decoded.
        fps: frames per second, 0 where the file does not say.
        width: in pixels.
        height: in pixels.
        key_frame_spacing: most frames from one key frame to the next, or to the end: what a seek may have to decode.
        damaged: how many of the frames the decoder could only patch up.
        claimed: frames that the container announces, 0 where it does not.
    """

    frames: int
    fps: float
    width: int
    height: int
    key_frame_spacing: int
    damaged: int = 0
    claimed: int = 0


def decode(path: str | Path, indices: ArrayLike, size: Size | None = None, decoder: Decoder = "decord") -> np.ndarray:
    """The frames of a video at ``indices``, in that order.

    Args:
        path: the file.
        indices: frame numbers from 0, (T,); repeated and unsorted ones are welcome and cost nothing more.
        size: one number scales the short side to it, (height, width) scales to exactly that, None leaves it.
        decoder: ``decord``, or ``pyav``. Where decord cannot be imported, PyAV takes its place and the log says so; it
            also reads the few good files that decord refuses.

    Returns:
        (T, H, W, 3) uint8, RGB.

    Raises:
        DecodeError: the file is missing, no video, or has no such frame.
    """
    wanted, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if back.ndim != 1 or not len(wanted):
        raise ValueError(f"indices must be a non-empty list of frame numbers, got shape {np.shape(indices)}")
    if wanted[0] < 0:
        raise DecodeError(f"{path}: frame {wanted[0]} was asked for; frames are numbered from 0.")
    _require_file(path)
    target = _target_size(path, size)
    decord = _decord() if decoder == "decord" else None
    frames = _by_pyav(path, wanted, target) if decord is None else _by_decord(decord, path, wanted, target)
    if len(frames) != len(wanted) or (target is not None and frames.shape[1:3] != target):
        raise DecodeError(
            f"{path}: asked for {len(wanted)} frames of {target or 'their own size'}, "
            f"the decoder returned an array of {frames.shape}; the file is damaged."
        )
    return frames if np.array_equal(back, np.arange(len(frames))) else frames[back]


def probe(path: str | Path) -> VideoInfo:
    """Decodes the whole video by PyAV and counts, since containers lie.

    Raises:
        DecodeError: the file is missing, no video, or nothing in it can be decoded.
    """
    _require_file(path)
    keys: list[int] = []
    frames = damaged = 0
    with _opened(path) as (_, stream, decoded):
        for frame in decoded:
            if frame.key_frame:
                keys.append(frames)
            damaged += frame.is_corrupt
            frames += 1
        rate = stream.average_rate or stream.guessed_rate
        claimed = stream.frames
        width, height = stream.width, stream.height
    if not frames:
        raise DecodeError(f"{path}: not one frame can be decoded.")
    spacing = int(np.diff([*(keys or [0]), frames]).max())
    return VideoInfo(frames, float(rate or 0), width, height, spacing, damaged, claimed)


def fit(width: int, height: int, size: Size) -> tuple[int, int]:
    """The (height, width) of a scaled frame: ``size`` is the short side, or (height, width) itself."""
    if isinstance(size, int):
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, got {size}")
        short = min(width, height)
        return max(1, round(height * size / short)), max(1, round(width * size / short))
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is the short side or (height, width), got {tuple(size)}")
    return int(size[0]), int(size[1])


def _require_file(path: str | Path) -> None:
    try:
        empty = os.stat(path).st_size == 0  # noqa: PTH116 - once for every clip
    except FileNotFoundError:
        raise DecodeError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DecodeError(f"{path}: cannot be read: {error.strerror}.") from None
    if empty:
        raise DecodeError(f"{path}: the file is empty (0 bytes).")


def _target_size(path: str | Path, size: Size | None) -> tuple[int, int] | None:
    """(height, width) to scale to; only a short side needs a look at the file first."""
    if not isinstance(size, int):
        return None if size is None else fit(0, 0, size)
    with _opened(path) as (_, stream, _decoded):
        return fit(stream.width, stream.height, size)


@cache
def _decord() -> Any | None:
    """The decord module, told to be quiet, or None where there is no wheel for this machine."""
    try:
        import decord
    except (ImportError, OSError):
        log.warning("decord cannot be imported on this machine; PyAV decodes instead.")
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _by_decord(decord: Any, path: str | Path, wanted: np.ndarray, target: tuple[int, int] | None) -> np.ndarray:
    height, width = target or (-1, -1)

    def opened() -> Any:
        # Without this tolerance decord fills a frame it fails to get with a copy of another one and says nothing.
        return decord.VideoReader(str(path), width=width, height=height, num_threads=1, fault_tol=0.0001)

    try:
        reader = opened()
        if wanted[-1] >= len(reader):
            raise DecodeError(_no_such_frame(path, int(wanted[-1]), len(reader)))
        try:
            return reader.get_batch(wanted).asnumpy()
        except decord.DECORDLimitReachedError:
            # After a seek, decord now and then loses the last frame of a video with B-frames: a race within it. Read
            # in order from the start it never does, and the pixels are the same.
            reader = opened()
            keep = set(wanted.tolist())
            frames = ((number, reader.next()) for number in range(int(wanted[-1]) + 1))
            return np.stack([frame.asnumpy() for number, frame in frames if number in keep])
    except DecodeError:
        raise
    except Exception as error:  # decord raises half a dozen unrelated types
        # Some it cannot read are fine, such as frames of 48 or 72 pixels' width; others PyAV refuses in plain words.
        log.debug("%s: decord gives up, PyAV decodes instead: %s", path, error)
        return _by_pyav(path, wanted, target)


def _by_pyav(path: str | Path, wanted: np.ndarray, target: tuple[int, int] | None) -> np.ndarray:
    from av.video.reformatter import VideoReformatter

    height, width = target or (None, None)
    scaler = VideoReformatter()  # one for all frames: it keeps its tables
    frames: list[np.ndarray] = []
    count = 0
    with _opened(path) as (_, _stream, decoded):
        for count, frame in enumerate(decoded, 1):
            if count - 1 == wanted[len(frames)]:
                scaled = scaler.reformat(frame, width, height, "rgb24", interpolation="BILINEAR")
                frames.append(scaled.to_ndarray())
                if len(frames) == len(wanted):
                    break
    if len(frames) < len(wanted):
        raise DecodeError(_no_such_frame(path, int(wanted[len(frames)]), count))
    if len({frame.shape for frame in frames}) > 1:
        raise DecodeError(f"{path}: its frames change in size; give data.resize both height and width.")
    return np.stack(frames)


def _no_such_frame(path: str | Path, index: int, count: int) -> str:
    return f"{path}: frame {index} was asked for, but only {count} frames can be decoded."


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream, Iterator[VideoFrame]]]:
    """A video opened by PyAV with one thread: the container, its first video stream, and its frames in order."""
    import av

    try:
        container = av.open(str(path))
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DecodeError(f"{path}: is not a video, or is cut off before its index ({_reason(error)}).") from None
    with container:
        if not container.streams.video:
            raise DecodeError(f"{path}: holds no video stream.")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        yield container, stream, _frames(container, stream)


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames up to the end or to where decoding breaks off: what is decodable is what a caller can count."""
    import av

    try:
        yield from container.decode(stream)
    except av.FFmpegError as error:
        log.debug("%s: decoding breaks off: %s", container.name, _reason(error))


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
