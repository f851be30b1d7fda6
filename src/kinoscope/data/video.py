"""Video data sets: clips drawn from encoded files by frame index, whole videos seen in several views at test time.

Shape legend: B batch, V views, k clips per video, C channels, T frames, H height, W width, S ``size``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kinoscope.contracts import DataSpec
from kinoscope.data import decode
from kinoscope.data.cache import Cache, make_source
from kinoscope.data.clip_dataset import OnError, VideoDataset
from kinoscope.data.clips import Sampler, Sampling
from kinoscope.data.datamodule import KeyedDataModule
from kinoscope.data.decode import Decoder
from kinoscope.data.flow import FlowSource
from kinoscope.data.flow_stacks import FlowReader, FlowStacks
from kinoscope.data.keeping import Keeper, is_kept, keeper
from kinoscope.data.lists import listing as listings
from kinoscope.data.loading import Subset
from kinoscope.data.manifest import Manifest
from kinoscope.data.prepare import build
from kinoscope.data.preprocess import Crops, VideoPreprocess, frame_size, zero_padding
from kinoscope.data.shards import writing
from kinoscope.data.shards.description import Description
from kinoscope.data.sources import Files, FrameSource
from kinoscope.data.tally import tally
from kinoscope.data.transforms import Augmentation, Transform
from kinoscope.errors import KinoscopeError

if TYPE_CHECKING:
    import pyarrow as pa

    from kinoscope.contracts import Batch

log = logging.getLogger("kinoscope")

MOST_CLIPS = 8  # of one video in one batch, to advise: more of them teach little


class Videos(KeyedDataModule):
    """What all video data sets share. A subclass says which videos there are: `listing`, `class_names`, `fingerprint`.

    Training delivers ``video`` (B, C, T, S, S): clips by ``sampling``, random crops. Validation and test deliver
    ``clips`` (B, V, C, T, S, S): validation the middle clip's centre, the test ``test_views`` clips × ``test_crops``
    crops. With ``sampling=all`` there is also ``length`` (B,): frames from there on are padding, zero when normalised.

    Args:
        root: the data set's folder; it is only read.
        data_dir: the manifest goes to ``<data_dir>/manifests``.
        batch_size: clips per device and training step; videos at validation and test.
        workers: decoding processes per loader.
        frames: T, frames per clip, or the most of a sequence.
        sampling: random: clips that begin anywhere; dense: clips that lie back to back and take turns; uniform: one
            frame from each of T equal parts of the video; all: the whole video, padded to T frames.
        stride: video frames from one clip frame to the next.
        sequence_fps: frames per second of sampling=all, 1 or more often less than the video has; null: every frame.
        resize: decoded frames' short side, or [height, width]; null leaves them.
        size: side S of the square crop.
        flip: mirror training clips at random. Off where direction is the class.
        validation: share of the training videos that is held out, whole groups of them.
        clips_per_video: k, training clips from one opening of a file, spread over it: a batch holds batch_size / k
            videos, and batch_size must be a multiple of k.
        test_views: clips per test video, evenly spread from its first frame to its last.
        test_crops: crops per test clip: 1, 3, 5 or 10.
        decoder: pyav, decord or torchcodec.
        flow: optical flow, computed once by prepare and kept in ``<data_dir>/cache``: batches then have ``flow``
            (B, 2L, S, S) beside the frames, or (B, V, 2L, S, S), of stacks that begin at each clip's first frame.
        input: video, or flow: no frames are read, and a sample is a stack of flow alone; ``frames`` and ``stride`` then
            mean nothing.
        cache: what training reads: none: the files; or frames at the size of ``resize``, kept once by prepare in
            ``<data_dir>/cache``: reencode: with a key frame every few; jpeg: each for itself; raw: as pixels.
        on_error: a bad or too short file is an error, or skipped, counted and reported.
        time_limit: seconds after which a sample that is still being decoded counts as bad; null: none. What
            cache=raw holds is not decoded.
        seed: of order, clips and crops.
        spec: what the config promised the network; default: what the data are.
        preprocess: crop rule, mean and scale.
        augment: what training clips go through on the device, from kinoscope.data.transforms; a crop among them
            replaces the random window.
        choice: what else decides which videos there are, so that each choice has a manifest of its own.

    Attributes:
        validation_views: clips per validation video, until ``setup``. One, the middle clip: validation is run often,
            and the views of a video agree more than its clips.
        validation_crops: crops of each of these.
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
        sampling: Sampling = "random",
        stride: int = 1,
        sequence_fps: float | None = None,
        resize: int | Sequence[int] | None = (128, 171),
        size: int = 112,
        flip: bool = True,
        validation: float = 0.1,
        clips_per_video: int = 1,
        test_views: int = 10,
        test_crops: Crops = 1,
        decoder: Decoder = "pyav",
        flow: FlowStacks | None = None,
        input: Literal["video", "flow"] = "video",
        cache: Cache = "none",
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
        if min(counts.values()) > 0:
            faults += _sampling_faults(sampling, stride, sequence_fps, clips_per_video, test_views)
        if cache not in get_args(Cache):
            faults.append(f"data.cache is one of {', '.join(get_args(Cache))}, got {cache}")
        if on_error not in ("raise", "skip"):
            faults.append(f"data.on_error is raise or skip, got {on_error}")
        if time_limit is not None and time_limit <= 0:
            faults.append(f"data.time_limit is in seconds, above 0, or null, got {time_limit}")
        if input not in ("video", "flow"):
            faults.append(f"data.input is video or flow, got {input}")
        if input == "flow" and flow is None:
            faults.append("data.input=flow needs a way to compute it: data/flow=farneback, dis or tvl1")
        if flow is not None and sampling in ("uniform", "all"):
            faults.append(f"data.flow is stacked from neighbouring frames, so data.sampling cannot be {sampling}")
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
        self.flow, self.frames_read = flow, input == "video"
        if flow is not None and input == "flow":
            frames, stride = flow.needed, 1
        self.sampler = Sampler(sampling, frames, stride, sequence_fps)
        self.resize = frame_size(resize)
        self.clips_per_video, self.test_views = clips_per_video, test_views
        self.test_crops: Crops = test_crops
        self.validation_views = 1
        self.validation_crops: Crops = 1
        self.decoder: Decoder = decoder
        self.cache: Cache = cache
        self.on_error: OnError = on_error
        self.time_limit = time_limit
        self.preprocess = preprocess or VideoPreprocess(size, self.resize)
        self.augment = Augmentation(augment, flip)
        names = self.class_names() if spec is None else spec.classes
        shape = (2 * flow.length, size, size) if flow is not None and input == "flow" else (3, frames, size, size)
        self.spec = spec or DataSpec(input, shape, tuple(names), len(names))
        self.unusable = 0  # videos that give no clip, known since ``setup``

    def class_names(self) -> list[str]:
        """In label order; reads lists and folders at most."""
        raise NotImplementedError

    def listing(self) -> pa.Table:
        """The videos that there are, see `kinoscope.data.lists.listing`."""
        raise NotImplementedError

    @property
    def manifest_file(self) -> Path:
        """One manifest per folder, choice, validation and decoder, so that runs never rewrite each other's.

        Those of one folder begin alike, up to the last dash: each takes from the others what they have measured.
        """
        whole = [str(self.root.resolve()), json.dumps([*self.choice, self.validation, self.decoder])]
        folder, choice = (hashlib.sha256(part.encode()).hexdigest()[:8] for part in whole)
        return self.data_dir / "manifests" / f"{self.name}-{folder}-{choice}.arrow"

    def prepare_data(self) -> None:
        if self.subsets:  # the verbs prepare before a run folder is made, Lightning asks again
            return
        listing, names = self.listing(), self.class_names()
        counts = ", ".join(f"{count:,} {subset}" for subset, count in listings.counts(listing).items())
        log.info("%s: %d classes (%s), videos: %s", self.name, len(names), _few(names), counts)
        build(self.root, listing, self.manifest_file, self.decoder, keepers=self.keepers())

    def write_shards(self, folder: Path, megabytes: float) -> Description:
        """Writes the videos of all subsets into shards, see `kinoscope.data.shards`."""
        about: dict[str, Any] = {"name": self.name, "classes": self.spec.classes, "multi_label": self.spec.multi_label}
        about |= {"flip": self.augment.flip, "validation": self.validation, "decoder": self.decoder}
        about |= {"fingerprint": self.fingerprint()}
        for name in ("mean", "std"):  # float32 would show its last digits
            about[name] = tuple(round(value, 6) for value in getattr(self.preprocess, name).flatten().tolist())
        return writing.write(Manifest.open(self.manifest_file), self.root, folder, about, megabytes)

    def tally(self) -> list[str]:
        return tally(Manifest.open(self.manifest_file), self.keepers())

    def setup(self, stage: str | None = None) -> None:
        if self.subsets:
            return
        manifest = Manifest.open(self.manifest_file)
        good = self._usable(manifest)
        source = self.source(manifest)
        flow = None
        if self.flow is not None:
            flow = FlowReader(self.flow, FlowSource(self.keepers()[-1].folder, manifest, self.flow.backward))
        classes = self.spec.num_classes if self.spec.multi_label else None
        subsets: list[Subset] = ["train", "validation", "test"]
        for subset in subsets:
            rows = manifest.rows(subset)
            views = {"train": None, "validation": self.validation_views, "test": self.test_views}[subset]
            self.subsets[subset] = VideoDataset(
                source, manifest, rows[good[rows]], self.sampler, self.resize, classes, self.on_error, self.seed,
                self.augment, self.clips_per_video, views, self._crop(subset),
                None if self.cache == "raw" else self.time_limit, flow, self.frames_read,
            )  # fmt: skip
        if not len(self.subsets["train"]):
            raise KinoscopeError(f"{self.root}: not one training video can be used")
        entries = 1 if self.on_error == "raise" else self.samples_per_batch("train")  # the first alone may be bad
        first = self.preprocessed(self._checked(self.first_batch("train", entries)))
        self.skipped, self.reasons = 0, set()  # nothing is left out of the training yet
        self.check_spec(tuple(first["video" if self.frames_read else "flow"].shape[1:]), self.class_names())

    def keepers(self) -> list[Keeper]:
        """What is to be kept of every video, see `kinoscope.data.keeping`."""
        resize = list(self.resize) if isinstance(self.resize, tuple) else self.resize
        found = []
        if self.cache != "none" and self.frames_read:
            found.append(keeper(self.cache, self.data_dir, self.root, resize=resize))
        if self.flow is not None:
            parameters = self.flow.parameters(self.resize)
            found.append(keeper(data_dir=self.data_dir, root=self.root, **parameters))
        return found

    def source(self, manifest: Manifest) -> FrameSource:
        """Where the frames come from."""
        if self.cache == "none" or not self.frames_read:
            return Files(self.root, manifest, self.resize, self.decoder)
        return make_source(self.cache, self.keepers()[0].folder, self.root, manifest, self.resize)

    def _crop(self, subset: Subset) -> int | None:
        """Side of the crops that are cut out where frames are read; None where the device has to."""
        resized = self.preprocess.resize not in (None, self.resize)
        many = self.augment.crop.resizes if subset == "train" else self._crops(subset) > 1
        # The mean of a field and the way of a pixel are those of the whole frame.
        return None if resized or many or self.flow is not None else self.preprocess.size

    def _crops(self, subset: Subset) -> Crops:
        """Of each view of a subset that is not trained on."""
        return self.test_crops if subset == "test" else self.validation_crops

    def _usable(self, manifest: Manifest) -> NDArray[np.bool_]:
        """(N,) which rows can give a clip; the others are an error or reported."""
        needed = max(self.sampler.needed, self.flow.needed if self.flow else 0)
        readable, lengths = manifest.good(), manifest.column("frames")
        short = readable & (lengths < needed)
        timeless = readable & ~short & (manifest.column("fps") <= 0) & (self.sampler.fps is not None)
        unkept = np.zeros(len(manifest), dtype=np.bool_)
        for kept in self.keepers():
            unkept |= readable & ~short & ~timeless & ~is_kept(kept.folder, manifest)
        missing = manifest.missing()  # of some data sets most: counted, and no fault of the files that are there
        if missing.any():
            log.warning("%s: of %d listed videos %d are missing.", self.name, len(manifest), missing.sum())
        reasons = [f"{self.root}/{manifest.error(row)}" for row in np.flatnonzero(~readable & ~missing).tolist()]
        reasons += [
            f"{self.root / manifest.path(row)}: has {lengths[row]} frames, a clip of data.frames={self.sampler.frames} "
            f"with data.stride={self.sampler.stride} spans {needed}."
            for row in np.flatnonzero(short).tolist()
        ]
        reasons += [
            f"{self.root / manifest.path(row)}: does not say its frame rate, which data.sequence_fps needs."
            for row in np.flatnonzero(timeless).tolist()
        ]
        reasons += [
            f"{self.root / manifest.path(row)}: is not kept in {self.data_dir / 'cache'}; run kinoscope prepare."
            for row in np.flatnonzero(unkept).tolist()
        ]
        if reasons and self.on_error == "raise":
            more = f" So are {len(reasons) - 1} more." if len(reasons) > 1 else ""
            raise KinoscopeError(f"{reasons[0]}{more} data.on_error=skip leaves such files out.")
        self.unusable = len(reasons)
        for reason in reasons:
            log.warning("skipped: %s", reason)
        if reasons:
            log.warning("%s: %d of %d videos are skipped", self.name, len(reasons), len(manifest))
        return readable & ~short & ~timeless & ~unkept

    def samples_per_batch(self, subset: Subset) -> int:
        if subset == "train":
            return self.batch_size // self.clips_per_video
        # Views go through the network one after the other, crops and pixels lie in memory together.
        return max(1, self.batch_size // self._crops(subset))

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> Batch:
        return self._checked(batch)

    def _checked(self, batch: dict[str, Any]) -> Batch:
        """The batch without the notes of the worker that made it; they are raised or logged here, in the parent."""
        if "fault" in batch:
            raise KinoscopeError(batch["fault"])
        skipped = batch.pop("skipped", [])
        for reason in skipped:
            log.warning("skipped: %s", reason)
        self.reasons.update(skipped)
        self.skipped += len(skipped) * (self.clips_per_video if "draws" in batch else 1)
        return batch

    def left_out(self) -> dict[str, int]:
        """Whole videos, known since ``setup``; and samples since then: clips in training, videos in evaluation."""
        return {"videos": self.unusable, **super().left_out()}

    def preprocessed(self, batch: Batch) -> Batch:
        batch = dict(batch)
        if self.flow is not None:
            batch["flow"] = self.flow(batch["flow"], batch.pop("flow_bounds"))
        if "draws" in batch:
            batch = self.augment(batch, self.preprocess)
        elif batch.pop("cropped", False):
            batch["clips"] = self.preprocess.normalise(batch["clips"])  # (B, V, C, T, S, S)
        else:
            validating = self.trainer is not None and (self.trainer.validating or self.trainer.sanity_checking)
            n = self._crops("validation" if validating else "test")
            for name, crops in (("clips", self.preprocess.crops), ("flow", self.preprocess.flow_crops)):
                if name in batch:  # (B, V, C, T, H, W) or (B, V, 2L, H, W)
                    views = batch[name]
                    batch[name] = crops(views.flatten(0, 1), n).unflatten(0, views.shape[:2]).flatten(1, 2)
        if "length" in batch:
            zero_padding(batch["video"] if "video" in batch else batch["clips"], batch["length"])
        return batch

    def cures(self) -> list[str]:
        *faster, batches = super().cures()
        if self.cache == "raw" and self.flow is None:  # nothing is decoded, so there is little for workers to do
            return [batches, *faster]
        if self.cache == "raw" or not self.frames_read:
            return [*faster, batches]
        more = self.clips_per_video * 2
        if self.sampler.mode != "all" and self.batch_size % more == 0 and more <= MOST_CLIPS:
            faster.append(f"data.clips_per_video={more} (now {self.clips_per_video})")
        dataset = self.subsets.get("train")
        if isinstance(dataset, VideoDataset):
            sides = dataset.frame_sides()
            pixels = int((sides.prod(axis=1) * dataset.frames[dataset.rows]).sum())
            size = 3 * pixels / 1e9
            faster.insert(0, f"data.cache=raw (now {self.cache}), {size:.2g} GB on disk for the training videos")
        return [*faster, batches]

    def path(self, subset: Subset, index: int) -> Path:
        """The file of a sample, for pictures and reports."""
        dataset = self.subsets[subset]
        assert isinstance(dataset, VideoDataset)
        return dataset.path(index)


def _sampling_faults(
    sampling: Sampling, stride: int, sequence_fps: float | None, clips_per_video: int, test_views: int
) -> list[str]:
    """What does not go together, one sentence each."""
    if sampling not in get_args(Sampling):
        return [f"data.sampling is one of {', '.join(get_args(Sampling))}, got {sampling}"]
    faults = []
    if sampling == "uniform" and stride != 1:
        faults.append(f"data.sampling=uniform spreads frames over the whole video: data.stride={stride} means nothing")
    if sampling == "all":
        for name, value in (("clips_per_video", clips_per_video), ("test_views", test_views)):
            if value != 1:
                faults.append(f"data.sampling=all takes a video as one sequence: set data.{name}=1 (now {value})")
    if sequence_fps is not None:
        if sampling != "all" or stride != 1:
            faults.append("data.sequence_fps is the frame rate of data.sampling=all, with data.stride=1")
        if sequence_fps <= 0:
            faults.append(f"data.sequence_fps is above 0 or null, got {sequence_fps}")
    return faults


def _few(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
