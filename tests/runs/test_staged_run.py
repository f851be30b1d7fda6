"""A real run with a stage, autoencoder → classifier on its encoder: killed in each, it ends as if it had not been."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from same_run import assert_same_run

import kinoscope
from kinoscope.cli import main
from kinoscope.config.compose import compose_checked
from kinoscope.errors import Refusal
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.rehearsal import rehearse
from kinoscope.runs.stages import Plan, stages_of

FAULTS = Path(__file__).parents[1] / "faults"
COMMAND = [
    "experiment=autoencoder/conv_classifier_small", "logger=csv", "trainer.accelerator=cpu", "data.batch_size=128",
    "trainer.enable_progress_bar=false", "callbacks.progress=null", "callbacks.learning_curves=null", "threads=1",
    "trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
    "callbacks.checkpoint.every_n_steps=2", "callbacks.contact_sheet=null", "callbacks.confusion_matrix=null",
    "callbacks.mistakes=null",
    "trainer.max_epochs=2", "model.network.encoder.widths=[4,4,4]", "model.network.encoder.code=2",
    "stages.pretrain.trainer.max_epochs=2", "stages.pretrain.model.network={widths: [4, 4, 4], code: 2}",
    "stages.pretrain.callbacks.reconstructions=null",
]  # fmt: skip
FAULT = "{_target_: faults.Fault, at: 6, moment: batch, sends: SIGKILL}"  # of 8 batches; the rest is fewer


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("staged")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(FAULTS))
        patch.setenv("OMP_NUM_THREADS", "1")
        threads = torch.get_num_threads()
        yield folder
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(home: Path) -> RunFolder:
    """Trained without a break, from Python."""
    return RunFolder.open(kinoscope.train(COMMAND))


def start(*overrides: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *overrides],
        env=os.environ | {"PYTHONPATH": str(FAULTS)}, start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=500)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_the_classifier_begins_with_its_autoencoder(whole: RunFolder) -> None:
    (stage,) = stages_of(whole).values()
    summary = whole.read_summary()
    assert summary["status"] == stage.read_summary()["status"] == "finished"
    assert summary["stages"]["pretrain"]["test"] == stage.read_summary()["test"]
    assert summary["test"].keys() >= {"test/video_accuracy"}
    ours = kinoscope.load_run(whole.path)
    theirs = kinoscope.load_run(stage.path)
    for name, value in ours.system.state_dict().items():
        if name.startswith("network.encoder."):
            assert torch.equal(value, theirs.system.state_dict()[name]), name
    image = np.zeros((8, 8, 1), dtype=np.uint8)
    assert ours.predict(image).shape == (10,)
    assert ours.checkpoint == whole.checkpoint("best")
    assert main(["evaluate", f"run={whole.path}", "accelerator=cpu"]) == 0


def test_a_run_killed_in_each_of_its_stages_is_the_same_run(whole: RunFolder, home: Path) -> None:
    before = set(Path("outputs/autoencoder/conv_classifier_small").iterdir())
    command = [*COMMAND, f"stages.pretrain.callbacks.fault={FAULT}", f"+callbacks.fault={FAULT}"]
    first = start(*command)
    assert first.returncode == 1, first.stderr
    assert "stage 'pretrain' ended with exit code -9" in first.stderr
    (path,) = set(Path("outputs/autoencoder/conv_classifier_small").iterdir()) - before
    run = RunFolder.open(path)
    (stage,) = stages_of(run).values()
    assert 0 < read_checkpoint(stage.checkpoint("last"))["global_step"] < 8
    second = start(f"resume={path}")
    assert second.returncode == -signal.SIGKILL, second.stderr
    assert stage.read_summary()["status"] == "finished"
    assert 0 < read_checkpoint(run.checkpoint("last"))["global_step"] < 8
    assert kinoscope.train([*command, "resume=auto"]) == path
    assert_same_run(stage, *stages_of(whole).values())
    assert_same_run(run, whole)


def test_what_only_building_shows_is_found_in_all_stages_before_any_is_trained(tmp_path: Path) -> None:
    """A size that the strides of both do not divide, and a freeze that fits nothing."""
    with pytest.raises(Refusal) as refusal:
        kinoscope.train([*COMMAND, f"output_dir={tmp_path}", "data.size=28", "freeze=[network.encoder.9.*]"])
    assert "stages.pretrain: model: ConvEncoder" in str(refusal.value)
    assert "; model: ConvEncoder" in str(refusal.value)
    assert list(tmp_path.rglob("*.yaml")) == []


def test_a_stage_that_does_not_fit_the_next_is_found_before_it_is_trained(tmp_path: Path) -> None:
    command = [*COMMAND, "stages.pretrain.model.network.code=3"]
    run = RunFolder.make(tmp_path / "run")
    Plan.of(compose_checked("train", command), command, None).describe(run)
    (fault,) = rehearse(run)
    assert "'network.encoder.6.weight' is 3 × 4 × 4 × 4 in 'stage:pretrain' and 2 × 4 × 4 × 4 here" in fault


def test_a_check_goes_through_all_stages_and_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kinoscope.train([*COMMAND, f"output_dir={tmp_path}", "check=true"])
    shown = capfd.readouterr().out
    assert "ConvTranspose2d" in shown  # the autoencoder's table
    assert "network.head" in shown
    assert list(tmp_path.iterdir()) == []
