"""Clips drawn from encoded videos by frame index: what a loader's worker does.

Shape legend: B batch, V views, k clips per video, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinoscope.data import clips, draws
from kinoscope.data.loading import Key, keyed_draws
from kinoscope.data.manifest import Manifest
from kinoscope.data.sources import FrameSource
from kinoscope.data.watchdog import Watchdog
from kinoscope.errors import DecodeError

OnError = Literal["raise", "skip"]


class VideoDataset:
    """Clips of the videos in some rows of a manifest. A batch is one call; each of its videos is opened once.

    A file that cannot be decoded does not raise here, where it would arrive as the traceback of a worker: the batch
    then carries ``fault``, or the sample is left out and named in ``skipped``.

    Args:
        source: gives the frames.
        manifest: the videos.
        rows: the manifest's rows that this subset uses.
        frames: T, frames per clip.
        stride: video frames from one clip frame to the next.
        classes: K, where a video may have several labels: ``label`` is then multi-hot; None: it has one.
        on_error: whether one bad file spoils a batch or is left out.
        seed: of all draws.
        clips_per_video: k, training clips from one opening of a file.
        streams: names of what is drawn for each training clip, see ``transforms``.
        views: V evenly spread clips per video, as ``clips``; None: k random ones, as ``video`` with ``draws``.
        time_limit: seconds for one sample, which a loader's worker does not survive.
    """

    def __init__(
        self,
        source: FrameSource,
        manifest: Manifest,
        rows: NDArray[np.int64],
        frames: int,
        stride: int,
        classes: int | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        clips_per_video: int = 1,
        streams: Sequence[str] = (),
        views: int | None = None,
        time_limit: float | None = None,
    ) -> None:
        self.source, self.rows = source, rows
        self.frames, self.stride, self.classes = frames, stride, classes
        self.on_error, self.seed, self.clips_per_video = on_error, seed, clips_per_video
        self.streams, self.views = streams, views
        self.watchdog = Watchdog(time_limit)
        self.lengths = manifest.column("frames")[rows].astype(np.int64)
        self.labels, self.first_label = manifest.labels()

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> Path:
        """The file of sample ``index``."""
        return self.source.path(int(self.rows[index]))

    def label(self, index: NDArray[np.int64]) -> Tensor:
        """Of these samples: (B,) int64, or multi-hot (B, K) uint8."""
        rows = self.rows[index]
        if self.classes is None:
            return torch.from_numpy(self.labels[self.first_label[rows]].astype(np.int64))
        label = torch.zeros(len(rows), self.classes, dtype=torch.uint8)
        for place, row in enumerate(rows.tolist()):
            label[place, self.labels[self.first_label[row] : self.first_label[row + 1]]] = 1
        return label

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        clip_starts = self.starts(keys)  # (B, k or V)
        kept: list[int] = []
        samples: list[Tensor] = []
        faults: list[str] = []
        for row, (_, index) in enumerate(keys):
            try:
                with self.watchdog.over(index):
                    samples.append(self.read(index, clip_starts[row]))
                kept.append(row)
            except DecodeError as error:
                faults.append(str(error))
        if faults and (self.on_error == "raise" or not samples):
            return {"fault": faults[0]}
        sizes = {tuple(sample.shape[-2:]) for sample in samples}
        if len(sizes) > 1:
            found = " and ".join(f"{height}×{width}" for height, width in sorted(sizes)[:2])
            return {"fault": f"these videos differ in shape ({found} after resizing): set data.resize=[height,width]"}

        keys = [keys[row] for row in kept]
        index = torch.tensor([index for _, index in keys])
        batch: dict[str, Any] = {"label": self.label(index.numpy()), "index": index}
        if self.views is not None:
            batch["clips"] = torch.stack(samples)  # (B, V, C, T, H, W)
        else:
            batch["video"] = torch.cat(samples)  # (B·k, C, T, H, W)
            batch["draws"] = self.draws(keys)
            for name in ("label", "index"):
                batch[name] = batch[name].repeat_interleave(self.clips_per_video, dim=0)
        if faults:
            batch["skipped"] = faults
        return batch

    def starts(self, keys: list[Key]) -> NDArray[np.int64]:
        """First frames of the clips, (B, k) at random or (B, V) evenly spread."""
        epochs, indices = np.array(keys, dtype=np.int64).reshape(-1, 2).T
        lengths = self.lengths[indices]
        if self.views is not None:
            return np.stack([clips.view_starts(int(n), self.frames, self.stride, self.views) for n in lengths])
        columns = [draws.uniform(self.seed, epochs, indices, f"start/{clip}") for clip in range(self.clips_per_video)]
        return clips.random_starts(np.stack(columns, axis=1), lengths[:, None], self.frames, self.stride)

    def read(self, index: int, clip_starts: NDArray[np.int64]) -> Tensor:
        """The clips of one video that begin at ``clip_starts`` (k,), from one opening: (k, C, T, H, W) uint8."""
        wanted = clips.indices(clip_starts, self.frames, self.stride)  # (k, T)
        frames = self.source.read(int(self.rows[index]), wanted.ravel())  # (k·T, H, W, C)
        split = frames.reshape(*wanted.shape, *frames.shape[1:])
        return torch.from_numpy(np.ascontiguousarray(split.transpose(0, 4, 1, 2, 3)))

    def draws(self, keys: list[Key]) -> Tensor:
        """What the augmentation wants, (B·k, n): every clip of a video for itself."""
        streams = [f"{name}/{clip}" for clip in range(self.clips_per_video) for name in self.streams]
        return keyed_draws(self.seed, keys, streams).view(-1, len(self.streams))
