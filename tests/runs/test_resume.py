"""A run stopped anywhere and resumed equals one that was never stopped: weights, optimizers, metrics, best.

The runs here are in this process, so that many stopping points can be tried; tests/runs/test_kill.py kills real ones.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from same_run import COMMON, SYSTEMS, assert_equal, assert_same_run, rows

import kinoscope
from kinoscope.errors import Interrupted, Refusal
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.resume import find


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One working directory for the module, so that the videos are generated once."""
    folder = tmp_path_factory.mktemp("resume")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(Path(__file__).parents[1] / "faults"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield folder
        torch.set_num_threads(threads)


def command(system: str, *extra: str) -> list[str]:
    return [*SYSTEMS[system], *COMMON, "trainer.max_epochs=3", *extra]


def fault(at: int, moment: str = "batch", sends: str = "null") -> str:
    return f"+callbacks.fault={{_target_: faults.Fault, at: {at}, moment: {moment}, sends: {sends}}}"


def stopped(system: str, *extra: str) -> RunFolder:
    """Trains until the fault in ``extra`` strikes; the folder of that run."""
    before = set(Path("outputs").glob("*/*/*"))
    with pytest.raises((Interrupted, sys.modules["faults"].Boom if "faults" in sys.modules else Exception)):
        kinoscope.train(command(system, *extra))
    (path,) = set(Path("outputs").glob("*/*/*")) - before
    return RunFolder.open(path)


def resume(run: RunFolder, *extra: str) -> None:
    assert kinoscope.train([f"resume={run.path}", "+callbacks.fault=null", *extra]) == run.path


class Uninterrupted(dict[str, RunFolder]):
    """Runs that were never stopped, each trained when it is first asked for."""

    def __missing__(self, system: str) -> RunFolder:
        self[system] = RunFolder.open(kinoscope.train(command(system)))
        return self[system]


@pytest.fixture(scope="module")
def uninterrupted(home: Path) -> Uninterrupted:
    return Uninterrupted()


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("at", [1, 4, 5, 7])
def test_a_requested_stop_loses_nothing(system: str, at: int, uninterrupted: Uninterrupted) -> None:
    """SIGTERM after the first batch, before and on an epoch's last batch, and in the second epoch."""
    run = stopped(system, fault(at, sends="SIGTERM"))
    assert run.read_summary()["status"] == "interrupted"
    steps = read_checkpoint(run.checkpoint("last"))["global_step"]
    resume(run)
    assert_same_run(run, uninterrupted[system])
    assert at <= steps <= at + 1  # a validation may follow the batch, and the stop then waits for it


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("at", "moment"), [(8, "batch"), (2, "validation"), (1, "test"), (3, "save")])
def test_an_exception_anywhere_costs_only_the_steps_since_the_last_checkpoint(
    system: str, at: int, moment: str, uninterrupted: Uninterrupted
) -> None:
    import os

    fsync = os.fsync
    try:
        run = stopped(system, fault(at, moment), "callbacks.checkpoint.every_n_steps=2")
    finally:
        os.fsync = fsync
    assert run.read_summary()["status"] == "failed"
    resume(run)
    assert_same_run(run, uninterrupted[system])


@pytest.mark.parametrize(("system", "term"), [("autoencoder", "train/loss"), ("adversarial", "train/critic_loss")])
def test_the_last_steps_are_logged_however_few_they_are(system: str, term: str, uninterrupted: Uninterrupted) -> None:
    """Fifteen steps in windows of four: the last mean is that of three."""
    each = RunFolder.open(kinoscope.train(command(system, "model.log_every=1")))
    steps = {int(row["step"]): float(row[term]) for row in rows(each.metrics_file) if row[term]}
    means = {int(row["step"]): float(row[term]) for row in rows(uninterrupted[system].metrics_file) if row[term]}
    assert list(steps) == list(range(1, 16))
    assert list(means) == [4, 8, 12, 15]
    for end, begin in ((4, 1), (8, 5), (12, 9), (15, 13)):
        inside = [steps[step] for step in range(begin, end + 1)]
        assert means[end] == pytest.approx(sum(inside) / len(inside), rel=1e-9)


def test_a_run_with_nothing_left_to_train_logs_its_last_steps_too(uninterrupted: Uninterrupted) -> None:
    run = stopped("autoencoder", fault(1, "test", sends="SIGTERM"))
    assert [row["step"] for row in rows(run.metrics_file)][-1] == "15"
    resume(run)
    assert_same_run(run, uninterrupted["autoencoder"])


