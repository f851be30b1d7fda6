"""Clips from encoded videos: kinoscope's DataModule with and without its caches against bare decord in a plain Dataset.

    python benchmarks/video_pipeline.py [--seconds 120] [--videos 32] [--root <UCF101>] [--only avi_1]

A clip is 16 consecutive frames at a random place, scaled to a short side of 128, with a random 112×112 crop. What is
counted is CPU time per uint8 crop in batches as our loader delivers them; the device's part is timed apart. The
baseline opens a decord reader per clip, with one thread and the scaled size known in advance, reads the same clips,
crops, and makes normalised floats in the dataset, as users write it. torch has one thread, as in a worker, so that
times add up. Ratios are baseline / ours: above 1 ours is the better one. For each of the kinds of videos:

    <kind>_default              nothing is kept, one clip per opening of a file
    <kind>_4_clips              nothing is kept, four clips per opening
    <kind>_reencode, _jpeg, _raw    one clip per opening of what is kept

and over all of them

    raw_0_workers_vs_2          clips per second out of the raw cache: no worker against two, by the clock
    device_vs_float             time of flip and normalisation on the device (the CPU) / of one float conversion of the
                                same bytes: here less is better
    training_raw_vs_2_workers   clips per second of a whole run of ``kinoscope train`` with a small network: the raw
                                cache without workers against two workers that decode. The shares of the steps that
                                waited for data stand above the ratios

The kinds: ``avi_12`` MPEG-4 in AVI with a key frame every 12 frames, ``avi_1`` with a single one, ``h264_1`` H.264 in
MP4 with a single one: 320×240, 5 s, sliding textures at about UCF101's mean bit rate, made here. ``real`` with --root:
videos evenly spread over the training list of split 1. All variants take turns, round by round; medians count.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import av
import decord
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import kinoscope
from kinoscope.data.clip_dataset import VideoDataset
from kinoscope.data.datasets import UCF101
from kinoscope.data.decode import target_size
from kinoscope.data.lists import ucf101
from kinoscope.data.loading import KeyedLoader
from kinoscope.runs.folder import RunFolder
from timing import parser, print_ratios, rounds, show

FRAMES, SHORT_SIDE, CROP = 16, 128, 112
WIDTH, HEIGHT, FPS, LENGTH = 320, 240, 25, 125
MEAN, STD = 0.45, 0.225
BATCH = 16  # as data=ucf101 has by default
CLASS = "Sliding"
# Of about the same bit rate; one key frame means one at the beginning.
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "avi_12": (".avi", "mpeg4", {"qmin": "2", "qmax": "2", "g": "12", "bf": "0", "sc_threshold": "1000000000"}),
    "avi_1": (".avi", "mpeg4", {"qmin": "2", "qmax": "2", "g": "600", "bf": "0", "sc_threshold": "1000000000"}),
    "h264_1": (".mp4", "libx264", {"crf": "18", "g": "600", "bf": "3", "preset": "fast", "sc_threshold": "0"}),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "4_clips": {"clips_per_video": 4},
    "reencode": {"cache": "reencode"},
    "jpeg": {"cache": "jpeg"},
    "raw": {"cache": "raw"},
}


PASSES = {"raw": 10}  # over all videos in each round, where a clip takes a fraction of a millisecond


class PlainClips(Dataset[tuple[Tensor, int]]):
    """What one would write: a reader per clip, the crop in numpy, and the float clip in the dataset.

    Args:
        paths: the files.
        starts: first frame of each file's clip.
        sizes: (height, width) of each file's frames when scaled while decoding.
    """

    def __init__(self, paths: list[str], starts: NDArray[np.int64], sizes: list[tuple[int, int]]) -> None:
        self.paths, self.starts, self.sizes = paths, starts, sizes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        height, width = self.sizes[index]
        reader = decord.VideoReader(self.paths[index], width=width, height=height, num_threads=1)
        frames = reader.get_batch(range(self.starts[index], self.starts[index] + FRAMES)).asnumpy()  # (T, H, W, C)
        top = int(torch.randint(height - CROP + 1, ()))
        left = int(torch.randint(width - CROP + 1, ()))
        crop = torch.from_numpy(frames[:, top : top + CROP, left : left + CROP]).permute(3, 0, 1, 2)  # (C, T, S, S)
        return crop.float().div_(255).sub_(MEAN).div_(STD), 0


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


def encode(frames: NDArray[np.uint8], path: Path, codec: str, options: dict[str, str]) -> None:
    """Writes (T, H, W, 3) uint8 to a video file."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def generate(root: Path, kind: str, videos: int) -> None:
    """Writes a data set of one class in UCF101's layout."""
    suffix, codec, options = KINDS[kind]
    (root / "UCF-101" / CLASS).mkdir(parents=True)
    paths = [f"{CLASS}/v_{CLASS}_g01_c{number:02d}{suffix}" for number in range(videos)]
    for number, path in enumerate(paths):
        encode(texture(number), root / "UCF-101" / path, codec, options)
    write_lists(root, [CLASS], [(path, 1) for path in paths])


