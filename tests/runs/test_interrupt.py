"""What asks a run to stop, under a cluster's conditions, too: it saves itself, and nothing else acts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from same_run import COMMON, SYSTEMS

import kinoscope
from kinoscope.errors import Interrupted
from kinoscope.launch.processes import STOP_SIGNALS
from kinoscope.runs.build import _cluster
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.interrupt import StopRequest, like_ctrl_c

FAULTS = Path(__file__).parents[1] / "faults"
SLURM = {
    "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
}  # fmt: skip
RECORDING = """#!/bin/sh
echo "$0 $@" >> {record}
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of one task, as its processes see it; the record of what was asked of the cluster."""
    record, folder = tmp_path / "asked", tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text(RECORDING.format(record=record))
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FAULTS))
    return record


@pytest.mark.parametrize("sends", ["SIGUSR1", "SIGUSR2", "SIGTERM"])
def test_a_clusters_signal_saves_the_run_and_requeues_nothing(slurm: Path, sends: str) -> None:
    """Lightning would save a checkpoint of its own on SIGUSR1, call scontrol and train on."""
    fault = f"+callbacks.fault={{_target_: faults.Fault, at: 7, moment: batch, sends: {sends}}}"
    with pytest.raises(Interrupted, match=f"stopped by {sends}; resume with") as caught:
        kinoscope.train([*SYSTEMS["autoencoder"], *COMMON, "trainer.max_epochs=3", fault])
    assert caught.value.exit_code == 75
    (path,) = Path("outputs").glob("*/*/*")
    assert RunFolder.open(path).read_summary()["status"] == "interrupted"
    assert read_checkpoint(path / "checkpoints" / "last.ckpt")["global_step"] in (7, 8)
    assert not slurm.exists()
    assert not list(path.rglob("hpc_ckpt*"))


def test_lightnings_requeueing_is_off(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (environment,) = _cluster()
    assert environment.auto_requeue is False  # type: ignore[attr-defined] - SLURM's alone has it
    for name in SLURM:
        monkeypatch.delenv(name)
    assert _cluster() == []


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_request_is_noted_and_its_handlers_go_with_it(number: signal.Signals, handlers: None) -> None:
    with StopRequest() as stop:
        assert not stop
        signal.raise_signal(number)
        assert stop
        assert stop.reason == number.name
        signal.raise_signal(signal.SIGTERM)  # once more changes nothing; a cluster repeats itself
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_before_a_run_all_of_them_are_ctrl_c(number: signal.Signals, handlers: None) -> None:
    with pytest.raises(KeyboardInterrupt), like_ctrl_c():
        signal.raise_signal(number)


# Python imports sitecustomize at start: this one sends a signal as soon as the imports have come to Lightning.
EARLY = """
import os, signal, sys

class Striking:
    def find_spec(self, name, path=None, target=None):
        if name == "lightning":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Striking())
"""


def test_a_preemption_before_the_run_has_begun_can_be_told_from_a_failure(tmp_path: Path) -> None:
    """75 as for any other stop, so that whoever submitted the command submits it again."""
    (tmp_path / "sitecustomize.py").write_text(EARLY)
    done = subprocess.run(
        [sys.executable, "-m", "kinoscope", "train", "logger=csv"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert done.stderr == "kinoscope: interrupted\n"
    assert not (tmp_path / "outputs").exists()
