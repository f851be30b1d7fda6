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
from numpy.typing import NDArray

from kinoscope.contracts import DataSpec
from kinoscope.data import clips, decode, motion
from kinoscope.data.clip_dataset import OnError, VideoDataset
from kinoscope.data.decode import Decoder
from kinoscope.data.lists import listing as listings
from kinoscope.data.lists import ucf101
from kinoscope.data.loading import KeyedDataModule, Subset
from kinoscope.data.manifest import Manifest
from kinoscope.data.motion import MotionParameters
from kinoscope.data.prepare import build
from kinoscope.data.preprocess import Crops, VideoPreprocess, frame_size
from kinoscope.data.sources import Files
from kinoscope.data.transforms import Augmentation, Transform
from kinoscope.errors import KinoscopeError

if TYPE_CHECKING:
    import pyarrow as pa

    from kinoscope.contracts import Batch

log = logging.getLogger("kinoscope")

VALIDATION_VIEWS = 1  # the middle clip: validation is run often, and the views of a video agree more than its clips


class Videos(KeyedDataModule):
    """What all video data sets share. A subclass says which videos there are: `listing`, `class_names`, `fingerprint`.

    Training delivers ``video`` (B, C, T, S, S): random clips, random crops. Validation and test deliver ``clips``
    (B, V, C, T, S, S): validation the middle clip's centre, the test ``test_views`` clips × ``test_crops`` crops.

    Args:
        root: the data set's folder; it is only read.
        data_dir: the manifest goes to ``<data_dir>/manifests``.
        batch_size: clips per device and training step; videos at validation and test.
        workers: decoding processes per loader.
        frames: T, frames per clip.
        stride: video frames from one clip frame to the next.
        resize: decoded frames' short side, or [height, width]; null leaves them.
        size: side S of the square crop.
        flip: mirror training clips at random. Off where direction is the class.
        validation: share of the training videos that is held out, whole groups of them.
        clips_per_video: training clips from one opening of a file; batch_size must be a multiple of it.
        test_views: clips per test video, evenly spread from its first frame to its last.
        test_crops: crops per test clip: 1, 3, 5 or 10.
        decoder: pyav, decord or torchcodec.
        on_error: a bad or too short file is an error, or skipped, counted and reported.
        time_limit: seconds after which a sample that is still being decoded counts as bad; null: none.
        seed: of order, clips and crops.
        spec: what the config promised the network; default: what the data are.
        preprocess: crop rule, mean and scale.
        augment: what training clips go through on the device, from kinoscope.data.transforms; a crop among them
            replaces the random window.
        choice: what else decides which videos there are, so that each choice has a manifest of its own.
    """

    preprocess: VideoPreprocess
    name = "videos"

    def __init__(
        self,
        root: str,
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
        decoder: Decoder = "pyav",
        on_error: OnError = "raise",
        time_limit: float | None = 60.0,
        seed: int = 0,
        spec: DataSpec | None = None,
        preprocess: VideoPreprocess | None = None,
        augment: Sequence[Transform] = (),
        choice: Sequence[Any] = (),
    ) -> None:
        counts = {"frames": frames, "stride": stride, "size": size, "clips_per_video": clips_per_video}
        counts |= {"test_views": test_views}
        faults = [f"data.{key} must be at least 1, got {value}" for key, value in counts.items() if value < 1]
        if on_error not in ("raise", "skip"):
            faults.append(f"data.on_error is raise or skip, got {on_error}")
        if time_limit is not None and time_limit <= 0:
            faults.append(f"data.time_limit is in seconds, above 0, or null, got {time_limit}")
        if unusable := decode.unusable(decoder):
            faults.append(unusable)
        if test_crops not in (1, 3, 5, 10):
            faults.append(f"data.test_crops is 1, 3, 5 or 10, got {test_crops}")
        if test_crops == 10 and not flip:
            faults.append("data.test_crops=10 mirrors the clips, which data.flip=false forbids; take 5")
        faults += Augmentation.faults(augment)
        if clips_per_video > 0 and batch_size % clips_per_video:
            faults.append(
                f"data.batch_size={batch_size} counts clips, so it must be a multiple of clips_per_video="
                f"{clips_per_video}"
            )
        super().__init__(batch_size, workers, validation, seed, faults)
        self.root, self.data_dir, self.choice = Path(root), Path(data_dir), choice
        self.frames, self.stride, self.resize = frames, stride, frame_size(resize)
        self.clips_per_video, self.test_views = clips_per_video, test_views
        self.test_crops: Crops = test_crops
        self.decoder: Decoder = decoder
        self.on_error: OnError = on_error
        self.time_limit = time_limit
        self.preprocess = preprocess or VideoPreprocess(size, self.resize)
        self.augment = Augmentation(augment, flip)
        names = self.class_names() if spec is None else spec.classes
        self.spec = spec or DataSpec("video", (3, frames, size, size), tuple(names), len(names))
        self.unusable = 0  # videos that give no clip, known since ``setup``

    def class_names(self) -> list[str]:
        """In label order; reads lists and folders at most."""
        raise NotImplementedError

    def listing(self) -> pa.Table:
        """The videos that there are, see `kinoscope.data.lists.listing`."""
        raise NotImplementedError

    @property
    def manifest_file(self) -> Path:
        """One manifest per folder, split and choice, so that concurrent runs never rewrite each other's."""
        choice = json.dumps([str(self.root.resolve()), *self.choice, self.validation])
        return self.data_dir / "manifests" / f"{self.name}-{hashlib.sha256(choice.encode()).hexdigest()[:8]}.arrow"

    def prepare_data(self) -> None:
        if self.subsets:  # the verbs prepare before a run folder is made, Lightning asks again
            return
        listing, names = self.listing(), self.class_names()
        counts = ", ".join(f"{count:,} {subset}" for subset, count in listings.counts(listing).items())
        log.info("%s: %d classes (%s), videos: %s", self.name, len(names), _few(names), counts)
        build(self.root, listing, self.manifest_file, self.decoder)

    def setup(self, stage: str | None = None) -> None:
        if self.subsets:
            return
        manifest = Manifest.open(self.manifest_file)
        good = self._usable(manifest)
        source = Files(self.root, manifest, self.resize, self.decoder)
        classes = self.spec.num_classes if self.spec.multi_label else None
        subsets: list[Subset] = ["train", "validation", "test"]
        for subset in subsets:
            rows = manifest.rows(subset)
            views = {"train": None, "validation": VALIDATION_VIEWS, "test": self.test_views}[subset]
            self.subsets[subset] = VideoDataset(
                source, manifest, rows[good[rows]], self.frames, self.stride, classes, self.on_error, self.seed,
                self.clips_per_video, self.augment.streams, views, self.time_limit,
            )  # fmt: skip
        if not len(self.subsets["train"]):
            raise KinoscopeError(f"{self.root}: not one training video can be used")
        first = self._checked(self.first_batch("train"))["video"]
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
        self.unusable = len(reasons)
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

    def left_out(self) -> dict[str, int]:
        return {"videos": self.unusable, **super().left_out()}

    def preprocessed(self, batch: Batch) -> Batch:
        batch = dict(batch)
        if "video" in batch:
            return self.augment(batch, self.preprocess)
        views = batch["clips"]  # (B, V, C, T, H, W)
        validating = self.trainer is not None and self.trainer.validating
        crops = self.preprocess.crops(views.flatten(0, 1), 1 if validating else self.test_crops)
        batch["clips"] = crops.unflatten(0, views.shape[:2]).flatten(1, 2)  # (B, V·crops, C, T, S, S)
        return batch

    def path(self, subset: Subset, index: int) -> Path:
        """The file of a sample, for pictures and reports."""
        dataset = self.subsets[subset]
        assert isinstance(dataset, VideoDataset)
        return dataset.path(index)


