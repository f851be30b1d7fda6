"""What Lightning no longer does at every step, and that nothing else has changed by it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kinoscope.runs.fit_loop import EMPTY_HOOKS, Unprofiled, fills, repair, stopwatch, without_empty_hooks
from kinoscope.runs.quiet import quiet
from kinoscope.systems.base import System


def trainer(**options: Any) -> pl.Trainer:
    plain: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with quiet():
        return pl.Trainer(accelerator="cpu", enable_model_summary=False, **(plain | options))


class Records(pl.Callback):
    """Notes each hook of a step with all that Lightning has counted until then."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def _note(self, name: str, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        loop = trainer.fit_loop.epoch_loop
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        counted = loop.batch_progress.state_dict(), loop.scheduler_progress.state_dict(), loop._batches_that_stepped
        self.seen.append((name, system._current_fx_name, trainer.global_step, counted, rate, metrics))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._note(f"batch {batch_idx} starts", trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert outputs is None or isinstance(outputs, Mapping)
        self._note(f"batch {batch_idx} ends", trainer, pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self._note(f"loss {loss.item()}", trainer, pl_module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self._note("step", trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._note("validation starts", trainer, pl_module)


class Learns(System):
    """A line with a schedule, which also uses Lightning's own ``self.log``."""

    def __init__(self, manual: bool, logs: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.automatic_optimization = not manual
        self.logs = logs

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        loss = self.layer(batch).square().mean()
        if self.logs:
            self.log("loss", loss, on_step=True, on_epoch=True)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> int | None:
        return -1 if batch_idx == 4 else None  # Lightning's way to leave the rest of an epoch out

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.worst = self.layer(batch).square().max()

    def conclude(self, stage: Any) -> None:
        self.publish({f"{stage}/worst": float(self.worst)})


@pytest.mark.parametrize("logs", [False, True], ids=["silent", "logging"])
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_the_relieved_loop_does_what_lightning_s_does(manual: bool, logs: bool, tmp_path: Path) -> None:
    """Hooks in the same order with the same counters, the same schedule, logs and weights."""
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    runs = []
    for kind in ("theirs", "ours"):
        records, system = Records(), Learns(manual, logs)
        logger = CSVLogger(tmp_path, kind, flush_logs_every_n_steps=1)
        made = trainer(
            callbacks=[records],
            logger=logger,
            max_epochs=2,
            val_check_interval=2,
            check_val_every_n_epoch=2,
            num_sanity_val_steps=0,
            log_every_n_steps=2,
            accumulate_grad_batches=1 + (not manual),
        )
        if kind == "ours":
            repair(made)
        with quiet():
            made.fit(system, DataLoader(data, batch_size=2), DataLoader(data[:4], batch_size=2))  # type: ignore[arg-type]
        logged = (Path(logger.log_dir) / "metrics.csv").read_text() if logs else ""
        runs.append((records.seen, logged, {key: value.tolist() for key, value in system.state_dict().items()}))
    theirs, ours = runs
    assert len(ours[0]) > 20
    assert [seen[0] for seen in ours[0]].count("validation starts") == 2, "after two and four batches of epoch two"
    assert ours[0] == theirs[0]
    assert ours[1:] == theirs[1:]


class Idle(Records):
    idle = True


def test_only_hooks_that_nobody_has_filled_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(call, "_call_callback_hooks", lambda trainer, name, *args: told.append(name))
    monkeypatch.setattr(call, "_call_lightning_module_hook", lambda trainer, name, *args: told.append(f"module.{name}"))
    before = call._call_callback_hooks, call._call_lightning_module_hook
    own = pl.Callback()
    own.on_before_zero_grad = print  # type: ignore[method-assign] - of this object alone
    ours, other = trainer(), trainer()
    ours.strategy._lightning_module = Learns(manual=False, logs=False)
    with pytest.raises(KeyError), without_empty_hooks(ours, [Idle(), own]):
        for name in (*EMPTY_HOOKS, "on_train_epoch_end"):
            call._call_callback_hooks(ours, name)
            call._call_lightning_module_hook(ours, name)
        assert told == [
            "module.on_train_batch_start",
            "on_before_zero_grad",
            "on_train_epoch_end",
            "module.on_train_epoch_end",
        ]
        told.clear()
        call._call_callback_hooks(other, "on_before_backward")
        assert told == ["on_before_backward"], "another trainer's"
        raise KeyError
    assert (call._call_callback_hooks, call._call_lightning_module_hook) == before


def test_who_fills_a_hook() -> None:
    assert fills(Records(), "on_before_backward")
    assert not fills(Records(), "on_after_backward")
    assert fills(Learns(False, False), "on_train_batch_start")
    assert not fills(Learns(False, False), "on_train_batch_end")


@pytest.mark.parametrize("name", EMPTY_HOOKS)
def test_lightning_s_own_hooks_are_empty(name: str) -> None:
    """If one of them ever does something, it must not be left out."""
    for base in (pl.Callback, pl.LightningModule):
        code = getattr(base, name).__code__
        assert not code.co_names, f"{base.__name__}.{name} uses {code.co_names}"


def test_a_profiler_that_was_asked_for_is_kept() -> None:
    asked, idle = trainer(profiler="simple"), trainer()
    repair(asked)
    repair(idle)
    assert isinstance(asked.profiler, SimpleProfiler)  # type: ignore[attr-defined]
    assert type(idle.profiler) is Unprofiled  # type: ignore[attr-defined]
    assert issubclass(Unprofiled, PassThroughProfiler), "what Lightning takes for no profiler"


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_profiler_meets_every_hook_that_is_filled(manual: bool) -> None:
    """As often as in Lightning's own loop; of a step's other hooks there is nothing to measure."""
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    counts = []
    for kind in ("theirs", "ours"):
        profiler = SimpleProfiler()
        made = trainer(callbacks=[Records()], max_epochs=1, profiler=profiler)
        if kind == "ours":
            repair(made)
        with quiet():
            made.fit(Learns(manual, logs=False), DataLoader(data, batch_size=2), DataLoader(data, batch_size=2))  # type: ignore[arg-type]
        measured = profiler.recorded_durations.items()
        counts.append({re.sub(r"^\[\w+Loop\]", "", name): len(times) for name, times in measured})
    theirs, ours = counts
    assert sum(name.startswith(("[Callback]Records", "[Strategy]")) for name in ours) > 6
    left_out = theirs.keys() - ours.keys()
    assert ours == {name: count for name, count in theirs.items() if name not in left_out}
    for name in left_out:
        listener = Records() if name.startswith("[Callback]Records.") else Learns(manual, logs=False)
        assert name.rpartition(".")[2] in EMPTY_HOOKS
        assert not fills(listener, name.rpartition(".")[2])


def test_a_trainer_has_one_stopwatch_and_a_foreign_one_none_that_is_read() -> None:
    ours = trainer()
    watch = repair(ours)
    assert stopwatch(ours) is watch
    foreign = trainer()
    assert stopwatch(foreign) is not stopwatch(foreign)
