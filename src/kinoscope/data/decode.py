"""Reads chosen frames of a video file: one function, three decoders, exact frames or a clear error.

    decode(path, indices, size, decoder) → uint8 (T, H, W, 3), RGB

Which frame is frame k is defined by counting: PyAV decodes from the start, whatever the container says. Every decoder
is quicker than that, by seeking, and in some files every decoder is wrong. So ``probe``, which has to count a video's
frames anyway, compares the two and says of each file whether its frames may be had by seeking; with
``sequential=True`` they are counted. A decoder that meets anything unexpected gives up, and the frames are counted too.

A reader is opened for each call, with one thread, and closed at once: one opened before a fork deadlocks, and one kept
open grows. All scale while they decode, bilinearly, but not alike: the same frame is not quite the same pixels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from kinoscope.data.decoders import Astray, Box, Target, decord, pyav, torchcodec
from kinoscope.errors import DecodeError, KinoscopeError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Decoder = Literal["pyav", "decord", "torchcodec"]
Size = int | Sequence[int]

READERS: dict[str, Callable[..., np.ndarray]] = {
    "pyav": pyav.read,
    "decord": decord.read,
    "torchcodec": torchcodec.read,
}
PLACES = 4  # where ``probe`` compares, besides the last frame
# Mean difference, in grey levels, of one and the same frame at its own size. Decoders differ in the last digit, if at
# all; PyAV must meet what it counted itself to the bit.
SAME = {"pyav": 0.0, "decord": 1.0, "torchcodec": 1.0}

PART, PART_END = "subfile,,", ",,:"

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
        random_access: whether a decoder's seeks lead to the right frames.
    """

    frames: int
    fps: float
    width: int
    height: int
    key_frame_spacing: int
    damaged: int = 0
    claimed: int = 0
    random_access: bool = False


def decode(
    path: str | Path,
    indices: ArrayLike,
    size: Size | None = None,
    decoder: Decoder = "pyav",
    sequential: bool = False,
    box: Box = None,
) -> np.ndarray:
    """The frames of a video at ``indices``, in that order.

    Args:
        path: the file.
        indices: frame numbers from 0, (T,); repeated and unsorted ones are welcome and cost nothing more.
        size: one number scales the short side to it, (height, width) scales to exactly that, None leaves it.
        decoder: ``pyav``, ``decord`` or ``torchcodec``. Where decord cannot be imported, PyAV takes its place and the
            log says so.
        sequential: count the frames from the start, as one must where ``probe`` found that seeks mislead.
        box: top, left, height and width of what is wanted of each frame, in pixels after scaling; None: all.

    Returns:
        (T, H, W, 3) uint8, RGB.

    Raises:
        DecodeError: the file is missing, no video, or has no such frame.
        KinoscopeError: torchcodec is asked for and cannot be used here.
    """
    wanted, back = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    if back.ndim != 1 or not len(wanted):
        raise ValueError(f"indices must be a non-empty list of frame numbers, got shape {np.shape(indices)}")
    if wanted[0] < 0:
        raise DecodeError(f"{path}: frame {wanted[0]} was asked for; frames are numbered from 0.")
    _require_file(path)
    target = _target_size(path, size)
    try:
        if sequential:
            raise Astray("counted, as asked")
        frames = _checked(path, READERS[decoder](path, wanted.tolist(), target, box), len(wanted), target, box)
    except (Astray, DecodeError) as error:
        log.debug("%s: %s", path, error)
        frames = _checked(path, pyav.count(path, wanted.tolist(), target, box), len(wanted), target, box)
    return frames if np.array_equal(back, np.arange(len(frames))) else frames[back]


def probe(
    path: str | Path,
    decoder: Decoder = "pyav",
    each: Callable[[VideoFrame], None] | None = None,
    begin: Callable[[int, int, float], None] | None = None,
) -> VideoInfo:
    """Decodes the whole video by PyAV and counts, since containers lie; then tries the decoder's seeks.

    Args:
        path: the file.
        decoder: whose random access is compared with the frames counted.
        each: is handed every frame on the way, so that whoever needs all of them decodes them once.
        begin: is told height, width and frames per second (0: unknown) before the first of them.

    Raises:
        DecodeError: the file is missing, no video, or nothing in it can be decoded.
        KinoscopeError: torchcodec is asked for and cannot be used here.
    """
    _require_file(path)
    keys: list[int] = []
    frames = damaged = 0
    with pyav.opened(path) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        claimed = stream.frames
        if "mp4" in container.format.name and stream.duration and stream.time_base:  # an edit list may hide some
            claimed = min(claimed, round(stream.duration * stream.time_base * rate))
        expected = claimed or round((container.duration or 0) / 1e6 * rate)
        witness = _Witness(expected)
        stamps = pyav.Stamps.of(container, stream)
        steady = True
        counted = pyav.InOrder(container, stream)
        for frame in counted:
            if begin is not None and not frames:
                begin(frame.height, frame.width, rate)
            if frame.key_frame:
                keys.append(frames)
            steady = steady and stamps is not None and stamps.fits(frame, frames)
            damaged += frame.is_corrupt
            witness.see(frames, frame)
            if each is not None:
                each(frame)
            frames += 1
        width, height = stream.width, stream.height
    if not frames:
        raise DecodeError(f"{path}: not one frame can be decoded.")
    if counted.broken:
        log.debug("%s: decoding breaks off: %s", path, counted.broken)
        claimed = claimed or expected
    spacing = int(np.diff([*(keys or [0]), frames]).max())
    sound = not damaged and not counted.broken and frames >= claimed
    # What is called a key frame must be one, or a seek there leads to pictures with holes. And the others come to
    # grief where frames that are shown before a key frame are stored behind it.
    regular = steady and len(keys) == len(counted.key_packets) if decoder == "pyav" else keys == counted.key_packets
    seekable = sound and regular and witness.confirms(path, frames, decoder)
    return VideoInfo(frames, rate, width, height, spacing, damaged, claimed, seekable)


