"""Clips from encoded videos: kinoscope's UCF101 DataModule against bare decord in a plain Dataset.

    python benchmarks/video_pipeline.py [--seconds 60] [--root <UCF101>] [--videos 48]

A clip is 16 consecutive frames at a random place, scaled by the decoder to a short side of 128, with a random 112×112
crop. Ratios are baseline / ours for CPU time and ours / baseline for rates: above 1 ours is the better one.

    cpu_per_crop_vs_decord                  CPU time per uint8 clip. The baseline crops, copies and collates; ours is a
                                            batch of whole scaled frames with the draws of their crops, as it leaves a
                                            worker. Crop and normalisation follow on the device: timed apart, see below
    cpu_per_float_crop_vs_decord            CPU time per normalised float crop, crop and normalisation of the batch
                                            included (the device is the CPU here); the baseline makes floats in the
                                            dataset, as users write it
    cpu_per_float_crop_vs_decord_2_workers  the same with two workers: their CPU time and their start are included
    clips_per_second_vs_decord_0_workers    float crops per second by the clock
    clips_per_second_vs_decord_2_workers    likewise with two workers, which have started

The baseline opens a decord reader per clip, with one thread and the scaled size known in advance, and reads the same
clips. CPU time is user and system time of this process and of its ended children. torch has one thread here, as in a
worker, so that times add up. In each round every variant passes ``EPOCHS`` times over all videos; its workers persist,
and its clock, but not its CPU time, leaves out the first epoch.

The videos are made here: 320×240, 5 s, MPEG-4 AVI with a key frame every 12 frames, sliding textures at about UCF101's
mean bit rate (60 kB/s). ``--root`` takes real ones, evenly spread over the training list of split 1.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import decord
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kinoscope.data.clip_dataset import VideoDataset
from kinoscope.data.lists import ucf101
from kinoscope.data.loading import KeyedLoader
from kinoscope.data.motion import encode
from kinoscope.data.preprocess import target_size
from kinoscope.data.sources import Files
from kinoscope.data.video import UCF101
from timing import parser, print_ratios, rounds, show, spread

FRAMES, SHORT_SIDE, CROP = 16, 128, 112
WIDTH, HEIGHT, FPS, LENGTH = 320, 240, 25, 125
MEAN, STD = 0.45, 0.225
BATCH = 8
EPOCHS = 3
CLASS = "Sliding"


class PlainClips(Dataset[tuple[Tensor, int]]):
    """What one would write: a reader per clip, the crop in numpy, and the float clip in the dataset.

    Args:
        paths: the files.
        starts: first frame of each file's clip.
        size: (width, height) to scale to while decoding.
        floats: normalise here; otherwise the crop stays uint8.
    """

    def __init__(self, paths: list[str], starts: NDArray[np.int64], size: tuple[int, int], floats: bool) -> None:
        self.paths, self.starts, self.size, self.floats = paths, starts, size, floats

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        width, height = self.size
        reader = decord.VideoReader(self.paths[index], width=width, height=height, num_threads=1)
        frames = reader.get_batch(range(self.starts[index], self.starts[index] + FRAMES)).asnumpy()  # (T, H, W, C)
        top = int(torch.randint(height - CROP + 1, ()))
        left = int(torch.randint(width - CROP + 1, ()))
        crop = torch.from_numpy(frames[:, top : top + CROP, left : left + CROP]).permute(3, 0, 1, 2)  # (C, T, S, S)
        return (crop.float().div_(255).sub_(MEAN).div_(STD) if self.floats else crop.contiguous()), 0


def texture(seed: int) -> NDArray[np.uint8]:
    """A video (T, H, W, 3): a picture of random waves that slides round the torus of the frame."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    picture = np.full((HEIGHT, WIDTH, 3), 110, np.float32)
    for _ in range(24):
        ky, kx = draw.integers(-12, 13, 2)
        wave = np.cos(2 * np.pi * (ky * y / HEIGHT + kx * x / WIDTH + draw.random()))
        picture += wave[..., None] * draw.normal(0, 14, 3)
    picture = picture.clip(0, 255).astype(np.uint8)
    down, right = draw.integers(-3, 4, 2)
    return np.stack([np.roll(picture, (down * t, right * t), axis=(0, 1)) for t in range(LENGTH)])


def generate(root: Path, videos: int) -> None:
    """Writes a data set of one class in UCF101's layout."""
    (root / "UCF-101" / CLASS).mkdir(parents=True)
    paths = [f"{CLASS}/v_{CLASS}_g01_c{number:02d}.avi" for number in range(videos)]
    for number, path in enumerate(paths):
        (root / "UCF-101" / path).write_bytes(encode(texture(number), FPS))
    write_lists(root, [CLASS], [(path, 1) for path in paths])


def choose(source: Path, root: Path, videos: int) -> None:
    """Links to some of a real data set's training videos, in the same layout."""
    names = ucf101.class_names(source)
    entries = [entry for entry in ucf101.read_split(source, 1, validation=0) if entry.subset == "train"]
    count = whole_batches(min(videos, len(entries)))
    chosen = [entries[i] for i in np.linspace(0, len(entries) - 1, count).astype(int)]
    lines: list[tuple[str, int]] = []
    for entry in chosen:
        name = names[entry.label]
        link = root / "UCF-101" / name / Path(entry.path).name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((source / entry.path).resolve())
        lines.append((f"{name}/{link.name}", names.index(name) + 1))
    write_lists(root, names, lines)


