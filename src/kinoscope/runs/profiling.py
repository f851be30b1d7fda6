"""``debug=profile``: what a few training steps consist of, call by call."""

from __future__ import annotations

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile, schedule

from kinoscope.runs.folder import RunFolder, write_text

log = logging.getLogger("kinoscope")

ROWS = 40  # of each table


class Profile(pl.Callback):
    """``trace.json`` and ``profile.txt`` in the run folder, of a few training steps, so that the trace stays small.

    The trace opens in Perfetto (ui.perfetto.dev) or chrome://tracing. On several devices rank 0 is recorded.

    Args:
        run: the run's folder.
        wait: steps that are left out, since the first ones allocate memory and choose kernels.
        warmup: steps that are recorded and thrown away, while the profiler itself starts.
        active: steps that are kept.
    """

    def __init__(self, run: RunFolder, wait: int = 3, warmup: int = 2, active: int = 5, **_: Any) -> None:
        super().__init__()
        if wait < 0 or warmup < 0 or active < 1:
            raise ValueError(f"wait and warmup are at least 0, active at least 1, got {wait}, {warmup} and {active}")
        self.run = run
        self.steps = wait, warmup, active
        self._profiler: profile | None = None
        self._batches = 0
        self._written = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        wait, warmup, active = self.steps
        activities = [ProfilerActivity.CPU]
        if trainer.strategy.root_device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=wait, warmup=warmup, active=active, repeat=1),
            on_trace_ready=self._write,
            profile_memory=True,
            acc_events=True,
        )
        self._profiler.start()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if self._profiler is not None and not self._written:
            self._batches += 1
            self._profiler.step()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._profiler is None:
            return
        if not self._written:
            self._profiler.stop()  # writes what there is, if it has come to recording
        if not self._written:
            log.warning(
                "no profile: the training ended before its step %d; take fewer with callbacks.profile.wait=0",
                sum(self.steps[:2]) + 1,
            )
        self._profiler = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def _write(self, recorded: profile) -> None:
        self._written = True
        trace, text = self.run.path / "trace.json", self.run.path / "profile.txt"
        recorded.export_chrome_trace(str(trace))
        calls = recorded.key_averages()
        device = "cuda" if ProfilerActivity.CUDA in recorded.activities else "cpu"
        tables = {
            f"By the {device.upper()} time of each call itself": f"self_{device}_time_total",
            f"By the memory that it allocates on the {device.upper()}": f"self_{device}_memory_usage",
        }
        parts = [f"{title}\n{calls.table(sort_by=key, row_limit=ROWS)}" for title, key in tables.items()]
        wait, warmup, active = self.steps
        steps = min(active, self._batches - wait - warmup)  # fewer where the training ended before
        write_text(text, f"torch {torch.__version__}, {steps} training steps\n\n" + "\n".join(parts))
        log.info("profile: %s is a table, %s a trace for ui.perfetto.dev", text, trace)
