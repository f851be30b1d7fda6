"""C3D and DCGAN at the papers' sizes on a CUDA GPU, through `kinoscope.train`, data and all.

    python benchmarks/gpu_steps.py [--steps 60]
    python benchmarks/gpu_steps.py --rehearse      small networks on the CPU: shows that the benchmark works, no more

Both train in bf16-mixed with channels last, with and without torch.compile. Of each of the four runs it prints

    <name>_steps_per_second, <name>_samples_per_second
    <name>_share_of_ceiling   of the rate at which this GPU multiplies bf16 matrices of 8192 × 8192, measured first; a
                              step's work are the multiplications of its forward and backward passes, counted by torch
    <name>_data_share         of the steps' time, spent waiting for data while the GPU had nothing to do
    <name>_syncs_per_step     operations at which the host waits for the GPU, in steps that end no logging window and
                              begin no epoch

C3D sees the embedded videos, made at 128 × 128; DCGAN 10,000 images of noise in the format of CIFAR-10, enlarged to
64 × 64. The first third of the steps, in which kernels are chosen and compiled, is not counted. Without a GPU it says
so and ends.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import kinoscope
from kinoscope.systems.base import System
from timing import print_ratios

LOG_EVERY = 20
SIDE = 8192  # of the ceiling's matrices
COMMON = [
    "logger=csv",
    "callbacks.learning_curves=null",
    "callbacks.progress=null",
    f"model.log_every={LOG_EVERY}",
    "trainer.limit_val_batches=0",
    "trainer.limit_test_batches=0",
    "trainer.max_epochs=1000",
]
EXPERIMENTS = {
    "c3d": [
        "experiment=video/c3d",
        "data=motion",
        "data.image_size=128",
        "data.workers=8",
        "callbacks.contact_sheet=null",
        "callbacks.confusion_matrix=null",
        "callbacks.mistakes=null",
    ],
    "dcgan": ["experiment=gan/dcgan", "data=cifar10", "data.root=images", "callbacks.samples=null"],
}
ON_GPU = ["trainer=gpu", "channels_last=true"]
REHEARSAL = {
    "c3d": ["experiment=video/c3d_small", "data.workers=1", "data.groups=8", "data.clips_per_group=2"],
    "dcgan": ["experiment=gan/dcgan_small", "data.batch_size=2", "model.generator.width=2"],
}


class Measure(pl.Callback):
    """Times the last two thirds of the steps, and counts the host's waits in them.

    Args:
        count: the multiplications of the first step, too.
    """

    def __init__(self, count: bool) -> None:
        self.results: dict[str, float] = {}
        self._flops = FlopCounterMode(display=False) if count else None
        self._began = 0.0
        self._first = self._samples = 0
        self._waits: list[int] = []
        self._where: Counter[str] = Counter()
        self._caught: Any = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == 0 and self._flops is not None:
            self._flops.__enter__()
        if step == trainer.max_steps // 3:
            _synchronize()
            self._began, self._first = time.perf_counter(), step
        if self._began and self._caught is None and torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
            self._caught = warnings.catch_warnings(record=True)
            self._seen = self._caught.__enter__()
            warnings.simplefilter("always")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, System)
        if trainer.global_step == 1 and self._flops is not None:
            self._flops.__exit__(None, None, None)
            self.results["flops"] = self._flops.get_total_flops()
        if self._caught is not None:  # all that has happened since the last batch ended: loading, the copy, callbacks
            if pl_module.window.steps and batch_idx > 0:  # neither a window nor an epoch has just ended
                self._waits.append(sum("synchronizing CUDA" in str(warning.message) for warning in self._seen))
            self._where.update(f"{Path(warning.filename).name}:{warning.lineno}" for warning in self._seen)
            self._seen.clear()
        self._samples += len(next(iter(batch.values()))) if self._began else 0
        if trainer.global_step == trainer.max_steps:
            if self._caught is not None:
                torch.cuda.set_sync_debug_mode("default")
                self._caught.__exit__(None, None, None)
            _synchronize()
            steps = trainer.global_step - self._first
            seconds = time.perf_counter() - self._began
            self.results["steps_per_second"] = steps / seconds
            self.results["samples_per_second"] = self._samples / seconds
            if self._waits:
                print(f"the host waited at: {dict(self._where.most_common(8))}")
                self.results["syncs_per_step"] = sum(self._waits) / len(self._waits)
            (Path(trainer.default_root_dir) / "measured.json").write_text(json.dumps(self.results))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ceiling(side: int, device: str) -> float:
    """Floating-point operations per second of multiplying square bf16 matrices, the best of ten."""
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    best = 0.0
    for _ in range(10):
        _synchronize()
        began = time.perf_counter()
        torch.matmul(a, b)
        _synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def write_noise(folder: Path) -> None:
    """CIFAR-10's binary version, ten classes of noise: one byte of label, then 3 × 32 × 32 of pixels."""
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("".join(f"class{label}\n" for label in range(10)))
    generator = np.random.default_rng(0)
    for name, images in (("data_batch_1.bin", 10_000), ("test_batch.bin", 100)):
        records = generator.integers(0, 256, (images, 1 + 3 * 32 * 32), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())


def measure(overrides: list[str], count: bool) -> dict[str, float]:
    """Trains, and reads what was measured."""
    callback = f"+callbacks.measure={{_target_: gpu_steps.Measure, count: {count}}}"
    folder = kinoscope.train([*overrides, *COMMON, callback])
    time_spent = json.loads((folder / "summary.json").read_text())["time"]
    return {**json.loads((folder / "measured.json").read_text()), "data_share": time_spent["data_share"]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=60, help="of each run (default 60)")
    options.add_argument("--rehearse", action="store_true", help="small networks on the CPU")
    args = options.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        print("skipped: there is no CUDA GPU here; --rehearse shows on the CPU that the benchmark works")
        return
    device = "cpu" if args.rehearse else torch.cuda.get_device_name()
    most = ceiling(64 if args.rehearse else SIDE, "cpu" if args.rehearse else "cuda")
    print(f"torch {torch.__version__}, {device}, {most / 1e12:.3g} Tflop/s in bf16")
    results: dict[str, float] = {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_noise(Path("images"))
        for name, experiment in EXPERIMENTS.items():
            flops = 0.0
            for compiled in (False,) if args.rehearse else (False, True):
                where = ["trainer=cpu", *REHEARSAL[name]] if args.rehearse else [*ON_GPU, f"compile={compiled}"]
                found = measure([*experiment, *where, f"trainer.max_steps={args.steps}"], count=not compiled)
                flops = found.pop("flops", flops)  # of a compiled network, whose steps are the same, none are counted
                found["share_of_ceiling"] = flops * found["steps_per_second"] / most
                kind = f"{name}_compiled" if compiled else name
                results |= {f"{kind}_{what}": value for what, value in found.items()}
        os.chdir(before)
    print_ratios(results)


if __name__ == "__main__":
    main()
