"""Video data sets: clips drawn from encoded files by frame index, whole videos seen in several views at test time.

Shape legend: B batch, V views, k clips per video, C channels, T frames, H height, W width, S ``size``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinoscope.contracts import DataSpec
from kinoscope.data import clips, draws, motion, ucf101
from kinoscope.data.decode import Decoder, decode
from kinoscope.data.loading import Key, KeyedDataModule, Subset, keyed_draws
from kinoscope.data.manifest import Manifest, build
from kinoscope.data.motion import MotionParameters
from kinoscope.data.preprocess import Crops, VideoPreprocess, frame_size, target_size
from kinoscope.errors import DecodeError, KinoscopeError

if TYPE_CHECKING:
    from kinoscope.contracts import Batch

log = logging.getLogger("kinoscope")

OnError = Literal["raise", "skip"]
VALIDATION_VIEWS = 1  # the middle clip: validation is run often, and the views of a video agree more than its clips


class VideoDataset:
    """Clips of the videos in some rows of a manifest. A batch is one call; each of its videos is opened once.

    A file that cannot be decoded does not raise here, where it would arrive as the traceback of a worker: the batch
    then carries ``fault``, or the sample is left out and named in ``skipped``.

    Args:
        root: folder that the manifest's paths are relative to.
        manifest: the videos.
        rows: the manifest's rows that this subset uses.
        frames: T, frames per clip.
        stride: video frames from one clip frame to the next.
        resize: of the decoded frames, see ``decode``.
        decoder: decord or pyav.
        on_error: whether one bad file spoils a batch or is left out.
        seed: of all draws.
        clips_per_video: k, training clips from one opening of a file.
        flip: also draw for mirroring.
        views: V evenly spread clips per video, as ``clips``; None: k random ones, as ``video`` with ``draws``.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        rows: NDArray[np.int64],
        frames: int,
        stride: int,
        resize: int | tuple[int, int] | None,
        decoder: Decoder,
        on_error: OnError = "raise",
        seed: int = 0,
        clips_per_video: int = 1,
        flip: bool = False,
        views: int | None = None,
    ) -> None:
        self.root, self.manifest, self.rows = root, manifest, rows
        self.frames, self.stride, self.resize = frames, stride, resize
        self.decoder: Decoder = decoder
        self.on_error, self.seed, self.clips_per_video = on_error, seed, clips_per_video
        self.flip, self.views = flip, views
        self.lengths = manifest.column("frames")[rows].astype(np.int64)
        self.labels = manifest.column("label")[rows].astype(np.int64)
        self.sides = np.stack([manifest.column(name)[rows] for name in ("height", "width")], axis=1)

    def __len__(self) -> int:
        return len(self.rows)

    def path(self, index: int) -> Path:
        """The file of sample ``index``."""
        return self.root / self.manifest.path(self.rows[index])

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        clip_starts = self.starts(keys)  # (B, k or V)
        kept: list[int] = []
        samples: list[Tensor] = []
        faults: list[str] = []
        for row, (_, index) in enumerate(keys):
            try:
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
        batch: dict[str, Any] = {"label": torch.from_numpy(self.labels[index.numpy()]), "index": index}
        if self.views is not None:
            batch["clips"] = torch.stack(samples)  # (B, V, C, T, H, W)
        else:
            batch["video"] = torch.cat(samples)  # (B·k, C, T, H, W)
            batch["draws"] = self.draws(keys)
            for name in ("label", "index"):
                batch[name] = batch[name].repeat_interleave(self.clips_per_video)
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
        # A short side would have to be turned into height and width by opening the file once more.
        height, width = self.sides[index].tolist()
        size = None if self.resize is None else target_size(height, width, self.resize)
        frames = decode(self.path(index), wanted.ravel(), size, self.decoder)  # (k·T, H, W, C)
        split = frames.reshape(*wanted.shape, *frames.shape[1:])
        return torch.from_numpy(np.ascontiguousarray(split.transpose(0, 4, 1, 2, 3)))

    def draws(self, keys: list[Key]) -> Tensor:
        """Where to crop and whether to mirror, (B·k, 2 or 3): every clip of a video for itself."""
        names = ["crop_row", "crop_column", "flip"][: 3 if self.flip else 2]
        streams = [f"{name}/{clip}" for clip in range(self.clips_per_video) for name in names]
        return keyed_draws(self.seed, keys, streams).view(-1, len(names))