def choose(source: Path, root: Path, videos: int) -> None:
    """Links to some of a real data set's training videos, in the same layout."""
    names = ucf101.class_names(source)
    entries = [entry for entry in ucf101.read_split(source, 1, validation=0) if entry.subset == "train"]
    chosen = [entries[i] for i in np.linspace(0, len(entries) - 1, min(videos, len(entries))).astype(int)]
    lines: list[tuple[str, int]] = []
    for entry in chosen:
        name = names[entry.label]
        link = root / "UCF-101" / name / Path(entry.path).name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to((source / entry.path).resolve())
        lines.append((f"{name}/{link.name}", names.index(name) + 1))
    write_lists(root, names, lines)


def write_lists(root: Path, names: list[str], train: list[tuple[str, int]]) -> None:
    lists = root / ucf101.LISTS
    lists.mkdir()
    (lists / "classInd.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, 1)))
    (lists / "trainlist01.txt").write_text("".join(f"{path} {label}\n" for path, label in train))
    (lists / "testlist01.txt").write_text("".join(f"{path}\n" for path, _ in train[:1]))


def datamodule_of(root: Path, **more: Any) -> UCF101:
    """Ours, with all videos in the training set and no process but those that are asked for."""
    datamodule = UCF101(
        root=str(root), data_dir=str(root / "kept"), batch_size=BATCH, frames=FRAMES, resize=SHORT_SIDE, size=CROP,
        validation=0, time_limit=None, **{"workers": 0, **more},
    )  # fmt: skip
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def loader_of(datamodule: UCF101, epoch: int, workers: int = 0) -> KeyedLoader:
    """The DataModule's training loader; every pass over it is this epoch."""
    datamodule.workers = workers
    loader = datamodule.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return loader


def cpu_per_clip(batches: Iterable[Any], size: Callable[[Any], int]) -> float:
    """Milliseconds of this process for each clip of these batches."""
    began = time.process_time()
    clips = sum(size(batch) for batch in batches)
    return 1e3 * (time.process_time() - began) / clips


def measure(root: Path, deadline: float) -> dict[str, list[float]]:
    """CPU milliseconds per clip of every variant on one kind of videos, one number per round."""
    ours = {name: datamodule_of(root, **more) for name, more in VARIANTS.items()}
    dataset = ours["default"].subsets["train"]
    assert isinstance(dataset, VideoDataset)
    paths = [str(dataset.path(index)) for index in range(len(dataset))]
    rows = dataset.rows
    loaders = {name: loader_of(datamodule, 0) for name, datamodule in ours.items()}
    sizes = [target_size(int(dataset.heights[row]), int(dataset.widths[row]), SHORT_SIDE) for row in rows]
    spent: dict[str, list[float]] = {}
    for number in rounds(deadline):
        starts = dataset.chosen([(number, index) for index in range(len(dataset))])[0][:, 0, 0]
        plain = DataLoader(PlainClips(paths, starts, sizes), BATCH, shuffle=True)
        spent.setdefault("decord, float", []).append(cpu_per_clip(plain, lambda batch: len(batch[0])))
        for name, loader in loaders.items():
            loader.batch_sampler.set_epoch(number)
            batches = chain.from_iterable(loader for _ in range(PASSES.get(name, 1)))
            spent.setdefault(name, []).append(cpu_per_clip(batches, lambda batch: len(batch["video"])))
    return spent


def raw_rates(root: Path, deadline: float) -> dict[str, list[float]]:
    """Milliseconds by the clock per clip out of the raw cache, once workers have started."""
    datamodule = datamodule_of(root, cache="raw")
    passes = 1 + -(-256 // len(datamodule.subsets["train"]))  # some hundred clips: one takes fractions of a millisecond
    spent: dict[str, list[float]] = {}
    for number in rounds(deadline, least=2):
        for workers in (0, 2):
            with closing(loader_of(datamodule, number, workers)) as loader:
                list(loader)
                began = time.perf_counter()
                clips = sum(len(batch["video"]) for _ in range(passes) for batch in loader)
                spent.setdefault(f"{workers} workers", []).append(1e3 * (time.perf_counter() - began) / clips)
    return spent


def device_part(root: Path, deadline: float) -> dict[str, list[float]]:
    """CPU milliseconds per clip of what the device does, and of one float conversion of the same bytes."""
    datamodule = datamodule_of(root, cache="raw")
    ready = list(loader_of(datamodule, 0))
    plain = [batch["video"].contiguous() for batch in ready]
    spent: dict[str, list[float]] = {"flip and normalise": [], "one float conversion": []}
    for _ in rounds(deadline, least=5):
        done = (datamodule.on_after_batch_transfer(dict(batch), 0)["video"] for batch in ready)
        spent["flip and normalise"].append(cpu_per_clip(done, len))
        spent["one float conversion"].append(cpu_per_clip((video.float() for video in plain), len))
    return spent


def trained(root: Path, folder: Path, steps: int, *overrides: str) -> dict[str, float]:
    """Where the time of a short run of the public command went."""
    run = kinoscope.train(
        [
            "experiment=video/slow_fusion_small", "data=ucf101", "trainer=cpu", "logger=csv", "callbacks.progress=null",
            "threads=1",
            f"data.root={root}", f"data_dir={root / 'kept'}", f"output_dir={folder}", "monitor=null",
            f"data.batch_size={BATCH}", f"data.resize={SHORT_SIDE}", f"data.size={CROP}", "data.validation=0",
            "data.test_views=1", f"trainer.max_steps={steps}", "trainer.max_epochs=-1", "trainer.limit_val_batches=0",
            "model.scheduler=null",
            *overrides,
        ]
    )  # fmt: skip
    return RunFolder.open(run).read_summary()["time"]


def shares(root: Path, folder: Path, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """The same training from files with two workers, and from the raw cache with none."""
    before = trained(root, folder, steps, "data.workers=2")
    after = trained(root, folder, steps, "data.workers=0", "data.cache=raw", "data.time_limit=null")
    for name, spent in (("files, 2 workers", before), ("raw cache, 0 workers", after)):
        rate, waiting = spent["samples_per_second"], 100 * spent["data_share"]
        print(f"  {name:24} {rate:8.1f} clips/s   {waiting:5.1f} % waiting for data")
    return before, after


def sets_of(folder: Path, args: Any) -> Iterator[tuple[str, Path]]:
    """The kinds of videos, each in a folder of its own."""
    kinds = [*KINDS, *(["real"] if args.root else [])]
    for kind in args.only or kinds:
        root = folder / kind
        if kind == "real":
            choose(args.root, root, args.videos)
        else:
            generate(root, kind, args.videos)
        yield kind, root


def main() -> None:
    deadline = time.monotonic()
    options = parser(__doc__)
    options.set_defaults(seconds=120.0)
    options.add_argument("--root", type=Path, help="a folder in UCF101's layout, beside the videos that are made")
    options.add_argument("--videos", type=int, default=32, help="of each kind (default 32)")
    options.add_argument("--only", nargs="*", choices=[*KINDS, "real"], help="kinds to measure (default: all)")
    options.add_argument("--steps", type=int, default=40, help="of the two trainings (default 40)")
    args = options.parse_args()
    deadline += args.seconds
    torch.set_num_threads(1)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        sets = dict(sets_of(Path(temporary), args))
        share = (deadline - time.monotonic()) / (len(sets) + 1)
        for kind, root in sets.items():
            spent = measure(root, time.monotonic() + share)
            show(f"{kind}: CPU time", "ms per clip", spent)
            ratios |= {f"{kind}_{name}": median(spent["decord, float"]) / median(spent[name]) for name in VARIANTS}
        root = next(iter(sets.values()))
        rates = raw_rates(root, time.monotonic() + share / 4)
        show("raw cache, by the clock", "ms per clip", rates)
        ratios["raw_0_workers_vs_2"] = median(rates["2 workers"]) / median(rates["0 workers"])
        device = device_part(root, time.monotonic() + share / 4)
        show("on the device: CPU time", "ms per clip", device)
        ratios["device_vs_float"] = median(device["flip and normalise"]) / median(device["one float conversion"])
        print(f"\ntraining a small network, {args.steps} steps")
        before, after = shares(root, Path(temporary) / "runs", args.steps)
        ratios["training_raw_vs_2_workers"] = after["samples_per_second"] / before["samples_per_second"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nmost memory of this process: {peak:.0f} MiB")
    print_ratios(ratios)


if __name__ == "__main__":
    main()
