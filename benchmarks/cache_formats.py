"""What each cache of frames weighs, what it loses, and what keeping it costs beside the decoding that is needed anyway.

    python benchmarks/cache_formats.py [--videos 32] [--root <UCF101>] [--resize 128]

The videos are those of `video_pipeline`: MPEG-4 in AVI with a key frame every 12 frames, made here, or with --root real
ones. For each cache:

    <cache>_bytes_vs_videos     size of the kept files / of the videos
    <cache>_cpu_vs_probe        CPU time of decoding each video once and keeping its frames / of decoding it alone,
                                which ``prepare`` does for the manifest in any case
    <cache>_psnr                of the kept frames against decoded ones at the same size, in dB, median of the videos;
                                the lowest stands above. Nothing is lost in ``raw``
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from kinoscope.data import decode
from kinoscope.data.cache import make_source
from kinoscope.data.keeping import Keeper, Sink, keeper, kept_file
from kinoscope.data.manifest import Manifest
from kinoscope.data.sources import Files
from timing import parser, print_ratios
from video_pipeline import choose, datamodule_of, generate

CACHES = ("reencode", "jpeg", "raw")
SAMPLE = 16  # frames of each video that are compared, evenly spread


def seconds(work: Callable[[], object]) -> float:
    """CPU time."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--root", type=Path, help="a folder in UCF101's layout; by default videos are made")
    options.add_argument("--videos", type=int, default=32, help="how many at most (default 32)")
    options.add_argument("--resize", type=int, default=128, help="short side of what is kept (default 128)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "videos"
        if args.root is None:
            generate(root, "avi_12", args.videos)
        else:
            choose(args.root, root, args.videos)
        data = datamodule_of(root, on_error="skip")
        ratios = {}
        for name, figures in measure(root, Manifest.open(data.manifest_file), args.resize).items():
            print(f"{name:10} lowest PSNR {figures.pop('lowest'):6.1f} dB; bytes per pixel, at most in one video: "
                  f"{figures.pop('per_pixel'):.2f}")  # fmt: skip
            ratios |= {f"{name}_{what}": value for what, value in figures.items()}
    print_ratios(ratios)


def measure(root: Path, manifest: Manifest, resize: int) -> dict[str, dict[str, float]]:
    """Each cache's figures."""
    rows = np.flatnonzero(manifest.good()).tolist()
    files = Files(root, manifest, resize)
    probing = [seconds(partial(decode.probe, files.path(row))) for row in rows]
    found: dict[str, dict[str, float]] = {}
    for name in CACHES:
        made = keeper(name, root / "kept", root, resize=resize)
        source = make_source(name, made.folder, root, manifest, resize)
        cost, sizes, per_pixel, lost = [], [], [], []
        for row in rows:
            file = kept_file(made, manifest.path(row))
            file.parent.mkdir(parents=True, exist_ok=True)
            cost.append(seconds(partial(keep, files.path(row), made, file)))
            sizes.append(file.stat().st_size)
            frames = int(manifest.column("frames")[row])
            indices = np.unique(np.linspace(0, frames - 1, SAMPLE).astype(np.int64))
            exact, kept = files.read(row, indices), source.read(row, indices)
            per_pixel.append(sizes[-1] / (frames * exact[0].size / 3))
            lost.append(psnr(exact, kept))
        whole = sum(int(size) for size in manifest.column("bytes")[rows])
        found[name] = {
            "lowest": min(lost),
            "per_pixel": max(per_pixel),
            "bytes_vs_videos": sum(sizes) / whole,
            "cpu_vs_probe": sum(cost) / sum(probing),
            **({} if name == "raw" else {"psnr": median(lost)}),
        }
    return found


def keep(video: Path, keeper: Keeper, file: Path) -> None:
    """Decodes a video once and keeps its frames."""
    sinks: list[Sink] = []
    decode.probe(
        video,
        each=lambda frame: sinks[0].add(frame),
        begin=lambda *of_video: sinks.append(keeper.begin(file, *of_video)),
    )
    sinks[0].close()


def psnr(exact: np.ndarray, kept: np.ndarray) -> float:
    """In dB; infinite where nothing is lost."""
    error = np.square(exact.astype(np.float64) - kept).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


if __name__ == "__main__":
    main()
