"""Runs of an older version: a fresh one's files are rewritten to other names, and the table brings them back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import kinoscope
from kinoscope.cli import main
from kinoscope.errors import Interrupted
from kinoscope.runs import renames
from kinoscope.runs.folder import RunFolder

COMMAND = [
    "experiment=autoencoder/conv_small", "logger=csv", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    "callbacks.progress=null", "callbacks.learning_curves=null", "callbacks.reconstructions=null",
    "data.batch_size=128", "model.network.widths=[4,4,4]", "trainer.limit_train_batches=4", "trainer.max_epochs=2",
    "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
]  # fmt: skip
TARGETS = {
    "kinoscope.models.ae": "kinoscope.networks.autoencoder.conv",
    "kinoscope.old.AE": "kinoscope.systems.autoencoder.Autoencoder",
}
KEYS = {
    "model.net": "model.network",
    "model.optimiser.rate": "model.optimizer.lr",
    "model.optimiser": "model.optimizer",
}
WEIGHTS = {"network.down": "network.encoder"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("renames")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(Path(__file__).parents[1] / "faults"))
        yield folder


@pytest.fixture
def interrupted(home: Path) -> RunFolder:
    """A run that was stopped in its first epoch, with the names of a version that never was."""
    with pytest.raises(Interrupted) as stop:
        kinoscope.train([*COMMAND, "+callbacks.fault={_target_: faults.Fault, at: 2, moment: batch, sends: SIGTERM}"])
    run = RunFolder.open(str(stop.value).rpartition("resume=")[2])
    config = OmegaConf.to_container(OmegaConf.load(run.config_file))
    assert isinstance(config, dict)
    model = config["model"]
    model["_target_"] = "kinoscope.old.AE"
    model["net"] = model.pop("network") | {"_target_": "kinoscope.models.ae.ConvAutoencoder"}
    model["optimiser"] = model.pop("optimizer")
    model["optimiser"]["rate"] = model["optimiser"].pop("lr")
    for key in ("stages", "init_from", "fresh", "freeze"):  # not known then
        del config[key]
    del config["callbacks"]["fault"]
    OmegaConf.save(OmegaConf.create(config), run.config_file)
    for path in (run.path / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.replace("network.encoder", "network.down"): v for name, v in state.items()}
        torch.save(checkpoint, path)
    return run


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("TARGETS", TARGETS), ("KEYS", KEYS), ("WEIGHTS", WEIGHTS)):
        monkeypatch.setattr(renames, name, content)


def test_an_old_run_is_loaded_resumed_and_evaluated(interrupted: RunFolder, table: None) -> None:
    whole = RunFolder.open(kinoscope.train(COMMAND))
    assert kinoscope.load_run(interrupted.path, "last").steps == 2
    assert kinoscope.train([f"resume={interrupted.path}"]) == interrupted.path
    ours, theirs = (kinoscope.load_run(run.path) for run in (interrupted, whole))
    for name, value in ours.system.state_dict().items():
        assert torch.equal(value, theirs.system.state_dict()[name]), name
    images = np.zeros((1, 8, 8, 1), dtype=np.uint8)
    assert torch.equal(ours.encode(images), theirs.encode(images))
    assert interrupted.read_summary()["test"] == whole.read_summary()["test"]
    assert main(["evaluate", f"run={interrupted.path}", "accelerator=cpu"]) == 0


def test_without_the_table_it_cannot_be_read(interrupted: RunFolder) -> None:
    with pytest.raises(Exception, match=r"kinoscope\.old"):
        kinoscope.load_run(interrupted.path, "last")


def test_a_node_moves_with_what_it_holds_and_never_over_another(table: None) -> None:
    old = OmegaConf.create({"model": {"net": {"width": 3, "inner": [{"_target_": "kinoscope.models.ae.X"}]}}})
    new = renames.current(old)
    assert new.model == {"network": {"width": 3, "inner": [{"_target_": "kinoscope.networks.autoencoder.conv.X"}]}}
    both = renames.current(OmegaConf.create({"model": {"net": 1, "network": 2}}))
    assert both.model == {"network": 2}


def test_todays_config_stays_as_it_is(home: Path) -> None:
    run = RunFolder.open(kinoscope.train([*COMMAND, "trainer.max_epochs=1"]))
    assert run.read_config() == OmegaConf.load(run.config_file)


def test_names_that_only_begin_alike_are_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renames, "WEIGHTS", {"network.a": "network.b"})
    assert renames.renamed_weights({"network.a.w": 1, "network.ab.w": 2, "a": 3}) == {
        "network.b.w": 1, "network.ab.w": 2, "a": 3,
    }  # fmt: skip


def test_the_table_names_what_is_there() -> None:
    """What it leads to exists, and what it leads from does not: a name cannot be old and new."""
    from kinoscope.config.build import _locate

    for old, new in renames.TARGETS.items():
        _locate(new, "renames")
        with pytest.raises(Exception, match="there is no"):
            _locate(old, "renames")


def test_the_learning_rates_callback_of_older_runs_is_left_out_but_not_one_of_your_own() -> None:
    monitor = {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor", "logging_interval": "step"}
    old = OmegaConf.create({"callbacks": {"learning_rate": monitor, "mine": monitor}})
    assert renames.current(old).callbacks == {"mine": monitor}
    own = OmegaConf.create({"callbacks": {"learning_rate": {"_target_": "mine.Rates"}}})
    assert renames.current(own).callbacks == own.callbacks
