"""Where metrics go: always ``metrics.csv``, and TensorBoard by choice (for Weights & Biases see wandb.py)."""

from __future__ import annotations

import csv
import io
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.folder import RunFolder, write_text
from kinoscope.systems.base import System

FIRST_COLUMNS = ("step", "epoch", "seconds")

Histogram: TypeAlias = "tuple[np.ndarray, np.ndarray]"  # counts (n,) and edges (n + 1,)


class MetricsFile(Logger):
    """``metrics.csv``: one row per step at which anything was logged, columns in order of appearance.

    Everything logged at one step shares a row, so the newest row stays in memory until a later step begins or a
    checkpoint is taken. A checkpoint keeps the number of rows and the newest one; resuming drops what came after it.

    Args:
        path: the file, which may exist (a resumed run).
        columns: columns to begin with, beside step, epoch and seconds.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        super().__init__()
        self.path = path
        self._columns = [*FIRST_COLUMNS, *columns]
        self._rows = 0  # complete rows in the file
        self._tentative = False  # whether the newest row is there too, and may yet grow
        self._newest: dict[str, Any] = {}
        self._started = time.monotonic()
        self._seconds_before = 0.0

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def newest(self) -> dict[str, Any]:
        """The row that is not complete yet."""
        return dict(self._newest)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config lies beside this file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            raise ValueError("metrics need a step")
        if self._newest and step != self._newest["step"]:
            self._append()
        self._newest["step"] = step
        self._newest["seconds"] = round(self._seconds_before + time.monotonic() - self._started, 2)
        self._newest.update({name: _plain(value) for name, value in metrics.items()})

    @rank_zero_only
    def save(self) -> None:
        """Lightning calls this every few steps; rows are on disk as soon as they are complete."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the newest row down; the test that follows a fit still adds to it."""
        if self._newest:
            self._put(self._newest)
            self._tentative = True

    def _append(self) -> None:
        if self._newest:
            self._put(self._newest)
            self._rows += 1
            self._newest, self._tentative = {}, False

    def _put(self, row: Mapping[str, Any]) -> None:
        new = [name for name in row if name not in self._columns]
        if new or self._tentative or not self.path.exists():
            self._columns += new
            self._rewrite([*self._read()[: self._rows], row])
            return
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            raise KinoscopeError(f"'{self.path}' cannot be written ({error.strerror or error})") from error

    def _read(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint. The rows that it counts are on the disk before it is, so that no power cut takes them."""
        if self._rows:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return {"columns": list(self._columns), "rows": self._rows, "newest": dict(self._newest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where a checkpoint was taken: later rows are dropped, the columns are as they were."""
        rows = self._read()[: state["rows"]]
        if len(rows) < state["rows"]:
            raise KinoscopeError(f"'{self.path}' has lost rows: {len(rows)} are left of {state['rows']}")
        self._columns, self._rows = list(state["columns"]), state["rows"]
        self._newest = dict(state["newest"])
        last = self._newest or (rows[-1] if rows else {})
        self._seconds_before = float(last.get("seconds") or 0.0)
        self._started = time.monotonic()
        self._rewrite([{name: row.get(name, "") for name in self._columns} for row in rows])


class LastWindow(pl.Callback):
    """Has the steps logged that training ended in, before other callbacks look at what was logged: it comes first.

    No checkpoint holds them as logged: a run that goes on, with more time, goes on with its window.
    """

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, System)
        pl_module.conclude_training()

    on_fit_end = on_train_end  # of a resumed run that had nothing left to train


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class TensorBoard(TensorBoardLogger):
    """Lightning's, which also takes what callbacks draw. TensorBoard knows no tables, and no videos that are files.

    Args:
        folder: where the event files lie.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(save_dir=folder, name="", version="")
        self._shown: Counter[str] = Counter()

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[Any]) -> None:
        """Pictures as PIL images. They are numbered: callbacks draw one anew, not at a step."""
        for position, image in enumerate(images):
            name = key if len(images) == 1 else f"{key}/{position}"
            self.experiment.add_image(name, np.asarray(image), self._shown[name], dataformats="HWC")
            self._shown[name] += 1

    @rank_zero_only
    def log_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Bins as they are."""
        for name, (counts, edges) in histograms.items():
            middles = (edges[1:] + edges[:-1]) / 2
            self.experiment.add_histogram_raw(
                name,
                min=edges[0],
                max=edges[-1],
                num=counts.sum(),
                sum=(counts * middles).sum(),
                sum_squares=(counts * middles**2).sum(),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )


def tensorboard_logger(run: RunFolder, **_: Any) -> Logger:
    """TensorBoard event files in ``<run>/tensorboard``. Raises `Refusal` if the package is missing.

    Args:
        run: the run folder.
    """
    try:
        return TensorBoard(run.path / "tensorboard")
    except ModuleNotFoundError:
        raise Refusal(
            "logger=tensorboard needs the tensorboard package: pip install 'kinoscope[tensorboard]'"
        ) from None
