"""When a checkpoint is taken, what it holds beside Lightning's part, and how it gets to disk whole."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, Timer
from torch import nn

from kinoscope.errors import Interrupted, KinoscopeError, Refusal
from kinoscope.runs import agreement
from kinoscope.runs.agreement import AgreedStop
from kinoscope.runs.fit_loop import stopwatch
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.interrupt import StopRequest
from kinoscope.runs.loggers import MetricsFile
from kinoscope.runs.renames import renamed_weights
from kinoscope.systems.base import System
from kinoscope.systems.window import NonFinite

log = logging.getLogger("kinoscope")

FORMAT = 2  # of the "kinoscope" part of a checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name, flushes to the disk, renames: a reader sees a whole checkpoint or none.

    The file it replaces is kept as ``previous.ckpt`` when it is ``last.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == "last.ckpt" and path.exists():
                keep_as(path, path.with_name("previous.ckpt"))
            temporary.replace(path)
            sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            refusal = error if isinstance(error, OSError) else error.__context__  # torch.save's of a full disk
            if not isinstance(refusal, OSError):
                raise
            reason = refusal.strerror or str(refusal)
            raise KinoscopeError(f"'{path}' cannot be written ({reason}); the last good checkpoint stands") from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Weights come in today's names."""
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        return {**checkpoint, "state_dict": renamed_weights(checkpoint["state_dict"])}


def keep_as(path: Path, other: Path) -> None:
    """Makes ``other`` the same file as ``path``, with no moment at which either is absent."""
    link = other.with_name(f".{other.name}.{os.getpid()}")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: a moment without `path` is the price
        path.replace(other)
        return
    link.replace(other)


def sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunCheckpoint(Checkpoint):
    """Keeps ``last``, ``previous`` and ``best`` of a run, and stops it when asked to.

    ``last`` is taken at every epoch's end (after its validation), every ``every_n_steps`` if given, and when the run is
    asked to stop. Never on the last batch of an epoch nor on one that a validation follows: Lightning would skip that
    validation on resume.

    Args:
        run: the run's folder.
        stop: the request that the signals set.
        metrics: the run's metrics file, whose position belongs to a checkpoint.
        identity: signature, config and spec as plain containers, stored in every checkpoint.
        monitor: the metric that chooses ``best``; None keeps no ``best`` (``last`` is then what is tested).
        mode: whether more or less of it is better.
        every_n_steps: batches between checkpoints inside an epoch; None takes none there.
    """

    def __init__(
        self,
        run: RunFolder,
        stop: StopRequest,
        metrics: MetricsFile,
        identity: Mapping[str, Any],
        monitor: str | None,
        mode: Literal["min", "max"],
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.run, self.stop, self.metrics = run, AgreedStop(stop), metrics
        self.identity = dict(identity)
        self.monitor, self.mode = monitor, mode
        self.every_n_steps = every_n_steps
        self.best: dict[str, float] = {}
        self._loaded: dict[str, Any] | None = None
        self._due = False
        self._started = time.monotonic()
        self._seconds_before = float(run.read_summary().get("seconds", 0.0))

    # When

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.arm()  # Lightning has registered handlers of its own since the setup hooks
        if self._loaded is not None:
            # Plateau schedules and early stopping may look at a validation from before the stop.
            values = {name: torch.tensor(value, dtype=torch.float64) for name, value in self._loaded["logged"].items()}
            trainer._logger_connector._callback_metrics.update(values)
            states = self._loaded["rng"]  # of each rank; format 1 knew only one
            own = states[trainer.global_rank] if isinstance(states, list) else states
            restore_rng(own)  # nothing may draw between here and the first batch
            self._loaded = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stop.vote()
        every = self.every_n_steps
        ending = trainer.should_stop or 0 < trainer.max_steps <= trainer.global_step
        self._due |= bool(self.stop) or ending or (every is not None and (batch_idx + 1) % every == 0)
        if self._due and self._may_save(trainer, pl_module) and not validation_follows(trainer):
            self._save_last(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._keep_best(trainer, pl_module)
        self._due |= trainer.should_stop  # early stopping has just looked at the same metrics
        if self._due and self._may_save(trainer, pl_module):
            self._save_last(trainer, pl_module)

    @staticmethod
    def _may_save(trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Within an epoch, and not while gradients of an unfinished update wait, which no checkpoint holds."""
        return not trainer.is_last_batch and as_system(pl_module).between_updates

    def on_epoch_complete(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_last_batch:  # else the epoch was cut short, and its last batch has been saved as such
            self._save_last(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        callbacks: list[pl.Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] - set at run time
        left = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
        if any(seconds is not None and seconds <= 0 for seconds in left):
            log.info("trainer.max_time is used up; resume=%s with a higher one goes on", self.run.path)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.arm()

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self.stop.vote()
        if self.stop:
            self._interrupt()

    def _save_last(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._due = False
        system = as_system(pl_module)
        with stopwatch(trainer).during("checkpoints"):
            if system.resumes_mid_epoch or trainer.is_last_batch:
                agreement.together(lambda: check_finite(system))
                trainer.save_checkpoint(self.run.checkpoint("last"))
            self._report(trainer, system)
        self.stop.settle()
        if self.stop:
            self._interrupt()

    def _interrupt(self) -> None:
        raise Interrupted(f"stopped by {self.stop.reason}; resume with: python -m train resume={self.run.path}")

    def _keep_best(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is None:
            return
        values = logged(trainer)
        if self.monitor not in values:
            raise KinoscopeError(f"monitor='{self.monitor}' is not logged; logged are: {', '.join(sorted(values))}")
        value = values[self.monitor]
        sign = 1 if self.mode == "max" else -1
        unbeaten = bool(self.best) and not math.isnan(self.best[self.monitor])
        if not unbeaten or sign * value > sign * self.best[self.monitor]:
            system = as_system(pl_module)
            with stopwatch(trainer).during("checkpoints"):
                agreement.together(lambda: check_finite(system))
                self.best = {**values, "step": system.clock}
                trainer.save_checkpoint(self.run.checkpoint("best"))

    def _report(self, trainer: pl.Trainer, system: System) -> None:
        if not trainer.is_global_zero:
            return
        self.run.write_summary(
            seconds=round(self._seconds_before + time.monotonic() - self._started, 1),
            steps=system.clock,
            best=self.best,
            last={**logged(trainer), "step": system.clock},
        )

    # What

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["kinoscope"] = {
            "format": FORMAT,
            **self.identity,
            "best": dict(self.best),
            "logged": logged(trainer),
            "metrics": self.metrics.state_dict(),
            "preprocess": preprocess_of(trainer).state_dict(),
            "rng": agreement.gather(collect_rng()),
        }

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        state = checkpoint["kinoscope"]
        self.best = dict(state["best"])
        self._loaded = state
        if not trainer.is_global_zero:
            return
        self.metrics.load_state_dict(state["metrics"])
        # A kill may have come between this checkpoint and its summary, and may have left nothing to train.
        steps = checkpoint["global_step"]
        self.run.write_summary(steps=steps, best=self.best, last={**state["logged"], "step": steps})


def validation_follows(trainer: pl.Trainer) -> bool:
    """Whether Lightning validates right after the batch that just ended."""
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def as_system(module: pl.LightningModule) -> System:
    assert isinstance(module, System)
    return module


def preprocess_of(trainer: pl.Trainer) -> nn.Module:
    """What turns the data's uint8 into the network's input; part of every checkpoint."""
    return trainer.datamodule.preprocess  # pyright: ignore[reportAttributeAccessIssue] - every kinoscope DataModule has one


def logged(trainer: pl.Trainer) -> dict[str, float]:
    """The latest value of every epoch metric, by its flat name."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name}


def check_finite(system: System) -> None:
    """Raises `NonFinite` rather than letting a broken state overwrite a good checkpoint."""
    system.window.check()
    finite = {name: torch.isfinite(parameter).all() for name, parameter in system.named_parameters()}
    # One wait for the device, not one for each parameter.
    if finite and not torch.stack([*finite.values()]).all():
        name = next(name for name, whole in finite.items() if not whole)
        raise NonFinite(
            f"the weights '{name}' became non-finite before step {system.clock}; the run was stopped and the last good "
            "checkpoint stands: lower the learning rate, clip gradients, or look with debug=nan"
        )


def collect_rng() -> dict[str, Any]:
    """Every global generator's state in tensors and plain containers (dropout draws from torch's)."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - the global one is meant
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            kind,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": [version, list(internal), gauss],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Loads a checkpoint safely: tensors and plain containers only. `KinoscopeError` if it is torn or foreign."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types here
        raise KinoscopeError(f"'{path}' is not a whole, safe checkpoint ({_first_line(error)})") from error
    if not isinstance(checkpoint, dict) or "kinoscope" not in checkpoint:
        raise KinoscopeError(f"'{path}' was not written by kinoscope")
    checkpoint["state_dict"] = renamed_weights(checkpoint["state_dict"])
    return checkpoint


def resumable(run: RunFolder, signature: str) -> Path | None:
    """The newest whole checkpoint of a run: ``last``, or ``previous`` if that is torn; None if there is none.

    A torn ``last`` is set aside as ``torn.ckpt``; only the folder's owner may call this.

    Raises:
        Refusal: the checkpoint belongs to another run's config, or all that are there are torn.
    """
    faults: list[str] = []
    for name in ("last", "previous"):
        path = run.checkpoint(name)
        if not path.exists():
            continue
        try:
            checkpoint = read_checkpoint(path)
        except KinoscopeError as error:
            faults.append(str(error))
            continue
        theirs = checkpoint["kinoscope"]["signature"]
        if theirs != signature:
            raise Refusal(f"'{path}' belongs to another experiment (signature {theirs}, this run's is {signature})")
        if faults:
            log.warning("%s; falling back to %s", "; ".join(faults), path)
            torn = run.checkpoint("last")
            torn.replace(torn.with_name("torn.ckpt"))  # the next checkpoint would keep it as `previous`
        return path
    if faults:
        raise Refusal(f"nothing to resume from: {'; '.join(faults)}")
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