class UCF101(Videos):
    """Videos in UCF101's folders and lists (Soomro, Zamir, Shah 2012, CRCV-TR-12-01), or laid out like it.

    Args:
        root: the folder that holds UCF-101/ and ucfTrainTestlist/; it is only read.
        split: which of the three official splits.
        classes: names to use; default: those with a folder.
        videos: as of `Videos`. Clips of one group are near-duplicates, so validation holds out whole groups of them.
    """

    name = "ucf101"

    def __init__(
        self, root: str, split: Literal[1, 2, 3] = 1, classes: Sequence[str] | None = None, **videos: Any
    ) -> None:
        if split not in (1, 2, 3):
            raise ValueError(f"data.split is 1, 2 or 3, got {split}")
        self.split, self.classes = split, None if classes is None else [str(name) for name in classes]
        super().__init__(root=root, choice=(split, self.classes), **videos)

    def class_names(self) -> list[str]:
        return ucf101.class_names(self.root, self.classes)

    def listing(self) -> pa.Table:
        return listings.listing(ucf101.read_split(self.root, self.split, self.classes, self.validation))

    def fingerprint(self) -> str:
        return ucf101.fingerprint(self.root, self.split, self.classes)


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
        data_dir: the videos go to ``<data_dir>/motion``, the manifest to ``<data_dir>/manifests``.
        batch_size: as in `Videos`, like all arguments that follow.
        workers: decoding processes per loader.
        frames: T, frames per clip.
        resize: decoded frames' short side, or [height, width]; null leaves them.
        size: side S of the square crop.
        flip: mirror training clips at random: here a direction is a class.
        test_views: clips per test video.
        videos: as of `UCF101`, without ``root`` and ``classes``.
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
        data_dir: str = "data",
        batch_size: int = 32,
        workers: int = 1,
        frames: int = 10,
        resize: int | Sequence[int] | None = 64,
        size: int = 56,
        flip: bool = False,
        test_views: int = 3,
        **videos: Any,
    ) -> None:
        self.parameters = MotionParameters(task, videos_seed, groups, clips_per_group, image_size, length, fps, noise)
        super().__init__(
            root=str(motion.folder(data_dir, self.parameters)), classes=None, data_dir=data_dir,
            batch_size=batch_size, workers=workers, frames=frames, resize=resize, size=size, flip=flip,
            test_views=test_views, **videos,
        )  # fmt: skip

    def class_names(self) -> list[str]:
        return motion.class_names(self.parameters.task)

    def prepare_data(self) -> None:
        motion.generate(self.data_dir, self.parameters)
        super().prepare_data()


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