class UCF101(KeyedDataModule):
    """Videos in UCF101's folders and lists (Soomro, Zamir, Shah 2012, CRCV-TR-12-01), or laid out like it.

    Training delivers ``video`` (B, C, T, S, S): random clips, random crops. Validation and test deliver ``clips``
    (B, V, C, T, S, S): validation the middle clip's centre, the test ``test_views`` clips × ``test_crops`` crops.
    Validation holds out whole groups of the training list, since clips of one group are near-duplicates.

    Args:
        root: the folder that holds UCF-101/ and ucfTrainTestlist/; it is only read.
        split: which of the three official splits.
        classes: names to use; default: those with a folder.
        data_dir: the manifest goes to ``<data_dir>/manifests``.
        batch_size: clips per device and training step; videos at validation and test.
        workers: decoding processes per loader.
        frames: T, frames per clip.
        stride: video frames from one clip frame to the next.
        resize: decoded frames' short side, or [height, width]; null leaves them.
        size: side S of the square crop.
        flip: mirror training clips at random. Off where direction is the class.
        validation: share of every class's training groups that is held out.
        clips_per_video: training clips from one opening of a file; batch_size must be a multiple of it.
        test_views: clips per test video, evenly spread from its first frame to its last.
        test_crops: crops per test clip: 1, 3, 5 or 10.
        decoder: decord or pyav.
        on_error: a bad or too short file is an error, or skipped, counted and reported.
        seed: of order, clips and crops.
        spec: what the config promised the network; default: what the data are.
        preprocess: crop rule, mean and scale.
    """

    preprocess: VideoPreprocess
    name = "ucf101"

    def __init__(
        self,
        root: str,
        split: Literal[1, 2, 3] = 1,
        classes: Sequence[str] | None = None,
        data_dir: str = "data",
        batch_size: int = 16,
        workers: int = 2,
        frames: int = 16,
        stride: int = 1,
        resize: int | Sequence[int] | None = (128, 171),
        size: int = 112,
        flip: bool = True,
        validation: float = 0.1,
        clips_per_video: int = 1,
        test_views: int = 10,
        test_crops: Crops = 1,
        decoder: Decoder = "decord",
        on_error: OnError = "raise",
        seed: int = 0,
        spec: DataSpec | None = None,
        preprocess: VideoPreprocess | None = None,
    ) -> None:
        counts = {"frames": frames, "stride": stride, "size": size, "clips_per_video": clips_per_video}
        counts |= {"test_views": test_views}
        faults = [f"data.{key} must be at least 1, got {value}" for key, value in counts.items() if value < 1]
        if split not in (1, 2, 3):
            faults.append(f"data.split is 1, 2 or 3, got {split}")
        if on_error not in ("raise", "skip"):
            faults.append(f"data.on_error is raise or skip, got {on_error}")
        if test_crops not in (1, 3, 5, 10):
            faults.append(f"data.test_crops is 1, 3, 5 or 10, got {test_crops}")
        if test_crops == 10 and not flip:
            faults.append("data.test_crops=10 mirrors the clips, which data.flip=false forbids; take 5")
        if clips_per_video > 0 and batch_size % clips_per_video:
            faults.append(
                f"data.batch_size={batch_size} counts clips, so it must be a multiple of clips_per_video="
                f"{clips_per_video}"
            )
        super().__init__(batch_size, workers, validation, seed, faults)
        self.root, self.split, self.data_dir = Path(root), split, Path(data_dir)
        self.classes = None if classes is None else [str(name) for name in classes]
        self.frames, self.stride, self.resize, self.flip = frames, stride, frame_size(resize), flip
        self.clips_per_video, self.test_views = clips_per_video, test_views
        self.test_crops: Crops = test_crops
        self.decoder: Decoder = decoder
        self.on_error: OnError = on_error
        self.preprocess = preprocess or VideoPreprocess(size, self.resize)
        names = self.class_names() if spec is None else spec.classes
        self.spec = spec or DataSpec("video", (3, frames, size, size), tuple(names), len(names))
        self.skipped = 0  # samples left out while working

    def class_names(self) -> list[str]:
        return ucf101.class_names(self.root, self.classes)

    @property
    def manifest_file(self) -> Path:
        """One manifest per folder, split and choice, so that concurrent runs never rewrite each other's."""
        choice = json.dumps([str(self.root.resolve()), self.split, self.classes, self.validation])
        return self.data_dir / "manifests" / f"{self.name}-{hashlib.sha256(choice.encode()).hexdigest()[:8]}.arrow"

    def prepare_data(self) -> None:
        if self.subsets:  # the verbs prepare before a run folder is made, Lightning asks again
            return
        entries = ucf101.read_split(self.root, self.split, self.classes, self.validation)
        names = self.class_names()
        counts = ", ".join(f"{count:,} {subset}" for subset, count in ucf101.counts(entries).items())
        log.info("%s: split %d, %d classes (%s), videos: %s", self.name, self.split, len(names), _few(names), counts)
        build(self.root, entries, self.manifest_file, self.index_decoder())

    def index_decoder(self) -> Decoder:
        """The decoder that must be able to read every video before training begins."""
        return self.decoder

    def setup(self, stage: str | None = None) -> None:
        if self.subsets:
            return
        manifest = Manifest.open(self.manifest_file)
        good = self._usable(manifest)
        subsets: list[Subset] = ["train", "validation", "test"]
        for subset in subsets:
            rows = manifest.rows(subset)
            views = {"train": None, "validation": VALIDATION_VIEWS, "test": self.test_views}[subset]
            self.subsets[subset] = VideoDataset(
                self.root, manifest, rows[good[rows]], self.frames, self.stride, self.resize, self.decoder,
                self.on_error, self.seed, self.clips_per_video, self.flip, views,
            )  # fmt: skip
        if not len(self.subsets["train"]):
            raise KinoscopeError(f"{self.root}: not one training video of split {self.split} can be used")
        first = self._checked(self.subsets["train"].__getitems__([(0, 0)]))["video"]
        self.check_spec(tuple(self.preprocess(first).shape[1:]), self.class_names())

    def _usable(self, manifest: Manifest) -> NDArray[np.bool_]:
        """(N,) which rows can give a clip; the others are an error or reported."""
        needed = clips.span(self.frames, self.stride)
        readable, lengths = manifest.good(), manifest.column("frames")
        short = readable & (lengths < needed)
        reasons = [manifest.error(row) for row in np.flatnonzero(~readable).tolist()]
        reasons += [
            f"{self.root / manifest.path(row)}: has {lengths[row]} frames, a clip of data.frames={self.frames} with "
            f"data.stride={self.stride} spans {needed}."
            for row in np.flatnonzero(short).tolist()
        ]
        if reasons and self.on_error == "raise":
            more = f" So are {len(reasons) - 1} more." if len(reasons) > 1 else ""
            raise KinoscopeError(f"{reasons[0]}{more} data.on_error=skip leaves such files out.")
        for reason in reasons:
            log.warning("skipped: %s", reason)
        if reasons:
            log.warning("%s: %d of %d videos are skipped", self.name, len(reasons), len(manifest))
        return readable & ~short

    def samples_per_batch(self, subset: Subset) -> int:
        if subset == "train":
            return self.batch_size // self.clips_per_video
        # Views go through the network one after the other, crops and pixels lie in memory together.
        return max(1, self.batch_size // self.test_crops) if subset == "test" else self.batch_size

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        return self._checked(batch)

    def _checked(self, batch: dict[str, Any]) -> Batch:
        """The batch without the notes of the worker that made it; they are raised or logged here, in the parent."""
        if "fault" in batch:
            raise KinoscopeError(batch["fault"])
        skipped = batch.pop("skipped", [])
        for reason in skipped:
            log.warning("skipped: %s", reason)
        self.skipped += len(skipped)
        return batch

    def preprocessed(self, batch: Batch) -> Batch:
        batch = dict(batch)
        if "video" in batch:
            batch["video"] = self.preprocess(batch["video"], batch.pop("draws", None))
            return batch
        views = batch["clips"]  # (B, V, C, T, H, W)
        validating = self.trainer is not None and self.trainer.validating
        crops = self.preprocess.crops(views.flatten(0, 1), 1 if validating else self.test_crops)
        batch["clips"] = crops.unflatten(0, views.shape[:2]).flatten(1, 2)  # (B, V·crops, C, T, S, S)
        return batch

    def fingerprint(self) -> str:
        return ucf101.fingerprint(self.root, self.split, self.classes)

    def path(self, subset: Subset, index: int) -> Path:
        """The file of a sample, for pictures and reports."""
        dataset = self.subsets[subset]
        assert isinstance(dataset, VideoDataset)
        return dataset.path(index)


class Motion(UCF101):
    """The embedded data set: real encoded videos, generated in seconds into ``<data_dir>/motion``.

    Args:
        task: what has to be told apart: appearance, local_motion or order.
        videos_seed: of the videos' content; ``seed`` is that of the training draws.
        groups: scenes.
        clips_per_group: videos of each class in each group; default: enough for 400 test videos.
        image_size: side of the square frames in pixels.
        length: frames per video; default: what the task needs.
        fps: frames per second.
        noise: standard deviation of the pixel noise in grey levels.
        split: as in ``UCF101``, like all arguments that follow.
    """

    name = "motion"

    def __init__(
        self,
        task: motion.Task = "local_motion",
        videos_seed: int = 0,
        groups: int = 25,
        clips_per_group: int | None = None,
        image_size: int = 64,
        length: int | None = None,
        fps: int = 25,
        noise: float = 2.0,
        split: Literal[1, 2, 3] = 1,
        data_dir: str = "data",
        batch_size: int = 32,
        workers: int = 1,
        frames: int = 10,
        stride: int = 1,
        resize: int | Sequence[int] | None = 64,
        size: int = 56,
        flip: bool = False,
        validation: float = 0.1,
        clips_per_video: int = 1,
        test_views: int = 3,
        test_crops: Crops = 1,
        decoder: Decoder = "decord",
        on_error: OnError = "raise",
        seed: int = 0,
        spec: DataSpec | None = None,
        preprocess: VideoPreprocess | None = None,
    ) -> None:
        self.parameters = MotionParameters(task, videos_seed, groups, clips_per_group, image_size, length, fps, noise)
        super().__init__(
            str(motion.folder(data_dir, self.parameters)), split, None, data_dir, batch_size, workers, frames,
            stride, resize, size, flip, validation, clips_per_video, test_views, test_crops, decoder, on_error, seed,
            spec, preprocess,
        )  # fmt: skip

    def class_names(self) -> list[str]:
        return motion.class_names(self.parameters.task)

    def index_decoder(self) -> Decoder:
        return "pyav"  # which counts the frames anyway: files that were written a moment ago need no second opinion

    def prepare_data(self) -> None:
        motion.generate(self.data_dir, self.parameters)
        super().prepare_data()


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
