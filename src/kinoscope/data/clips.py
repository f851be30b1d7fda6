"""Which frames of a video a clip has: exact to the frame, by four ways of sampling.

    random    T frames, ``stride`` apart, beginning anywhere: every start is equally likely
    dense     likewise, but a video's clips lie back to back from its first frame to its last and take turns
    uniform   one frame from each of T equal parts of the video (Temporal Segment Networks, arXiv:1608.00859, §3.1)
    all       the whole video as one sequence, at a frame rate of your choice, padded to T frames

A clip of T frames with stride s spans (T − 1)·s + 1 frames, so a video of n frames holds n − span + 1 different clips.
Everything here is a pure function of its arguments; the draws come from ``kinoscope.data.draws``.

Shape legend: B videos, k clips per video, V views, T frames of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kinoscope.data import draws
from kinoscope.errors import DecodeError

Sampling = Literal["random", "uniform", "dense", "all"]


@dataclass(frozen=True)
class Sampler:
    """Chooses frames, at random for training and evenly spread as test views.

    Args:
        mode: see the module's head.
        frames: T, frames per clip; for ``all`` the most that a sequence may have.
        stride: video frames from one clip frame to the next; ``uniform`` has none.
        fps: for ``all``, frames of the sequence per second; None, or more than the video has: every frame.
    """

    mode: Sampling = "random"
    frames: int = 16
    stride: int = 1
    fps: float | None = None

    @property
    def needed(self) -> int:
        """The fewest frames that a video must have: parts of a video may share a frame, and sequences are padded."""
        return span(self.frames, self.stride) if self.mode in ("random", "dense") else 1

    def training(
        self, seed: int, epochs: ArrayLike, videos: ArrayLike, n_frames: ArrayLike, rates: ArrayLike, clips: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """New clips for each epoch; the k clips of one video come one from each k-th of what there is.

        Args:
            seed: of the draws.
            epochs: (B,).
            videos: (B,) numbers of the videos in their subset.
            n_frames: (B,) their frames.
            rates: (B,) their frames per second; only a sequence with a rate of its own needs them.
            clips: k.

        Returns:
            frame numbers (B, k, T), and how many of the T are no padding, (B, k).
        """
        epochs, videos = np.asarray(epochs, np.int64), np.asarray(videos, np.int64)
        n_frames, rates = np.asarray(n_frames, np.int64)[:, None], np.asarray(rates, np.float64)[:, None]  # (B, 1)
        clip = np.arange(clips)

        def spread(name: str) -> NDArray[np.float64]:  # (B, k): one draw in each k-th of [0, 1)
            columns = [draws.uniform(seed, epochs, videos, f"{name}/{number}") for number in clip]
            return np.minimum((clip + np.stack(columns, axis=1)) / clips, np.nextafter(1, 0))

        if self.mode == "uniform":
            places = np.stack([spread(f"segment/{part}") for part in range(self.frames)], axis=-1)  # (B, k, T)
            return self._parts(places, n_frames[..., None])
        if self.mode == "dense":
            tiles = -(-n_frames // span(self.frames, self.stride))  # (B, 1), that cover the video
            first = np.floor(draws.uniform(seed, 0, videos, "tile") * tiles[:, 0]).astype(np.int64)[:, None]
            tile = (first + epochs[:, None] + clip * tiles // clips) % tiles  # (B, k)
            return self._at(tile * (starts(n_frames, self.frames, self.stride) - 1) // np.maximum(tiles - 1, 1))
        if self.mode == "all":
            return self._sequence(spread("start"), n_frames, rates)
        return self._at(random_starts(spread("start"), n_frames, self.frames, self.stride))

    def views(self, n_frames: int, rate: float = 0.0, views: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Test views of one video: frame numbers (V, T), and how many of the T are no padding, (V,).

        Views are spread from the first possible start to the last, or, for ``uniform``, over each part of the video;
        one view is the middle.
        """
        if self.mode in ("random", "dense"):
            return self._at(view_starts(n_frames, self.frames, self.stride, views))
        places = (np.arange(views) + 0.5)[:, None] / views  # (V, 1)
        if self.mode == "uniform":
            return self._parts(np.broadcast_to(places, (views, self.frames)), np.asarray(n_frames))
        numbers, lengths = self._sequence(places, np.asarray([[n_frames]]), np.asarray([[rate]]))
        return numbers[:, 0], lengths[:, 0]

    def _at(self, first: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return indices(first, self.frames, self.stride), np.full(first.shape, self.frames)

    def _parts(
        self, places: NDArray[np.float64], n_frames: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The frame at ``places`` (…, T) within [0, 1) of each part of the video."""
        numbers = np.floor((np.arange(self.frames) + places) * n_frames / self.frames).astype(np.int64)
        return np.minimum(numbers, n_frames - 1), np.full(numbers.shape[:-1], self.frames)

    def _sequence(
        self, places: NDArray[np.float64], n_frames: NDArray[np.int64], rates: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As many frames as there are and have room; where there are more, a window at ``places`` of what is left."""
        step = np.full(rates.shape, float(self.stride)) if self.fps is None else np.maximum(rates / self.fps, 1.0)
        there = np.floor((n_frames - 1) / step + ROUNDING).astype(np.int64) + 1  # frames of the whole sequence
        length = np.minimum(there, self.frames)
        first = np.floor(places * (there - length + 1)).astype(np.int64)
        # Padding repeats the last frame: it costs no decoding, and becomes zero when all else is done.
        order = first[..., None] + np.minimum(np.arange(self.frames), length[..., None] - 1)
        numbers = np.floor(order * step[..., None] + ROUNDING).astype(np.int64)
        return numbers, np.broadcast_to(length, first.shape)


ROUNDING = 1e-6  # of a frame: 29.97 frames per second are stored in 32 bits


def span(frames: int, stride: int = 1) -> int:
    """Number of consecutive video frames that a clip covers, first to last."""
    if frames < 1 or stride < 1:
        raise ValueError(f"a clip needs frames >= 1 and stride >= 1, got frames={frames}, stride={stride}")
    return (frames - 1) * stride + 1


def starts(n_frames: ArrayLike, frames: int, stride: int = 1) -> NDArray[np.int64]:
    """Number of different clip starts in videos of ``n_frames`` frames (array of any shape).

    Raises:
        DecodeError: a video is shorter than one clip.
    """
    n_frames = np.asarray(n_frames, dtype=np.int64)
    needed = span(frames, stride)
    if (n_frames < needed).any():
        raise DecodeError(
            f"a video of {int(n_frames.min())} frames is too short for a clip of {frames} frames with stride {stride}, "
            f"which spans {needed}; choose fewer data.frames or a smaller data.stride."
        )
    return n_frames - needed + 1


def random_starts(places: ArrayLike, n_frames: ArrayLike, frames: int, stride: int = 1) -> NDArray[np.int64]:
    """Clip starts, each of the video's starts equally likely, the last one included.

    Args:
        places: uniform in [0, 1), one per clip, any shape that broadcasts with ``n_frames``.
        n_frames: length of the videos in frames.
        frames: length of the clip, T.
        stride: video frames from one clip frame to the next.

    Returns:
        int64 starts in the broadcast shape.

    Raises:
        DecodeError: a video is shorter than one clip.
    """
    return np.floor(np.asarray(places, dtype=np.float64) * starts(n_frames, frames, stride)).astype(np.int64)


def view_starts(n_frames: int, frames: int, stride: int, views: int) -> NDArray[np.int64]:
    """Starts (views,) of the test views, evenly spread from the first possible start to the last.

    One view is the middle clip. With more views than starts, neighbouring views coincide.
    """
    if views < 1:
        raise ValueError(f"a test needs at least one view, got views={views}")
    last = int(starts(n_frames, frames, stride)) - 1
    if views == 1:
        return np.array([last // 2], dtype=np.int64)
    return np.arange(views, dtype=np.int64) * last // (views - 1)


def indices(start: ArrayLike, frames: int, stride: int = 1) -> NDArray[np.int64]:
    """Frame numbers (*start.shape, T) of the clips that begin at ``start``."""
    span(frames, stride)
    return np.asarray(start, dtype=np.int64)[..., None] + stride * np.arange(frames, dtype=np.int64)
