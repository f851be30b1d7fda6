"""Moments at which a kill would hurt most, each produced for certain; tests/runs/test_kill.py tries random ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Timer, timer
from same_run import COMMON, SYSTEMS, assert_same_run

import kinoscope
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.checkpoints import AtomicCheckpointIO, RunCheckpoint, read_checkpoint, resumable
from kinoscope.runs.folder import RunFolder

QUICK = [*SYSTEMS["autoencoder"], *COMMON]


class Killed(BaseException):
    """In place of a SIGKILL; no handler of an error knows it."""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("moments")
        patch.chdir(folder)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield folder
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(home: Path) -> RunFolder:
    """Two epochs, ten steps, four validations."""
    return RunFolder.open(kinoscope.train([*QUICK, "trainer.max_epochs=2"]))


def killed(*overrides: str) -> RunFolder:
    """A training that something in this process ends as a kill would; its folder says that it runs."""
    before = set(Path("outputs").glob("*/*/*"))
    with pytest.raises(Killed):
        kinoscope.train([*QUICK, "trainer.max_epochs=2", *overrides])
    (path,) = set(Path("outputs").glob("*/*/*")) - before
    run = RunFolder.open(path)
    run.write_summary(status="running")
    return run


def test_between_the_last_checkpoint_and_its_summary(whole: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to train then, so that nothing but the checkpoint can say how the training ended."""
    report = RunCheckpoint._report

    def kill(self: RunCheckpoint, trainer: Any, system: Any) -> None:
        if system.clock == 10 and trainer.is_last_batch:
            raise Killed
        report(self, trainer, system)

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "_report", kill)
        run = killed()
    assert read_checkpoint(run.checkpoint("last"))["global_step"] == 10
    assert run.read_summary()["steps"] < 10
    kinoscope.train([f"resume={run.path}"])
    assert_same_run(run, whole)


