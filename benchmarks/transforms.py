"""What becomes of a batch of decoded clips on the device, against one conversion of the same clips to float.

    python benchmarks/transforms.py [--seconds 60] [--batch-size N] [--device cpu|cuda]

    crop_flip_normalise        what every video run does: random window, mirror, mean and scale
    multi_scale_crop           corner cropping at four scales instead of the window
    random_resized_crop        any area and shape instead of the window
    colour_jitter, erasing     the window and that

A ratio is the time of ours over the time of ``crops.float()``: of the delivered pixels, (B, 3, 16, 112, 112) uint8 →
float32, from frames of 128 × 171. Where kornia is installed, its video transforms are timed on the same frames too.

Each is measured at a batch of N and of N/4 clips. The float result of 16 clips is 38 MB. glibc takes more than 32 MB
from the system anew each time, so that the conversion, and everything else that writes floats, mostly waits for pages;
below, memory is used again, and the same conversion is several times cheaper. Both happen in training.

On a CPU, CPU time of one thread; on a GPU, time until it is idle. Variants alternate within a round.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kinoscope.data.preprocess import VideoPreprocess
from kinoscope.data.transforms import (
    Augmentation,
    ColourJitter,
    MultiScaleCrop,
    RandomErasing,
    RandomResizedCrop,
    Transform,
)
from timing import parser, print_ratios, rounds, show, spread

FRAMES, HEIGHT, WIDTH, SIZE = 16, 128, 171, 112
CHAINS: dict[str, list[Transform]] = {
    "crop_flip_normalise": [],
    "multi_scale_crop": [MultiScaleCrop()],
    "random_resized_crop": [RandomResizedCrop()],
    "colour_jitter": [ColourJitter(0.4, 0.4, 0.4, 0.1)],
    "erasing": [RandomErasing()],
}
BASE = "float conversion"
Call = Callable[[], Any]


def variants(clips: int, device: str) -> dict[str, Call]:
    """The conversion and all chains, on the same pixels."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (clips, 3, FRAMES, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)
    crops = frames[..., :SIZE, :SIZE].contiguous().to(device)
    preprocess = VideoPreprocess(SIZE, (HEIGHT, WIDTH)).to(device)
    calls: dict[str, Call] = {BASE: crops.float}
    for name, transforms in CHAINS.items():
        augment = Augmentation(transforms, flip=True)
        draws = torch.rand(clips, len(augment.streams), generator=generator)
        batch = {"video": frames.to(device), "draws": draws.to(device)}
        calls[name] = lambda augment=augment, batch=batch: augment(batch, preprocess)
    if importlib.util.find_spec("kornia") is not None:
        calls.update(kornia_variants(frames.to(device)))
    return calls


def kornia_variants(frames: Tensor) -> dict[str, Call]:
    """The first and the third chain as kornia's users write them."""
    from kornia import augmentation as kornia  # type: ignore[import-not-found]

    calls: dict[str, Call] = {}
    crops = {
        "kornia crop_flip_normalise": kornia.RandomCrop((SIZE, SIZE), cropping_mode="slice"),
        "kornia random_resized_crop": kornia.RandomResizedCrop((SIZE, SIZE), cropping_mode="slice"),
    }
    for name, crop in crops.items():
        normalise = kornia.Normalize(torch.full((3,), 0.45), torch.full((3,), 0.225))
        chain = kornia.VideoSequential(
            crop, kornia.RandomHorizontalFlip(), normalise, data_format="BCTHW", same_on_frame=True
        )
        calls[name] = lambda chain=chain: chain(frames.float() / 255)
    return calls


def seconds(call: Call, device: str) -> float:
    """What one call takes."""
    if device == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    began = time.monotonic()
    options = parser(__doc__)
    options.add_argument("--batch-size", type=int, default=16, help="clips (default 16)")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = options.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {args.device}")
    torch.empty(31 << 20, dtype=torch.uint8)  # as any training step does, which teaches glibc to keep what is smaller
    ratios: dict[str, float] = {}
    sizes = [args.batch_size, max(1, args.batch_size // 4)]
    for number, (label, clips) in enumerate(zip(("", "_quarter_batch"), sizes, strict=True), 1):
        calls = variants(clips, args.device)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():  # the first time allocates memory and chooses kernels
            call()
        for _ in rounds(began + args.seconds * number / len(sizes)):
            for name, call in calls.items():
                times[name].append(1e3 * seconds(call, args.device))
        show(f"{clips} clips", "ms per batch", times)
        base = spread(times[BASE])[1]
        ratios |= {f"{name.replace(' ', '_')}{label}": spread(t)[1] / base for name, t in times.items() if name != BASE}
    print_ratios(ratios)


if __name__ == "__main__":
    main()
