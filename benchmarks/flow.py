"""What optical flow costs, in CPU time: computing it once for each method, and reading it instead of computing it.

    python benchmarks/flow.py [<folder of videos>]

Without a folder it takes embedded videos, scaled up. All are measured in turn, and medians of several rounds are shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa

from kinoscope.data import motion
from kinoscope.data.decode import decode
from kinoscope.data.flow import DIS, METHODS, TVL1, Farneback, FlowKeeper, FlowSource
from kinoscope.data.lists.listing import SUFFIXES, VideoEntry, listing
from kinoscope.data.manifest import SCHEMA, Manifest, write
from kinoscope.data.motion import MotionParameters

SIZE = (128, 171)
FRAMES, LENGTH, ROUNDS, VIDEOS = 21, 10, 5, 5


def cpu(work: Callable[..., object], *arguments: object) -> float:
    """Milliseconds of this process's CPU that a call takes."""
    begun = time.process_time()
    work(*arguments)
    return (time.process_time() - begun) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="?", type=Path, help="a folder that holds videos")
    folder = parser.parse_args().videos
    with tempfile.TemporaryDirectory() as home:
        if folder is None:
            folder = motion.generate(home, MotionParameters("local_motion", 0, 5, 2, 112, 30), progress=False)
        files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES)
        measure(files[:: max(1, len(files) // VIDEOS)][:VIDEOS], Path(home))


def measure(files: list[Path], home: Path) -> None:
    """Prints the table."""
    computing: dict[str, list[float]] = {name: [] for name in METHODS}
    decoding, reading = [], []
    stored = plain = 0
    for number, file in enumerate(files):
        keeper = FlowKeeper("farneback", {}, SIZE)
        source = kept(keeper, file, home / str(number))
        stored += source.path(0).stat().st_size
        plain += 2 * SIZE[0] * SIZE[1] * (FRAMES - 1)
        grey = [np.ascontiguousarray(frame[..., 1]) for frame in decode(file, range(FRAMES), SIZE)]
        for turn in range(ROUNDS):
            first = 1 + turn % (FRAMES - LENGTH - 1)
            stack = np.arange(first, first + LENGTH)
            reading.append(cpu(source.read, 0, stack))
            decoding.append(cpu(decode, file, [*stack, stack[-1] + 1], SIZE))
            for method in (Farneback(), DIS(), TVL1()):
                if turn == 0 or method.name != "tvl1":
                    computing[method.name].append(cpu(method, grey[first], grey[first + 1]))
    one = {name: statistics.median(values) for name, values in computing.items()}
    read, clip = statistics.median(reading), statistics.median(decoding)
    print(f"{len(files)} videos at {SIZE[0]}×{SIZE[1]}, medians of CPU time")
    for name, value in one.items():
        print(f"  {name:<10} {value:7.1f} ms per pair of frames, {value / one['dis']:6.1f} × DIS")
    print(f"  kept: {stored / plain:.2f} of its bytes, {stored / len(files) / (FRAMES - 1) / 1e3:.1f} kB per field")
    print(f"  reading {LENGTH} fields {read:.2f} ms; decoding their {LENGTH + 1} frames {clip:.2f} ms, "
          f"{clip / read:.1f} ×; with DIS besides {(clip + LENGTH * one['dis']) / read:.1f} ×")  # fmt: skip


def kept(keeper: FlowKeeper, file: Path, folder: Path) -> FlowSource:
    """The flow of one video's first frames, in a folder of its own."""
    keeper.folder = folder
    table = listing([VideoEntry(file.name, 0, "", "train")])
    rest = {f.name: pa.array([f.type.to_pandas_dtype()()], f.type) for f in list(SCHEMA)[len(table.schema) :]}
    write(pa.table([*table.columns, *rest.values()], SCHEMA.names), folder / "manifest.arrow", "pyav")
    source = FlowSource(folder, Manifest.open(folder / "manifest.arrow"))
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        sink = keeper.begin(source.path(0), stream.height, stream.width, 25.0)
        for _, frame in zip(range(FRAMES), container.decode(stream), strict=False):
            sink.add(frame)
    sink.close()
    return source


if __name__ == "__main__":
    main()
