"""What a run's seconds and memory went to, kept in ``summary.json``; and a word when training waits for its data."""

from __future__ import annotations

import logging
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from kinoscope.runs.fit_loop import stopwatch
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.stopwatch import STEP, Stopwatch
from kinoscope.systems.base import System

log = logging.getLogger("kinoscope")


class Timing(pl.Callback):
    """Writes ``time`` and ``memory`` into ``summary.json``, summed over all processes that have worked on the run.

    It has to come first among the callbacks: what the others do is ``logging``. Nothing it does waits for a device.

    Args:
        run: the run's folder.
        warn_above: the share of the training steps spent waiting for data that is worth a warning.
        every: seconds of training between two looks at that share, and between two notes in the summary.
    """

    def __init__(self, run: RunFolder, warn_above: float = 0.2, every: float = 10.0, **_: Any) -> None:
        super().__init__()
        if not 0 < warn_above <= 1:
            raise ValueError(f"warn_above is a share, 0 < warn_above <= 1, got {warn_above}")
        if every <= 0:
            raise ValueError(f"every is a time in seconds, more than 0, got {every}")
        self.run, self.warn_above, self.every = run, warn_above, every
        summary = run.read_summary()
        self._before: dict[str, float] = summary.get("time") or {}
        self._peak_before: dict[str, int] = summary.get("memory") or {}
        self._watch = Stopwatch()
        self._samples = self._batches = 0
        self._window: tuple[float, float] | None = None  # seconds waited for data, and of steps, when it began
        self._next_look = 0.0
        self._warned = False
        self._done: torch.cuda.Event | None = None  # the device's work on the batches so far
        self._hooks: list[Any] = []

    # What runs

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._watch = stopwatch(trainer)
        if stage == "test":
            self._watch.switch("test")  # from the loading of its checkpoint on

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, System)
        pl_module.watch = self._watch
        if trainer.strategy.root_device.type == "cuda":
            self._done = done = torch.cuda.Event()
            self._watch.device_works = lambda: not done.query()
        if not pl_module.automatic_optimization:  # which steps its optimizers when and as often as it likes
            switch = self._watch.switch
            for optimizer in trainer.optimizers:
                self._hooks += [
                    optimizer.register_step_pre_hook(lambda *_: _nothing(switch("optimizer"))),
                    optimizer.register_step_post_hook(lambda *_: _nothing(switch("forward"))),
                ]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watch.switch("data")  # the loader's iterator begins anew

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self._watch.switch("logging")
        self._batches += 1
        self._samples += len(next(iter(batch.values()))) * trainer.world_size
        if self._done is not None:
            self._done.record()
        if now >= self._next_look:
            self._next_look = now + self.every
            self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._watch.switch("logging")

    on_test_end = on_validation_end

    # What is said and kept

    def _look(self, trainer: pl.Trainer) -> None:
        """Judges the time since the last look, of which the first begins after the first batch: workers start in it."""
        waited, total = _sums(self._watch)
        if self._window is not None:
            share = (waited - self._window[0]) / max(total - self._window[1], 1e-9)
            if share > self.warn_above and not self._warned and trainer.is_global_zero:
                self._warned = True
                log.warning("%s", advice(share, _cures(trainer)))
            self._write(trainer)
        self._window = waited, total

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._write(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._watch.switch("logging")
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            self.run.write_summary(time=self.time(), memory=self.memory())

    def time(self) -> dict[str, float]:
        """Seconds per phase, samples and batches, their rate, and the share of the steps spent waiting for data."""
        counted = {**self._watch.read(), "samples": self._samples, "batches": self._batches}
        spent = {name: round(self._before.get(name, 0) + value, 6) for name, value in counted.items()}
        steps = sum(spent[phase] for phase in STEP)
        total = sum(value for name, value in spent.items() if name not in ("samples", "batches"))
        return {
            **spent,
            "total": round(total, 6),
            "samples_per_second": round(spent["samples"] / steps, 2) if steps else 0.0,
            "data_share": round(spent["data"] / steps, 4) if steps else 0.0,
        }

    def memory(self) -> dict[str, int]:
        """Peaks in bytes: of this process, without its workers, and of what torch has allocated on a CUDA device."""
        cuda = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
        peaks = {"process": peak_resident(), "cuda": cuda}
        return {name: max(peak, self._peak_before.get(name, 0)) for name, peak in peaks.items()}


def _nothing(_: object) -> None:
    """What a hook of an optimizer has to return."""


def advice(share: float, cures: Sequence[str]) -> str:
    """What to do about the ``share`` of the steps that goes to waiting for data."""
    found = f"{100 * share:.0f} % of the training steps' time is spent waiting for data"
    return f"{found}; what helps: {', or '.join(cures)}" if cures else found


def _cures(trainer: pl.Trainer) -> list[str]:
    offered = getattr(trainer.datamodule, "cures", None)  # pyright: ignore[reportAttributeAccessIssue] - set at run time
    return list(offered()) if offered is not None else []


def _sums(watch: Stopwatch) -> tuple[float, float]:
    """Seconds of waiting for data, and of all parts of the steps, until now."""
    seconds = watch.read()
    return seconds["data"], sum(seconds[phase] for phase in STEP)


def peak_resident() -> int:
    """The most bytes of memory that this process has held at any time."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss on Linux begins with what the parent held when this process was forked
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
