"""What every experiment must be able to do, as a function for tests: our own, and those of your package.

``def test_mine(tmp_path): check_experiment("mine", tmp_path, config_dir="conf", trust=["my_models"])``
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.load import Run, load_run
from kinoscope.verbs.train import train

QUICK = ("logger=csv", "debug=fast", "callbacks.progress=null", "trainer.enable_progress_bar=false")


def check_experiment(
    name: str,
    folder: str | Path,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Takes an experiment through its whole life on a few batches of its data, on the CPU.

    It is trained for two epochs, validated, tested, saved and loaded again safely, with equal weights. What it can do
    is done (predict, sample, reconstruct, encode) and has the promised shapes. Resumed, it says that it is finished.

    Args:
        name: of the experiment, as after ``experiment=``.
        folder: where its run is made, such as pytest's ``tmp_path``.
        overrides: further ones, to make it smaller.
        config_dir: the folder with your own yaml.
        trust: packages of your own whose classes the config names.

    Returns:
        The run's folder.

    Raises:
        AssertionError: it cannot do what it must.
        KinoscopeError: it is refused, or it fails.
    """
    command = [f"experiment={name}", *QUICK, "trainer.accelerator=cpu", f"output_dir={folder}", *overrides]
    path = train(command, config_dir)
    run = RunFolder.open(path)
    summary = run.read_summary()
    assert summary["status"] == "finished", f"the run is {summary['status']}"
    assert any(metric.startswith("val/") for metric in summary["last"]), "nothing was validated"
    assert summary["test"], "nothing was tested"
    for metric, value in summary["test"].items():
        assert metric.startswith("test/") and np.isfinite(value), f"{metric} is {value}"
    for file in (run.config_file, run.provenance_file, run.metrics_file, run.log_file):
        assert file.stat().st_size > 0, f"{file} is empty"
    for checkpoint in (path / "checkpoints").iterdir():
        read_checkpoint(checkpoint)  # tensors and plain containers only
    check_abilities(load_run(path, trust=trust))
    assert train([f"resume={path}"], config_dir) == path
    return path


def check_abilities(run: Run) -> None:
    """Holds what a loaded run can do against its spec, on random pixels. Raises `AssertionError`."""
    stored = read_checkpoint(run.checkpoint)["state_dict"]
    for name, value in run.system.state_dict().items():
        assert torch.equal(value, stored[name]), f"'{name}' is not what the checkpoint holds"
    rng = np.random.default_rng(0)
    channels, *_, height, width = run.spec.shape
    if hasattr(run.system, "predict"):
        size = (40, 70, 90, 3) if run.spec.modality != "image" else (70, 90, channels)
        probabilities = run.predict(rng.integers(256, size=size, dtype=np.uint8), views=2)
        assert probabilities.shape == (run.spec.num_classes,)
        torch.testing.assert_close(probabilities.sum(), torch.ones(()))
    if hasattr(run.system, "sample"):
        images = run.sample(3, seed=1)
        assert images.shape == (3, *run.spec.shape)
        assert 0 <= images.min() <= images.max() <= 1
        assert torch.equal(images, run.sample(3, seed=1)), "one seed gives two different samples"
        assert not torch.equal(images, run.sample(3, seed=2)), "two seeds give the same samples"
    if hasattr(run.system, "reconstruct"):
        images = rng.integers(256, size=(2, height, width, channels), dtype=np.uint8)
        assert run.reconstruct(images).shape == (2, *run.spec.shape)
        assert len(run.encode(images)) == 2
