"""What a data set of Sports-1M's length costs: a list of 1,133,158 lines, real videos, memory and time.

    python benchmarks/manifest_memory.py [--root <ucf101>] [--videos 1133158] [--batches 10000]

Three data sets of the same few dozen videos, each in a process of its own, through the public DataModule:

    short      a list of these videos alone: what everything costs but for the rows
    missing    the whole list, of which these videos are there and all others are not
    present    a manifest of the whole length in which every row can be read (rows share files)

Each is prepared and set up, and gives one batch, the first of another epoch, and then many, with two workers. Memory
is the kernel's: what is resident (RSS) in the training process, and its share of all processes (PSS) with workers.
Pages that several hold in common, such as those of the mapped manifest, count in parts; those of files can be given up.
Without ``--root`` the videos are the embedded ones. The ratios are those of the two long data sets to the short one,
and of all memory at the end of the batches to that after a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timing

URL = "https://www.youtube.com/watch?v="
CLIPS = 48
LABELS = 487
BATCH = 2  # clips: small, so that ten thousand batches take a minute


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--videos", type=int, default=1_133_158, help="rows of the long list")
    options.add_argument("--batches", type=int, default=10_000, help="to give with two workers")
    options.add_argument("--root", type=Path, help="a folder with videos at any depth; default: the embedded ones")
    options.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.measure:
        print(json.dumps(measure(**json.loads(arguments.measure))))
        return
    with tempfile.TemporaryDirectory() as folder:
        clips = videos(Path(folder), arguments.root)
        found = {}
        for kind, rows in (("short", len(clips)), ("missing", arguments.videos), ("present", arguments.videos)):
            home = Path(folder) / kind
            lay_out(home, clips, rows)
            if kind == "present":
                fill(data_module(home), data_module(home.with_name("short")), rows)
            asked = {"kind": kind, "home": str(home), "batches": arguments.batches}
            command = [sys.executable, __file__, "--measure", json.dumps(asked)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            found[kind] = json.loads(done.stdout)
            print(f"{kind} is measured", file=sys.stderr)
    report(found, arguments.videos, arguments.batches)


def videos(folder: Path, root: Path | None) -> list[Path]:
    """A few dozen real videos."""
    if root is None:
        from kinoscope.data import motion

        parameters = motion.MotionParameters("local_motion", groups=CLIPS // 6, clips_per_group=1)
        motion.generate(folder / "data", parameters, progress=False)
        root = motion.folder(folder / "data", parameters)
    found = sorted(file for file in root.rglob("*") if file.suffix in (".avi", ".mp4"))
    return found[:: max(1, len(found) // CLIPS)][:CLIPS]


def lay_out(home: Path, clips: list[Path], rows: int) -> None:
    """Sports-1M's folders, with a list of ``rows`` lines in which the clips are evenly spread."""
    draw = random.Random(0)
    (home / "original").mkdir(parents=True)
    (home / "videos").mkdir()
    (home / "labels.txt").write_text("".join(f"sport {label}\n" for label in range(LABELS)))
    for clip in clips:
        shutil.copy(clip, home / "videos")
    every = rows // len(clips)
    lists = [home / f"original/{subset}_partition.txt" for subset in ("train", "test")]
    with lists[0].open("w") as train, lists[1].open("w") as test:
        for row in range(rows):
            place, rest = divmod(row, every)
            name = clips[place].stem if rest == 0 and place < len(clips) else f"{row:011x}"
            second = f",{draw.randrange(LABELS)}" if draw.random() < 0.05 else ""
            (test if place % 4 == 3 else train).write(f"{URL}{name} {draw.randrange(LABELS)}{second}\n")


def data_module(home: str | Path) -> Any:
    """The same for all: small clips, so that reading them is quick."""
    from kinoscope.data.datasets import Sports1M

    return Sports1M(
        str(home), data_dir=f"{home}/data", batch_size=BATCH, workers=2, frames=2, resize=[24, 32], size=16,
        test_views=1,
    )  # fmt: skip