def test_other_workers_continue_the_same_run(uninterrupted: Uninterrupted) -> None:
    run = stopped("classification", fault(7, sends="SIGTERM"), "data.workers=2")
    resume(run, "data.workers=1")
    assert_same_run(run, uninterrupted["classification"])


def test_a_torn_checkpoint_falls_back_to_the_one_before(
    uninterrupted: Uninterrupted, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped("autoencoder", fault(9, sends="SIGTERM"), "callbacks.checkpoint.every_n_steps=2")
    last = run.checkpoint("last")
    last.write_bytes(last.read_bytes()[:-1000])
    with caplog.at_level("WARNING", logger="kinoscope"):
        resume(run)
    assert "falling back to" in caplog.text
    assert_same_run(run, uninterrupted["autoencoder"])


def test_resume_auto_takes_the_newest_unfinished_run_of_the_same_config(home: Path) -> None:
    extra = ["seed=77", "resume=auto"]
    run = stopped("autoencoder", "seed=77", fault(3, sends="SIGTERM"))
    assert kinoscope.train(command("autoencoder", *extra)) == run.path
    assert kinoscope.train(command("autoencoder", *extra)) != run.path  # that one is finished: a new one is started


def test_resume_auto_goes_on_with_a_run_that_was_made_longer(home: Path) -> None:
    folder = stopped("autoencoder", "seed=6", fault(2, sends="SIGTERM"))
    with pytest.raises(Interrupted):
        kinoscope.train([f"resume={folder.path}", "trainer.max_epochs=5", fault(11, sends="SIGTERM")])
    again = kinoscope.train(command("autoencoder", "seed=6", "resume=auto"))
    assert again == folder.path
    assert RunFolder(again).read_config().trainer.max_epochs == 5
    assert RunFolder(again).read_summary()["steps"] == 5 * 5


def test_a_finished_run_says_so_and_may_be_prolonged(
    uninterrupted: Uninterrupted, caplog: pytest.LogCaptureFixture
) -> None:
    first = RunFolder.open(kinoscope.train(command("autoencoder", "seed=5", "trainer.max_epochs=1")))
    with caplog.at_level("INFO", logger="kinoscope"):
        assert kinoscope.train([f"resume={first.path}"]) == first.path
    assert "is finished" in caplog.text
    kinoscope.train([f"resume={first.path}", "trainer.max_epochs=2"])
    longer = RunFolder.open(kinoscope.train(command("autoencoder", "seed=5", "trainer.max_epochs=2")))
    assert_equal(*(read_checkpoint(run.checkpoint("last"))["state_dict"] for run in (first, longer)))


def test_overrides_that_would_make_another_run_are_all_listed(uninterrupted: Uninterrupted) -> None:
    run = uninterrupted["autoencoder"]
    with pytest.raises(Refusal, match=r"seed=9 .*model.optimizer.lr=0.5 .*would make this another run"):
        kinoscope.train([f"resume={run.path}", "seed=9", "model.optimizer.lr=0.5"])


@pytest.mark.parametrize(("decoder", "alike"), [("pyav", True), ("decord", False)])
def test_a_run_goes_on_from_raw_frames_where_they_are_those_that_it_began_with(
    decoder: str, alike: bool, tmp_path: Path
) -> None:
    run = {"name": "x", "callbacks": {}, "model": {}, "data": {"cache": "none", "decoder": decoder, "workers": 2}}
    (tmp_path / "config.yaml").write_text(json.dumps(run))
    (tmp_path / "summary.json").write_text('{"status": "interrupted"}')
    # What is typed with resume= is composed without the run's other choices.
    typed = {
        "name": "x",
        "callbacks": {},
        "resume": str(tmp_path),
        "model": {},
        "data": {"cache": "raw", "decoder": "pyav"},
    }
    with contextlib.nullcontext() if alike else pytest.raises(Refusal, match=r"data.cache=raw .*another run"):
        found = find(OmegaConf.create(typed), [f"resume={tmp_path}", "data.cache=raw"])
        assert found.config.data.cache == "raw"


def test_a_checkpoint_of_another_experiment_is_refused(uninterrupted: Uninterrupted) -> None:
    run = stopped("autoencoder", "seed=78", fault(3, sends="SIGTERM"))
    run.checkpoint("last").write_bytes(uninterrupted["adversarial"].checkpoint("last").read_bytes())
    with pytest.raises(Refusal, match="belongs to another experiment"):
        kinoscope.train([f"resume={run.path}"])