def whole_batches(videos: int) -> int:
    """As many of them as fill batches, since ours leaves out the rest of an epoch."""
    if videos < BATCH:
        raise SystemExit(f"at least {BATCH} training videos are needed, there are {videos}")
    return videos - videos % BATCH


def write_lists(root: Path, names: list[str], train: list[tuple[str, int]]) -> None:
    lists = root / ucf101.LISTS
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, 1)))
    (lists / "trainlist01.txt").write_text("".join(f"{path} {label}\n" for path, label in train))
    (lists / "testlist01.txt").write_text("")


def datamodule_of(root: Path, data_dir: Path) -> UCF101:
    """Ours, with all videos in the training set and everything else as by default."""
    datamodule = UCF101(
        str(root), data_dir=str(data_dir), batch_size=BATCH, frames=FRAMES, resize=SHORT_SIDE, size=CROP, flip=False,
        validation=0, workers=0,
    )  # fmt: skip
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


class Stopwatch:
    """Milliseconds per clip of each variant, one number per round.

    Args:
        clips: per epoch.

    Attributes:
        cpu: of this process and its ended children.
        wall: by the clock.
    """

    def __init__(self, clips: int) -> None:
        self.clips = clips
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def epochs(self, name: str, batches: Iterable[Any], take: Callable[[Any], object] = lambda batch: None) -> None:
        """``take`` gets every batch of ``EPOCHS`` epochs; then the workers, if there are any, end."""
        cpu = cpu_seconds()
        ends: list[float] = []
        for _ in range(EPOCHS):
            for batch in batches:
                take(batch)
            ends.append(time.perf_counter())
        if isinstance(batches, DataLoader):
            end_workers(batches)
        self.cpu.setdefault(name, []).append(1e3 * (cpu_seconds() - cpu) / (EPOCHS * self.clips))
        self.wall.setdefault(name, []).append(1e3 * (ends[-1] - ends[0]) / ((EPOCHS - 1) * self.clips))


def cpu_seconds() -> float:
    """Of this process with all its threads, and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def end_workers(loader: DataLoader) -> None:
    """Persistent workers end with their iterator; only then does the system count their CPU time as ours."""
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None


def our_loader(datamodule: UCF101, workers: int, epoch: int) -> KeyedLoader:
    """The DataModule's training loader; every pass over it is this epoch."""
    datamodule.workers = workers
    loader = datamodule.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return loader


def plain_loader(clips: PlainClips, workers: int) -> DataLoader:
    return DataLoader(clips, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def measure(datamodule: UCF101, deadline: float) -> Stopwatch:
    """All variants in turn, round by round."""
    ours = datamodule.subsets["train"]
    assert isinstance(ours, VideoDataset)
    paths = [str(ours.path(index)) for index in range(len(ours))]
    source = ours.source
    assert isinstance(source, Files)
    height, width = target_size(int(source.heights[0]), int(source.widths[0]), SHORT_SIDE)
    watch = Stopwatch(len(ours))

    def on_device(batch: Any) -> Any:
        return datamodule.on_after_batch_transfer(datamodule.on_before_batch_transfer(batch, 0), 0)

    ready = list(our_loader(datamodule, 0, 0))
    for number in rounds(deadline):
        starts = ours.starts([(number, index) for index in range(len(ours))])[:, 0]
        crops = {floats: PlainClips(paths, starts, (width, height), floats) for floats in (False, True)}
        watch.epochs("decord, uint8", plain_loader(crops[False], 0))
        watch.epochs("ours, uint8", our_loader(datamodule, 0, number))
        for workers in (0, 2):
            watch.epochs(f"decord, float, {workers} workers", plain_loader(crops[True], workers))
            watch.epochs(f"ours, float, {workers} workers", our_loader(datamodule, workers, number), on_device)
        watch.epochs("ours, on the device alone", ready, on_device)
    return watch


def main() -> None:
    deadline = time.monotonic()
    options = parser(__doc__)
    options.add_argument("--root", type=Path, help="a folder in UCF101's layout; by default videos are made")
    options.add_argument("--videos", type=int, default=48, help="how many at most (default 48)")
    args = options.parse_args()
    deadline += args.seconds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, videos = Path(folder) / "videos", whole_batches(args.videos)
        if args.root is None:
            generate(root, videos)
        else:
            choose(args.root, root, videos)
        watch = measure(datamodule_of(root, Path(folder) / "data"), deadline)
    show("CPU time", "ms per clip", watch.cpu)
    show("By the clock", "ms per clip", watch.wall)

    cpu, wall = ({name: spread(values)[1] for name, values in table.items()} for table in (watch.cpu, watch.wall))
    ratios = {
        "cpu_per_crop_vs_decord": cpu["decord, uint8"] / cpu["ours, uint8"],
        "cpu_per_float_crop_vs_decord": cpu["decord, float, 0 workers"] / cpu["ours, float, 0 workers"],
        "cpu_per_float_crop_vs_decord_2_workers": cpu["decord, float, 2 workers"] / cpu["ours, float, 2 workers"],
    }
    for workers in (0, 2):
        name = f"clips_per_second_vs_decord_{workers}_workers"
        ratios[name] = wall[f"decord, float, {workers} workers"] / wall[f"ours, float, {workers} workers"]
    print_ratios(ratios)


if __name__ == "__main__":
    main()