def fill(long: Any, short: Any, rows: int) -> None:
    """Writes a manifest for ``long`` that repeats the rows of the ``short`` one."""
    import numpy as np
    import pyarrow as pa

    from kinoscope.data.manifest import SCHEMA, Manifest, write

    known = Manifest.open(short.manifest_file)
    table = pa.table([known.arrow(name) for name in SCHEMA.names], schema=SCHEMA)
    write(table.take(pa.array(np.arange(rows) % len(table))), long.manifest_file, long.decoder)


def measure(kind: str, home: str, batches: int) -> dict[str, Any]:
    """Prepares one data set and reads it, in a process that has done nothing else."""
    data = data_module(home)
    found: dict[str, Any] = {}
    began = time.perf_counter()
    if kind != "present":
        data.prepare_data()
    found["prepare"] = time.perf_counter() - began
    if kind != "present":  # as a later training finds it
        again = data_module(home)
        began = time.perf_counter()
        again.prepare_data()
        found["again"] = time.perf_counter() - began
        del again
    began = time.perf_counter()
    data.setup()
    found["setup"] = time.perf_counter() - began
    found["rows"] = data.counts()
    loader = data.train_dataloader()
    began = time.perf_counter()
    iterator = iter(loader)
    next(iterator)
    found["first batch"] = time.perf_counter() - began
    found["resident"] = memory()
    loader.batch_sampler.set_epoch(1)
    began = time.perf_counter()
    iterator = iter(loader)
    next(iterator)
    found["next epoch"] = time.perf_counter() - began
    given, epoch = 1, 1
    series: list[list[float]] = []
    while given < batches:
        if next(iterator, None) is None:
            epoch += 1
            loader.batch_sampler.set_epoch(epoch)
            iterator = iter(loader)
            continue
        given += 1
        if given % max(1, batches // 10) == 0:
            workers = [worker.pid for worker in loader._iterator._workers]  # type: ignore[union-attr]
            of_workers = [memory(pid) for pid in workers]
            own = sum(each["pss_anon"] for each in (memory(), *of_workers))
            series.append([memory()["pss"], sum(each["pss"] for each in of_workers), own])
    found["series"] = series
    loader.close()
    return found


def memory(process: int | str = "self") -> dict[str, float]:
    """Resident memory of a process, its share, and its share of what is no file's, in MB."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return {name.lower(): int(fields[name].split()[0]) / 1000 for name in ("Rss", "Pss", "Pss_Anon")}


def report(found: dict[str, Any], rows: int, batches: int) -> None:
    """All figures, the ratios last."""
    print(f"\n{rows:,} rows; {os.cpu_count()} cores")
    columns = ["prepare", "again", "setup", "first batch", "next epoch"]
    print(f"  {'seconds':10}" + "".join(f"{name:>14}" for name in columns))
    for kind, of_kind in found.items():
        cells = [f"{of_kind[name]:14.2f}" if name in of_kind else f"{'':14}" for name in columns]
        print(f"  {kind:10}" + "".join(cells) + f"   {of_kind['rows']}")
    print(f"  {'MB':10}{'resident':>14}{'more than short':>18}")
    for kind, of_kind in found.items():
        more = of_kind["resident"]["rss"] - found["short"]["resident"]["rss"]
        print(f"  {kind:10}{of_kind['resident']['rss']:14.1f}{more:18.1f}")
    print(f"\nover {batches:,} batches of {BATCH} clips with 2 workers, in MB")
    ratios: dict[str, float] = {}
    for kind, of_kind in found.items():
        titles = ("training process's share (PSS)", "two workers' share (PSS)", "all three, pages of files aside")
        for title, series in zip(titles, zip(*of_kind["series"], strict=True), strict=True):
            print(f"  {kind:8} {title:33}" + " ".join(f"{value:7.1f}" for value in series))
        first, last = of_kind["series"][0][2], of_kind["series"][-1][2]
        ratios[f"{kind}_memory_last_vs_first"] = last / first
    for kind in ("missing", "present"):
        for name in ("first batch", "next epoch"):
            ratios[f"{kind}_{name.replace(' ', '_')}_vs_short"] = found[kind][name] / found["short"][name]
        ratios[f"{kind}_resident_vs_short"] = found[kind]["resident"]["rss"] / found["short"]["resident"]["rss"]
    timing.print_ratios(ratios)


if __name__ == "__main__":
    main()