def test_between_best_and_last(whole: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the best checkpoint is then newer than all that is known of it."""
    save = AtomicCheckpointIO.save_checkpoint

    def kill(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(self, checkpoint, path, storage_options)
        if Path(path).name == "best.ckpt" and checkpoint["global_step"] > 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", kill)
        run = killed()
    steps = [read_checkpoint(run.checkpoint(name))["global_step"] for name in ("last", "best")]
    assert steps[0] < steps[1]
    kinoscope.train([f"resume={run.path}"])
    assert_same_run(run, whole)


@pytest.mark.parametrize("moment", ["config.yaml", "summary.json", "metrics.csv"])
def test_within_a_resume(moment: str, whole: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed once before its first checkpoint, and once more while it is taken up again, in the middle of a write."""

    def at_the_first_save(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "_save_last", at_the_first_save)
        run = killed()
    assert not run.checkpoint("last").exists()
    unlink, replace = Path.unlink, Path.replace

    def kill(self: Path, target: Any) -> Path:
        if Path(target).name == moment:
            patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # no clearing up after a kill
            raise Killed
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            kinoscope.train([f"resume={run.path}"])
    assert Path.unlink is unlink
    (left,) = run.path.glob(f".{moment}.*")
    left.rename(left.with_suffix(".1"))  # another process would not have the same number
    kinoscope.train([f"resume={run.path}"])
    assert_same_run(run, whole)
    assert {path.name for path in run.path.glob(".*")} == {".lock"}


def test_while_the_folder_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is no run: auto begins another, and by its name it is refused."""
    before = set(Path("outputs").glob("*/*/*"))
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_summary", lambda *_, **__: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            kinoscope.train([*QUICK, "trainer.max_epochs=1", "seed=3"])
    (left,) = set(Path("outputs").glob("*/*/*")) - before
    assert kinoscope.train([*QUICK, "trainer.max_epochs=1", "seed=3", "resume=auto"]) != left
    with pytest.raises(Refusal, match=r"is not a run folder: it holds no summary\.json"):
        kinoscope.train([f"resume={left}"])


def test_between_a_finished_run_and_its_longer_sequel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed right after its config says that it is to be longer; the same command must not take it for finished."""
    run = RunFolder.open(kinoscope.train([*QUICK, "trainer.max_epochs=1", "seed=4"]))
    command = [f"resume={run.path}", "trainer.max_epochs=2"]
    for moment in ("config.yaml", "metrics.csv"):
        replace = Path.replace

        def kill(self: Path, target: Any, moment: str = moment, replace: Any = replace) -> Path:
            done = replace(self, target)
            if Path(target).name == moment:
                raise Killed
            return done

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", kill)
            with pytest.raises(Killed):
                kinoscope.train(command)
        run.unlock()
    kinoscope.train(command)
    assert run.read_summary()["steps"] == 10
    assert run.read_summary()["status"] == "finished"


def test_the_last_whole_checkpoint_is_never_replaced_by_a_torn_one(tmp_path: Path) -> None:
    """After a fall back to ``previous`` the torn ``last`` would become ``previous``, with nothing whole beside it."""
    run = RunFolder.create(tmp_path, "x", "0123abcd")
    io = AtomicCheckpointIO()
    for step in (1, 2):
        io.save_checkpoint(
            {"kinoscope": {"signature": "0123abcd"}, "state_dict": {}, "step": step}, run.checkpoint("last")
        )
    run.checkpoint("last").write_bytes(run.checkpoint("last").read_bytes()[:100])
    assert resumable(run, "0123abcd") == run.checkpoint("previous")
    assert not run.checkpoint("last").exists()
    assert (run.path / "checkpoints" / "torn.ckpt").exists()
    io.save_checkpoint({"kinoscope": {"signature": "0123abcd"}, "state_dict": {}, "step": 3}, run.checkpoint("last"))
    assert [read_checkpoint(run.checkpoint(name))["step"] for name in ("previous", "last")] == [1, 3]


def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(whole: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth file does not fit: the run fails in a sentence, and goes on when there is room."""
    save, count = torch.save, iter(range(100))

    def full(checkpoint: Any, file: Any) -> None:
        if next(count) == 3:
            file.write(b"a beginning")
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        before = set(Path("outputs").glob("*/*/*"))
        with pytest.raises(KinoscopeError, match=r"No space left on device.*the last good checkpoint stands"):
            kinoscope.train([*QUICK, "trainer.max_epochs=2"])
    (path,) = set(Path("outputs").glob("*/*/*")) - before
    assert not list((path / "checkpoints").glob(".*"))
    kinoscope.train([f"resume={path}"])
    assert_same_run(RunFolder.open(path), whole)


# The lock

HOLDING = """
import os, sys, time
from kinoscope.runs.folder import RunFolder
run = RunFolder(__import__("pathlib").Path(sys.argv[1]))
run.lock()
if os.fork() == 0:
    print("locked", flush=True)
    time.sleep(600)  # as a loader's worker, which looks for its parent only now and then
    os._exit(0)
time.sleep(600)
"""


def test_a_killed_runs_workers_do_not_hold_its_lock(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "x", "0123abcd")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(run.path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "locked"
        with pytest.raises(Refusal, match="another process is working"):
            run.lock()
        holder.kill()
        holder.wait()
        run.lock()
        run.unlock()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_a_lock_file_that_a_dead_process_left_is_no_lock(tmp_path: Path) -> None:
    """Whatever it holds, also the name of another host: the system frees a lock with the process that held it."""
    run = RunFolder.create(tmp_path, "x", "0123abcd")
    (run.path / ".lock").write_text("1\nsome.other.host\n")
    assert not run.is_live()
    run.lock()
    assert RunFolder(run.path).is_live()
    run.unlock()


# trainer.max_time

ENDLESS = [*QUICK, "trainer.max_epochs=-1", "+trainer.min_epochs=0", "seed=6"]


class Clock:
    """Lightning's, on which a batch takes a quarter of a second and nothing else takes any time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    made, ends = Clock(), Timer.on_train_batch_end

    def batch_ends(self: Timer, *arguments: Any, **named: Any) -> None:
        made.now += 0.25
        ends(self, *arguments, **named)

    monkeypatch.setattr(timer, "time", made)
    monkeypatch.setattr(Timer, "on_train_batch_end", batch_ends)


def test_max_time_ends_a_run_as_finished_and_counts_over_resumes(clock: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kinoscope"):
        run = RunFolder.open(kinoscope.train([*ENDLESS, "trainer.max_time='00:00:00:01'"]))
    first = run.read_summary()
    assert first["status"] == "finished"
    assert first["test"]
    assert read_checkpoint(run.checkpoint("last"))["global_step"] == first["steps"] == 4
    assert f"trainer.max_time is used up; resume={run.path}" in caplog.text

    assert kinoscope.train([f"resume={run.path}"]) == run.path  # nothing is left to do
    assert run.read_summary() == first
    with pytest.raises(Refusal, match=r"max_time=.*would make this another run"):
        kinoscope.train([f"resume={run.path}", "trainer.max_time={seconds: 0}"])

    kinoscope.train([f"resume={run.path}", "trainer.max_time='00:00:00:02'"])
    assert run.read_summary()["steps"] == 8
    trained = read_checkpoint(run.checkpoint("last"))["callbacks"]["Timer"]["time_elapsed"]["train"]
    assert trained == 2  # of which one second was trained before
