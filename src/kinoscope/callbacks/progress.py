"""A progress bar on stderr; where stderr is not a terminal, a plain line now and then.

It shows what the system's last logging window held, so that it never makes the device wait.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

if TYPE_CHECKING:
    from kinoscope.contracts import Batch

REFRESH = 0.1  # seconds between two updates of a bar
MEMORY = 20.0  # seconds after which a batch counts 1/e in the rate
UNITS = {"video": "clips", "clips": "clips", "image": "images", "flow": "clips"}  # by the batch's key


class Progress(TQDMProgressBar):
    """Epoch, losses and accuracies of the last logging window, and training samples per second.

    Args:
        seconds: between two lines where stderr is not a terminal.
    """

    BAR_FORMAT = "{desc} {bar:24} {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.rate = Rate()
        self._validation: dict[str, float] = {}
        self._unit = "samples"
        self._began = self._due = 0.0

    @property
    def interactive(self) -> bool:
        """Whether stderr is a terminal, where a bar can be redrawn."""
        return sys.stderr.isatty()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Writes above the bars, to stderr: stdout is for results."""
        Tqdm.write(sep.join(map(str, args)), **{"file": sys.stderr, **kwargs})

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._due = self._began + (0.0 if self.interactive else self.seconds)

    def _is_due(self, batch_idx: int, total: float) -> bool:
        """Whether this batch is to be shown: something else was not, a moment ago."""
        if self.is_disabled:
            return False
        return time.monotonic() >= self._due or (batch_idx + 1 == total and self.interactive)

    def _show(self, bar: Tqdm, words: str, batch_idx: int, total: float, postfix: str = "") -> None:
        """Shows that the batch is done."""
        if self.interactive:
            bar.n = batch_idx + 1
            bar.set_postfix_str(postfix)  # redraws
        else:
            of = f"/{total:.0f}" if math.isfinite(total) else ""
            self._line(f"{words}, batch {batch_idx + 1}{of}", postfix)
        self._due = time.monotonic() + (REFRESH if self.interactive else self.seconds)

    def _line(self, words: str, postfix: str = "") -> None:
        elapsed = f"{time.monotonic() - self._began:.0f} s"
        self.print(", ".join(part for part in (words, postfix, elapsed) if part))

    def _bar(self, words: str, position: int = 0, leave: bool = True) -> Tqdm:
        return Tqdm(
            desc=words,
            position=position,
            disable=self.is_disabled or not self.interactive,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stderr,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )

    def init_sanity_tqdm(self) -> Tqdm:
        return self._bar("checking", leave=False)

    def init_train_tqdm(self) -> Tqdm:
        return self._bar("training")

    def init_validation_tqdm(self) -> Tqdm:
        beside_training = self.trainer.state.fn != "validate"
        return self._bar("validating", position=int(beside_training), leave=not beside_training)

    def init_test_tqdm(self) -> Tqdm:
        return self._bar("testing")

    def init_predict_tqdm(self) -> Tqdm:
        return self._bar("predicting")

    # Training

    def on_train_start(self, *_: Any) -> None:
        super().on_train_start()
        self.rate = Rate()
        self._begin()

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        _restart(self.train_progress_bar, self.total_train_batches, _epoch(trainer))
        self.rate.resume()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._unit = next((unit for key, unit in UNITS.items() if key in batch), "samples")
        self.rate.add(len(next(iter(batch.values()))) * trainer.world_size)
        total = trainer.num_training_batches  # `total_train_batches` counts down where max_steps is given
        if self._is_due(batch_idx, total):
            self._show(self.train_progress_bar, _epoch(trainer), batch_idx, total, self._postfix(pl_module))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: Lightning would read every logged tensor here."""

    def on_train_end(self, *_: Any) -> None:
        postfix = self._postfix(self.trainer.lightning_module)
        self.train_progress_bar.set_postfix_str(postfix)
        self.train_progress_bar.close()
        if self.is_enabled and not self.interactive:
            self._line(f"trained to {_epoch(self.trainer)}", postfix)

    def _postfix(self, system: pl.LightningModule) -> str:
        latest: Mapping[str, float] = getattr(system, "latest", {})
        parts = [_in_words(name, value) for name, value in _telling(latest).items()]
        parts += [f"val {_in_words(name, value)}" for name, value in self._validation.items()]
        if self.rate.per_second:
            parts.append(f"{self.rate.per_second:,.0f} {self._unit}/s")
        return ", ".join(parts)

    # Validation, test, prediction

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if trainer.state.fn == "validate":
            self._begin()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            words = "checking" if trainer.sanity_checking else "validating"
            _restart(self.val_progress_bar, self.total_val_batches_current_dataloader, words)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        total = float(self.total_val_batches_current_dataloader)
        if not trainer.sanity_checking and self._is_due(batch_idx, total):
            self._show(self.val_progress_bar, "validating", batch_idx, total)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        if not trainer.sanity_checking:
            self._validation = _main_metric(trainer.callback_metrics)
        self.rate.resume()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        self._begin()

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            _restart(self.test_progress_bar, self.total_test_batches_current_dataloader, "testing")

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        total = float(self.total_test_batches_current_dataloader)
        if self._is_due(batch_idx, total):
            self._show(self.test_progress_bar, "testing", batch_idx, total)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        if self.is_enabled and not self.interactive:
            self._line("tested")


class Rate:
    """Samples per second of training: batches with their loading, but not what runs between epochs.

    Recent batches count most, so that the figure follows the machine without jumping.
    """

    def __init__(self) -> None:
        self._samples = self._seconds = 0.0
        self._since: float | None = None

    def resume(self) -> None:
        """The next batch begins now; what has passed since the last one was not training."""
        self._since = time.perf_counter()

    def add(self, samples: int) -> None:
        """A batch ended now."""
        now = time.perf_counter()
        if self._since is not None:
            seconds = now - self._since
            kept = math.exp(-seconds / MEMORY)
            self._samples = kept * self._samples + samples
            self._seconds = kept * self._seconds + seconds
        self._since = now

    @property
    def per_second(self) -> float:
        """0 as long as nothing is known."""
        return self._samples / self._seconds if self._seconds else 0.0


def _restart(bar: Tqdm, total: float, words: str) -> None:
    bar.reset()
    bar.total = total if math.isfinite(total) else None
    bar.set_description_str(words)


def _epoch(trainer: pl.Trainer) -> str:
    limit = trainer.max_epochs
    epoch = min(trainer.current_epoch + 1, limit) if limit and limit > 0 else trainer.current_epoch + 1
    return f"epoch {epoch}/{limit}" if limit and limit > 0 else f"epoch {epoch}"


def _telling(terms: Mapping[str, float]) -> dict[str, float]:
    """The losses and accuracies among the terms; where there are none, the first three."""
    chosen = {name: value for name, value in terms.items() if name.endswith("loss") or "accuracy" in name}
    return chosen or dict(list(terms.items())[:3])


def _main_metric(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The one validation metric to show: an accuracy (of videos rather than clips), else an error, else a loss."""
    names = [name.removeprefix("val/") for name in metrics if name.startswith("val/")]
    for wanted in ("video_accuracy", "accuracy", "error", "loss"):
        for name in names:
            if wanted in name:
                return {name: float(metrics[f"val/{name}"])}
    return {}


def _in_words(name: str, value: float) -> str:
    shown = f"{100 * value:.1f} %" if "accuracy" in name else f"{value:.4g}"
    return f"{name.replace('_', ' ')} {shown}"