def part(file: Path, start: int, size: int) -> str:
    """The path of a video that is ``size`` bytes of a larger file: all decoders use FFmpeg, which reads it in place."""
    return f"{PART}start,{start},end,{start + size}{PART_END}{file}"


def unusable(decoder: Decoder) -> str:
    """Why this machine cannot decode so, one sentence, or nothing."""
    try:
        if decoder == "torchcodec":
            torchcodec.library()
    except KinoscopeError as error:
        return str(error)
    return ""


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


def target_size(height: int, width: int, resize: Size | None) -> tuple[int, int]:
    """The (height, width) that frames of ``height`` × ``width`` get: as decoded, short side, or exact."""
    return (height, width) if resize is None else fit(width, height, resize)


class _Witness:
    """Some frames as they were counted, to tell whether seeks lead to them.

    The places are spread evenly over the frames that are expected, and the last frames are added: a
    decoder's seeks fail for all frames behind a key frame, or at the end. Of each frame some 50 × 50 pixels are kept,
    and neighbours are kept too: what a seek leads to must be like the right frame, and like no other more.
    """

    def __init__(self, expected: int) -> None:
        self.places = sorted({round((place + 0.5) * expected / PLACES) for place in range(PLACES)})
        self.near = {place + offset for place in self.places for offset in (-1, 0, 1)}
        self.convert = pyav.Scaler(None)
        self.seen: dict[int, np.ndarray] = {}
        self.newest: list[tuple[int, VideoFrame]] = []

    def see(self, number: int, frame: VideoFrame) -> None:
        self.newest = [*self.newest[-1:], (number, frame)]
        if number in self.near:
            self.seen[number] = _sample(self.convert(frame))

    def confirms(self, path: str | Path, frames: int, decoder: Decoder) -> bool:
        """Whether the decoder's frames are those that were counted."""
        self.seen.update({number: _sample(self.convert(frame)) for number, frame in self.newest})
        places = {*self.places, frames - 1} if decoder != "decord" else {*self.places}  # which never reads the last
        wanted = sorted(place for place in places if place < frames) or [0]
        try:
            found = _checked(path, READERS[decoder](path, wanted, None, None), len(wanted), None)
        except (Astray, DecodeError) as error:
            log.debug("%s: %s", path, error)
            return False
        for number, frame in zip(wanted, found, strict=True):
            sample = _sample(frame)
            apart = {place: _apart(sample, seen) for place, seen in self.seen.items()}
            if apart[number] > min(SAME[decoder], *apart.values()):
                return False
        return True


def _sample(frame: np.ndarray) -> np.ndarray:
    step = max(1, min(frame.shape[:2]) // 50)
    return frame[::step, ::step].astype(np.int16)


def _apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).mean()) if first.shape == second.shape else np.inf


def _checked(path: str | Path, frames: np.ndarray, count: int, target: Target, box: Box = None) -> np.ndarray:
    size = target if box is None else box[2:]
    if len(frames) != count or (size is not None and frames.shape[1:3] != size):
        raise DecodeError(
            f"{path}: asked for {count} frames of {size or 'their own size'}, the decoder returned an array of "
            f"{frames.shape}; the file is damaged."
        )
    return frames


def _require_file(path: str | Path) -> None:
    try:
        file = str(path).partition(PART_END)[2] if str(path).startswith(PART) else path
        empty = os.stat(file).st_size == 0  # noqa: PTH116 - once for every clip
    except FileNotFoundError:
        raise DecodeError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise DecodeError(f"{path}: cannot be read: {error.strerror}.") from None
    if empty:
        raise DecodeError(f"{path}: the file is empty (0 bytes).")


def _target_size(path: str | Path, size: Size | None) -> Target:
    """(height, width) to scale to; only a short side needs a look at the file first."""
    if not isinstance(size, int):
        return None if size is None else fit(0, 0, size)
    with pyav.opened(path) as (_, stream):
        return fit(stream.width, stream.height, size)
