"""Where metrics go: always ``metrics.csv``, and Weights & Biases or TensorBoard by choice."""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.folder import RunFolder, write_text

log = logging.getLogger("kinoscope")

FIRST_COLUMNS = ("step", "epoch", "seconds")


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


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class WandB(Logger):
    """Weights & Biases, with the system's clock as every x-axis.

    Args:
        run: an initialised ``wandb`` run.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")  # never step=: W&B drops what arrives out of order there

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.run.id

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved config is handed over when the run begins."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log({**metrics, "step": step})

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[Any], **_: Any) -> None:
        """Pictures: PIL images, arrays or paths."""
        import wandb

        self.run.log({key: [wandb.Image(str(image) if isinstance(image, Path) else image) for image in images]})

    @rank_zero_only
    def finish(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        """Ends the run with its exit code; its summary shows the best values, not the last."""
        for name, value in summary.items():
            self.run.summary[name] = value
        self.run.finish(exit_code=exit_code)


def wandb_logger(
    run: RunFolder,
    config: Mapping[str, Any],
    run_id: str,
    name: str,
    project: str = "kinoscope",
    entity: str | None = None,
    mode: Literal["offline", "online", "disabled"] = "offline",
    group: str | None = None,
    job_type: str = "train",
    tags: Sequence[str] = (),
    timeout: float = 20.0,
) -> WandB:
    """Begins a W&B run. It never prompts, and no network is needed: online falls back to offline, and says so.

    Args:
        run: the run folder; W&B writes below it.
        config: the resolved config, shown once.
        run_id: begins with the signature; the same on resume.
        name: the experiment's name, which is also the default group.
        project: W&B project.
        entity: W&B team or user.
        mode: where the run is written.
        group: runs that belong together; the experiment by default.
        job_type: what kind of job it is.
        tags: shown in the W&B table; by default the family, the paper's year and the lecture, from the card.
        timeout: seconds to wait for W&B's server in online mode.
    """
    import wandb

    if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        log.warning(
            "W&B: no API key, so this run is kept offline; 'wandb login' once, then 'wandb sync %s/wandb/…'", run.path
        )
        mode = "offline"

    def begin(mode: Literal["offline", "online", "disabled"]) -> Any:
        return wandb.init(
            dir=run.path.resolve(),  # W&B's service outlives a change of directory, and keeps its own
            id=run_id,
            resume="allow" if mode == "online" else None,
            project=project,
            entity=entity,
            mode=mode,
            name=run.path.name,
            group=group or name,
            job_type=job_type,
            tags=list(tags) or _card_tags(config.get("card") or {}, name),
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off", init_timeout=timeout),
        )

    try:
        return WandB(begin(mode))
    except Exception as error:  # whatever W&B says, a training does not fail for it
        if mode != "online":
            raise KinoscopeError(f"W&B could not begin a run ({error}); choose logger=csv to do without") from error
        log.warning("W&B is out of reach (%s); this run is kept offline in %s/wandb", error, run.path)
        return WandB(begin("offline"))


def _card_tags(card: Mapping[str, Any], name: str) -> list[str]:
    return [name.partition("/")[0], *(str(card[key]) for key in ("year", "lecture") if card.get(key))]


def tensorboard_logger(run: RunFolder, **_: Any) -> Logger:
    """TensorBoard event files in ``<run>/tensorboard``. Raises `Refusal` if the package is missing."""
    from lightning.pytorch.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(save_dir=run.path, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise Refusal(
            "logger=tensorboard needs the tensorboard package: pip install 'kinoscope[tensorboard]'"
        ) from None
