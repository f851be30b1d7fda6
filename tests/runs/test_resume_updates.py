"""A stop waits for the update that is being accumulated, and costs nothing; so do checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer
from same_run import COMMON, SYSTEMS, assert_equal, assert_same_run

import kinoscope
from kinoscope.errors import Interrupted
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder

OPTIONS = ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5", "callbacks.checkpoint.every_n_steps=1"]
CHOSEN = ("autoencoder", "adversarial")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "faults"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(system: str, *extra: str) -> list[str]:
    return [*SYSTEMS[system], *COMMON, *OPTIONS, "trainer.max_epochs=2", "trainer.limit_test_batches=0", *extra]


@pytest.mark.parametrize("system", CHOSEN)
def test_a_run_stopped_while_gradients_accumulate_equals_one_that_was_not(system: str) -> None:
    """Five batches an epoch in updates of 2, 2 and 1; stopped after the first batch of the first two updates."""
    straight = RunFolder.open(kinoscope.train(command(system)))
    assert straight.read_summary()["steps"] == 2 * 3
    for at in (1, 3):
        with pytest.raises(Interrupted):
            kinoscope.train(
                command(
                    system, f"+callbacks.fault={{_target_: faults.Fault, at: {at}, sends: SIGTERM}}", "name=stopped"
                )
            )
        run = RunFolder.open(max(Path("outputs/stopped").iterdir(), key=lambda path: path.stat().st_mtime_ns))
        stopped = read_checkpoint(run.checkpoint("last"))
        assert stopped["global_step"] == (at + 1) // 2  # of whole updates alone
        kinoscope.train([f"resume={run.path}", "+callbacks.fault=null"])
        assert_same_run(run, straight)


def by_batches(timer: Any, trainer: Any) -> None:
    """A second for each batch."""
    trainer.should_stop |= trainer.fit_loop.epoch_loop.batch_progress.total.ready >= timer._duration


@pytest.mark.parametrize("system", CHOSEN)
def test_time_that_runs_out_while_gradients_accumulate(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timer, "_check_time_remaining", by_batches)
    straight = RunFolder.open(kinoscope.train(command(system)))
    run = RunFolder.open(kinoscope.train(command(system, "trainer.max_time='00:00:00:03'")))
    assert run.read_summary()["status"] == "finished"
    assert run.read_summary()["steps"] == 2  # of two batches each
    kinoscope.train([f"resume={run.path}", "trainer.max_time='00:00:01:00'"])
    ours, theirs = (read_checkpoint(each.checkpoint("last")) for each in (run, straight))
    for part in ("state_dict", "optimizer_states", "adversarial", "global_step"):
        assert_equal(ours.get(part), theirs.get(part), part)
