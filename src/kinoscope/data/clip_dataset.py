"""Clips from videos by frame number: what a loader's worker does.

Shape legend: B batch, V views, k clips per video, C channels, T frames, H height, W width, S side of a crop.

Where a crop resizes nothing, it is cut out here, where the frames are: less is copied, and a source that holds pixels
reads no more than it must. What the crop is follows from the same draws as on the device.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from kinoscope.data.clips import Sampler
from kinoscope.data.decode import target_size
from kinoscope.data.flow_stacks import FlowReader
from kinoscope.data.loading import Key, keyed_draws
from kinoscope.data.manifest import Manifest
from kinoscope.data.preprocess import window
from kinoscope.data.sources import Box, FrameSource
from kinoscope.data.transforms import Augmentation
from kinoscope.data.watchdog import Watchdog
from kinoscope.errors import DecodeError, KinoscopeError

OnError = Literal["raise", "skip"]
BATCHES = 4  # whose memory is kept: Lightning fetches one ahead of the one it trains on


class VideoDataset:
    """Clips of the videos in some rows of a manifest. A batch is one call; each of its videos is opened once.

    A file that cannot be decoded does not raise here, where it would arrive as the traceback of a worker: the batch
    then carries ``fault``, or the sample is left out and named in ``skipped``. A batch must not be empty, since the
    ranks of a run count the same batches.

    Pixels lie in memory as decoders give them, channels last; only the order of the axes is that of a batch.

    Args:
        source: gives the frames.
        manifest: the videos.
        rows: the manifest's rows that this subset uses.
        sampler: chooses the frames.
        resize: what the source resizes frames to, see `target_size`.
        classes: K, where a video may have several labels: ``label`` is then multi-hot; None: it has one.
        on_error: whether one bad file spoils a batch or is left out.
        seed: of all draws.
        augment: what training clips go through later: it names the draws, and says where to crop.
        clips_per_video: k, training clips from one opening of a file.
        views: V evenly spread clips per video, as ``clips``; None: k random ones, as ``video`` with ``draws``.
        crop: S, where S × S crops are cut out here: the augmentation's, or the centre of views; None: whole frames.
        time_limit: seconds for one sample, which a loader's worker does not survive.
        flow: gives the stacks of flow that begin at the clips' first frames: ``flow`` and ``flow_bounds``, as stored.
            Its means and trajectories need whole frames, so it does not go with ``crop``.
        frames_read: without, a batch has ``flow`` alone.
    """

    def __init__(
        self,
        source: FrameSource,
        manifest: Manifest,
        rows: NDArray[np.int64],
        sampler: Sampler,
        resize: int | tuple[int, int] | None = None,
        classes: int | None = None,
        on_error: OnError = "raise",
        seed: int = 0,
        augment: Augmentation | None = None,
        clips_per_video: int = 1,
        views: int | None = None,
        crop: int | None = None,
        time_limit: float | None = None,
        flow: FlowReader | None = None,
        frames_read: bool = True,
    ) -> None:
        self.flow, self.frames_read = flow, frames_read
        # Frames at a video's end where no clip may begin, since its flow would not fit.
        self.reserved = max(0, flow.stacks.needed - sampler.needed) if flow is not None else 0
        self.source, self.manifest, self.rows, self.sampler = source, manifest, rows, sampler
        self.resize, self.classes, self.on_error, self.seed = resize, classes, on_error, seed
        self.augment = augment or Augmentation()
        self.clips_per_video, self.views, self.crop = clips_per_video, views, crop
        self.watchdog = Watchdog(time_limit)
        self.memory = Memory()
        self.frames, self.rates = manifest.column("frames"), manifest.column("fps")
        self.heights, self.widths = manifest.column("height"), manifest.column("width")
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
        label = np.zeros((len(rows), self.classes), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            label[place, self.labels[self.first_label[row] : self.first_label[row + 1]]] = 1
        return torch.from_numpy(label)

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        index = np.array([index for _, index in keys], dtype=np.int64)
        wanted, lengths = self.chosen(keys)  # (B, k or V, T), (B, k or V)
        drawn = self.draws(keys) if self.views is None else None  # (B·k, n)
        sides = [self.sides(number) for number in index.tolist()]
        if self.crop is None and len(set(sides)) > 1:
            found = " and ".join(f"{height}×{width}" for height, width in sorted(set(sides))[:2])
            return {"fault": f"these videos differ in shape ({found} after resizing): set data.resize=[height,width]"}
        if self.crop is not None and self.crop > min(map(min, sides)):
            small = next(number for number, side in enumerate(sides) if min(side) < self.crop)
            height, width = sides[small]
            return {"fault": f"{self.path(int(index[small]))}: a crop of data.size={self.crop} does not fit into its "
                    f"frames of {height}×{width}: set data.resize"}  # fmt: skip
        boxes = self.boxes(drawn, sides, wanted.shape[1])
        height, width = boxes[0][0][2:]
        pixels = self.memory.take(
            (*wanted.shape, height, width, 3) if self.frames_read else (0,)
        )  # (B, k or V, T, h, w, C)
        kept: list[int] = []
        stacks: list[tuple[Tensor, Tensor]] = []
        faults: list[str] = []
        for place, number in enumerate(index.tolist()):
            try:
                with self.watchdog.over(number):
                    if self.frames_read:
                        self.read(number, wanted[place], boxes[place], pixels[len(kept)].numpy())
                    if self.flow is not None:
                        stacks.append(self.flow(int(self.rows[number]), wanted[place, :, 0]))
                kept.append(place)
            except DecodeError as error:
                faults.append(str(error))
            except KinoscopeError as error:  # not this file's fault: the next one would not fare better
                return {"fault": str(error)}
        if faults and self.on_error == "raise":
            return {"fault": faults[0]}
        if not kept:
            return {"fault": f"not one video of this batch of {len(keys)} can be read, and a larger data.batch_size "
                    f"goes on without them; the first: {faults[0]}"}  # fmt: skip

        batch: dict[str, Any] = {"label": self.label(index[kept]), "index": torch.from_numpy(index[kept])}
        if self.frames_read:
            clips = pixels[: len(kept)].permute(0, 1, 5, 2, 3, 4)  # (B, k or V, C, T, h, w)
            batch["clips" if drawn is None else "video"] = clips if drawn is None else clips.flatten(0, 1)
        if self.flow is not None:  # (B, k or V, L, 2, h, w) and (B, k or V, L)
            for name, part in zip(("flow", "flow_bounds"), zip(*stacks, strict=True), strict=True):
                batch[name] = torch.stack(part) if drawn is None else torch.cat(part)
        length = torch.from_numpy(lengths[kept].astype(np.int64))
        if drawn is not None:  # (B·k, …)
            length = length.flatten()
            batch["draws"] = drawn.unflatten(0, (len(keys), -1))[kept].flatten(0, 1)
            for name in ("label", "index"):
                batch[name] = batch[name].repeat_interleave(self.clips_per_video, dim=0)
        if self.crop is not None:
            batch["cropped"] = True
        if self.sampler.mode == "all":
            batch["length"] = length if drawn is not None else length[:, 0]
        if faults:
            batch["skipped"] = faults
        return batch

    def chosen(self, keys: list[Key]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The frames (B, k, T) of random clips or (B, V, T) of views, and how many are no padding, (B, k or V)."""
        epochs, index = np.array(keys, dtype=np.int64).reshape(-1, 2).T
        frames, rates = self.frames[self.rows[index]] - self.reserved, self.rates[self.rows[index]]
        if self.views is None:
            return self.sampler.training(self.seed, epochs, index, frames, rates, self.clips_per_video)
        views = [self.sampler.views(int(n), float(r), self.views) for n, r in zip(frames, rates, strict=True)]
        numbers, lengths = zip(*views, strict=True)
        return np.stack(numbers), np.stack(lengths)

    def sides(self, index: int) -> tuple[int, int]:
        """(height, width) of a sample's frames as the source gives them."""
        row = self.rows[index]
        return target_size(int(self.heights[row]), int(self.widths[row]), self.resize)

    def frame_sides(self) -> NDArray[np.int64]:
        """The same of all samples, (N, 2)."""
        sizes = np.stack([self.heights[self.rows], self.widths[self.rows]], axis=1)
        different, of = np.unique(sizes, axis=0, return_inverse=True)
        return np.array([target_size(int(h), int(w), self.resize) for h, w in different], dtype=np.int64)[of.ravel()]

    def boxes(self, drawn: Tensor | None, sides: list[tuple[int, int]], clips: int) -> list[list[Box]]:
        """Which part of its frames each of a video's k or V clips shows, for all B videos."""
        if self.crop is None:
            return [[(0, 0, height, width)] * clips for height, width in sides]
        if drawn is None:
            return [[window(*side, self.crop)] * clips for side in sides]
        found: list[list[Box]] = [[] for _ in sides]
        columns = drawn[:, : len(self.augment.crop.streams)].unflatten(0, (-1, clips))  # (B, k, n)
        for side in set(sides):
            alike = [place for place, other in enumerate(sides) if other == side]
            boxes = self.augment.crop.boxes(columns[alike].flatten(0, 1), *side, self.crop).tolist()
            for position, place in enumerate(alike):
                found[place] = [(b[0], b[1], b[2], b[3]) for b in boxes[position * clips : (position + 1) * clips]]
        return found

    def read(self, index: int, wanted: NDArray[np.int64], boxes: list[Box], into: NDArray[np.uint8]) -> None:
        """The clips (k, T) of one video from one opening of its file, each cut to its box, ``into`` (k, T, h, w, C)."""
        top, left = min(box[0] for box in boxes), min(box[1] for box in boxes)
        bottom, right = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
        hull = (top, left, bottom - top, right - left)
        box = None if hull == (0, 0, *self.sides(index)) else hull
        frames = self.source.read(int(self.rows[index]), wanted.ravel(), box)  # (k·T, h, w, C)
        for clip, (row, column, height, width) in enumerate(boxes):
            part = frames[clip * wanted.shape[1] : (clip + 1) * wanted.shape[1]]
            into[clip] = part[:, row - top : row - top + height, column - left : column - left + width]

    def draws(self, keys: list[Key]) -> Tensor:
        """What the augmentation wants, (B·k, n): every clip of a video for itself."""
        streams = [f"{name}/{clip}" for clip in range(self.clips_per_video) for name in self.augment.streams]
        return keyed_draws(self.seed, keys, streams).view(-1, len(self.augment.streams))


class Memory:
    """Memory for batches of pixels. Fresh memory costs several times what is written to it, page by page.

    In the training process that of a batch which nobody holds any more is taken again. A worker's is such that the
    training process sees it without another copy.
    """

    def __init__(self) -> None:
        self.kept: list[tuple[NDArray[np.uint8], weakref.ref]] = []  # and the array that the last tensor was made of

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, ()

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """uint8 of this shape, of any content."""
        size = int(np.prod(shape))
        if get_worker_info() is not None:
            shared = torch.empty(0, dtype=torch.uint8).untyped_storage()._new_shared(size)
            return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)
        free = (memory for memory, user in self.kept if user() is None and memory.size >= size)
        memory = next(free, None)
        if memory is None:
            memory = np.empty(size, np.uint8)
        part = memory[:size]  # an array of its own, which lives as long as a tensor or view made of it
        others = [(other, user) for other, user in self.kept if other is not memory]
        self.kept = [(memory, weakref.ref(part)), *others[: BATCHES - 1]]
        return torch.from_numpy(part).view(shape)
