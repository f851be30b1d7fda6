"""What a CUDA GPU waits for: C3D at the paper's size fed from videos and from caches, and the way to the device.

    python benchmarks/gpu_data.py [--root <UCF101>] [--steps 150] [--workers 8]
    python benchmarks/gpu_data.py --rehearse      a small network on the CPU: shows that the benchmark works, no more

C3D trains as in ``gpu_steps.py``, in bf16-mixed with channels last and without torch.compile, through
`kinoscope.train`, out of

    videos     files that ``--workers`` processes decode
    4_clips    the same, with four clips per opening of a file
    jpeg       the cache of JPEG frames, as many workers
    raw        the cache of pixels, without workers

Of each it prints ``c3d_<source>_clips_per_second`` and ``c3d_<source>_data_share``, the share of the steps' time spent
waiting for data while the GPU had nothing to do. The first third of the steps is not counted, nor is filling a cache.
Then, for one batch of 30 clips of 16 frames of 128 × 171 pixels, over the time that its bytes take from pinned memory:

    upload_pageable_vs_pinned    from memory that the driver has to copy first
    upload_float_vs_uint8        as float32, pinned, too
    transform_vs_upload          crop, mirror and normalisation on the GPU

and ``transform_difference``, the greatest difference of a normalised pixel between GPU and CPU.

With --root the videos are those of UCF101, each under as many names as make an epoch of some length; else the embedded
ones, made at 128 × 128. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from gpu_steps import EXPERIMENTS, ON_GPU, REHEARSAL, measure
from kinoscope.data.preprocess import VideoPreprocess
from kinoscope.data.transforms import Augmentation
from timing import print_ratios

SOURCES = {
    "videos": ["data.cache=none"],
    "4_clips": ["data.cache=none", "data.clips_per_video=4"],
    "jpeg": ["data.cache=jpeg"],
    "raw": ["data.cache=raw", "data.workers=0"],
}
VIDEOS = 600  # names at least, where there are fewer videos
BATCH = (30, 3, 16, 128, 171)
SIZE = 112


def many(root: Path, folder: Path) -> Path:
    """A folder of class folders with the videos of UCF101, each under several names."""
    videos = sorted(path for path in root.rglob("v_*") if path.suffix in (".avi", ".mp4"))
    if not videos:
        raise SystemExit(f"{root}: no video of UCF101 is here (v_<Class>_g01_c01.avi)")
    for copy in range(-(-VIDEOS // len(videos))):
        for video in videos:
            target = folder / video.parent.name / f"{video.stem}_{copy}{video.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(video, target)
    return folder


def milliseconds(call: Callable[[], object], times: int = 30) -> float:
    """Of the GPU, for one call in a row of them."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        call()
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / times


def upload() -> dict[str, float]:
    """What the way to the device and the work there take, and how far it is from the CPU's."""
    generator = torch.Generator().manual_seed(0)
    pageable = torch.randint(0, 256, BATCH, dtype=torch.uint8, generator=generator)
    pinned, floats = pageable.pin_memory(), pageable.float().pin_memory()
    augment, preprocess = Augmentation([], flip=True), VideoPreprocess(SIZE, BATCH[-2:])
    draws = torch.rand(BATCH[0], len(augment.streams), generator=generator)
    on_cpu = augment({"video": pageable, "draws": draws}, preprocess)["video"]
    preprocess.to("cuda")
    batch = {"video": pageable.cuda(), "draws": draws.cuda()}
    there = milliseconds(lambda: pinned.to("cuda", non_blocking=True))
    times = {
        "upload_pageable_vs_pinned": milliseconds(lambda: pageable.to("cuda")),
        "upload_float_vs_uint8": milliseconds(lambda: floats.to("cuda", non_blocking=True)),
        "transform_vs_upload": milliseconds(lambda: augment(dict(batch), preprocess)),
    }
    print(f"{pinned.numel() / 1e6:.1f} MB of uint8 in {there:.3f} ms: {pinned.numel() / there / 1e6:.1f} GB/s")
    print("in ms:", ", ".join(f"{name.partition('_vs_')[0]} {value:.3f}" for name, value in times.items()))
    difference = (augment(dict(batch), preprocess)["video"].cpu() - on_cpu).abs().max()
    return {name: value / there for name, value in times.items()} | {"transform_difference": float(difference)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--root", type=Path, help="a folder of UCF101's videos")
    options.add_argument("--steps", type=int, default=150, help="of each run (default 150)")
    options.add_argument("--workers", type=int, default=8, help="that decode (default 8)")
    options.add_argument("--rehearse", action="store_true", help="a small network on the CPU")
    args = options.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        print("skipped: there is no CUDA GPU here; --rehearse shows on the CPU that the benchmark works")
        return
    print(
        f"torch {torch.__version__}, {'CPU' if args.rehearse else torch.cuda.get_device_name()}, {os.cpu_count()} cores"
    )
    results: dict[str, float] = {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        experiment = [*EXPERIMENTS["c3d"], f"data.workers={args.workers}", f"data_dir={folder}/data"]
        if args.root is not None:
            root = many(args.root.resolve(), Path(folder) / "videos")
            experiment = [item for item in experiment if not item.startswith("data.image_size")]
            experiment[experiment.index("data=motion")] = "data=folders"
            experiment.append(f"data.root={root}")
        where = ["trainer=cpu", *REHEARSAL["c3d"]] if args.rehearse else ON_GPU
        os.chdir(folder)
        for name, source in SOURCES.items():
            found = measure([*experiment, *where, *source, f"trainer.max_steps={args.steps}"], count=False)
            results[f"c3d_{name}_clips_per_second"] = found["samples_per_second"]
            results[f"c3d_{name}_data_share"] = found["data_share"]
        os.chdir(before)
    print_ratios(results | ({} if args.rehearse else upload()))


if __name__ == "__main__":
    main()
