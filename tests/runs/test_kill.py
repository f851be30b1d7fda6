"""Real runs, killed from within by SIGKILL, SIGTERM and Ctrl-C, resumed with another number of workers each time.

One chain of processes per system: killed, resumed, stopped, resumed, stopped, resumed to its end. The last state equals
that of a run nobody touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from same_run import SYSTEMS, assert_same_run

from kinoscope.runs.folder import RunFolder

FAULTS = Path(__file__).parents[1] / "faults"


def start(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """``python -m train`` in a process group of its own, which is ended with it."""
    environment = os.environ | {"PYTHONPATH": str(FAULTS), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *overrides],
        cwd=folder, env=environment, start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def fault(at: int, sends: str) -> str:
    return f"+callbacks.fault={{_target_: faults.Fault, at: {at}, moment: batch, sends: {sends}}}"


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_chain_of_kills_changes_nothing(system: str, tmp_path: Path) -> None:
    quiet = ["logger=csv", "trainer.accelerator=cpu", "callbacks.learning_curves=null"]
    command = [*SYSTEMS[system], *quiet, "trainer.max_epochs=3", "callbacks.checkpoint.every_n_steps=2"]
    workers = iter((0, 2, 1, 2))

    killed = start(tmp_path, *command, fault(6, "SIGKILL"), f"data.workers={next(workers)}")
    assert killed.returncode == -signal.SIGKILL
    (path,) = (tmp_path / "outputs").glob("*/*/*")
    run = RunFolder.open(path)
    assert run.read_summary()["status"] == "running"
    assert not run.is_live()

    for at, sends in ((2, "SIGTERM"), (3, "SIGINT")):
        stopped = start(tmp_path, f"resume={path}", fault(at, sends), f"data.workers={next(workers)}")
        assert stopped.returncode == 75, stopped.stderr
        assert f"resume={path}" in stopped.stderr  # the command that goes on
        assert "Traceback" not in stopped.stderr
        assert run.read_summary()["status"] == "interrupted"

    resumed = start(tmp_path, f"resume={path}", "+callbacks.fault=null", f"data.workers={next(workers)}")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines()[-1] == str(path)

    whole = start(tmp_path, *command, "data.workers=0")
    assert whole.returncode == 0, whole.stderr
    assert_same_run(run, RunFolder.open(tmp_path / whole.stdout.splitlines()[-1]))


def test_a_second_ctrl_c_aborts(tmp_path: Path) -> None:
    """Two Ctrl-C in one batch: the second does not wait for the batch's end."""
    twice = "{_target_: faults.Fault, at: 3, moment: batch, sends: SIGINT}"
    command = [*SYSTEMS["autoencoder"], "logger=csv", "trainer.max_epochs=3"]
    done = start(tmp_path, *command, f"+callbacks.first={twice}", f"+callbacks.second={twice}")
    assert done.returncode == 75, done.stderr
    (path,) = (tmp_path / "outputs").glob("*/*/*")
    assert RunFolder.open(path).read_summary()["status"] == "interrupted"
