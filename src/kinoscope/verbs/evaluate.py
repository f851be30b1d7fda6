"""``kinoscope evaluate run=<folder>``: a run's checkpoint on its test data, with other views if you like."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from kinoscope.console import show
from kinoscope.errors import Refusal
from kinoscope.runs import agreement
from kinoscope.runs.build import TRUSTED, build_callbacks, build_datamodule, build_trainer
from kinoscope.runs.checkpoints import logged
from kinoscope.runs.folder import RunFolder, write_json
from kinoscope.runs.load import Run, load_run
from kinoscope.runs.quiet import quiet

log = logging.getLogger("kinoscope")

CHANGES = {
    "views": "test_views",
    "crops": "test_crops",
    "batch_size": "batch_size",
    "workers": "workers",
    "data_root": "root",
}
"""What may be asked of a finished run's data: the verb's key → the data's."""


def run(config: DictConfig, overrides: list[str]) -> int:
    """The verb: writes ``evaluation.json`` and pictures into the run's folder, and prints the folder."""
    loaded = load_run(config.run, config.checkpoint, trust=list(config.trust))
    evaluate(loaded, config)
    rank_zero_only(show)(loaded.folder)
    return 0


def evaluate(loaded: Run, config: DictConfig) -> dict[str, float]:
    """Tests a loaded run and returns its ``test/…`` metrics."""
    stored = with_changes(loaded.config, config)
    stored.trainer = _trainer(config)
    allowed = (*TRUSTED, *config.trust)  # the stored config may come from elsewhere
    datamodule = build_datamodule(stored, allowed)
    seen = _seen(datamodule, config)
    _warn_of_other_data(loaded, datamodule.fingerprint())
    drawing = {
        name: node
        for name, node in stored.callbacks.items()
        if node is not None and str(node._target_).startswith("kinoscope.callbacks.")
    }
    callbacks = build_callbacks(OmegaConf.create({"callbacks": drawing}), context={}, allowed=allowed)
    started = time.monotonic()
    with quiet():
        trainer = build_trainer(stored, loaded.system, loaded.folder, callbacks, loggers=[])
        with agreement.joined(trainer, loaded.system):
            if config.subset == "validation":
                trainer.validate(loaded.system, datamodule=datamodule, verbose=False)
            else:
                trainer.test(loaded.system, datamodule=datamodule, verbose=False)
            skipped = agreement.left_out(datamodule)
    metrics = logged(trainer)
    if trainer.is_global_zero:
        _write(loaded, seen, config, metrics, skipped, time.monotonic() - started)
    return metrics


def _write(
    loaded: Run,
    seen: dict[str, int | None],
    config: DictConfig,
    metrics: dict[str, float],
    skipped: dict[str, int],
    seconds: float,
) -> None:
    summary = RunFolder.open(loaded.folder).read_summary()
    write_json(
        loaded.folder / "evaluation.json",
        {
            "status": "finished",
            "signature": summary["signature"],
            "seconds": round(seconds, 1),
            "steps": loaded.steps,
            "monitor": summary["monitor"],
            "checkpoint": loaded.checkpoint.name,
            "precision": config.precision,
            **seen,
            "skipped": skipped,
            {"validation": "val", "test": "test"}[config.subset]: metrics,
        },
    )
    for name, value in sorted(metrics.items()):
        log.info("%s = %.4g", name, value)
    log.info("written to %s", loaded.folder / "evaluation.json")


def _warn_of_other_data(loaded: Run, data_hash: str) -> None:
    trained_on = json.loads(RunFolder.open(loaded.folder).provenance_file.read_text())["data_hash"]
    if data_hash != trained_on:
        log.warning("these are not the data of the training (hash %.8s, then %.8s)", data_hash, trained_on)


def with_changes(stored: DictConfig, asked: DictConfig) -> DictConfig:
    """The run's config with what was asked for: views, crops, how fast the data are read, where they are now."""
    changed = stored.copy()
    for key, name in CHANGES.items():
        value = asked.get(key)
        if value is None:
            continue
        if name not in changed.data:
            raise Refusal(f"{key}: this run's data ({changed.data._target_}) know no '{name}'; leave it out")
        changed.data[name] = value
    return changed


def _seen(datamodule: Any, config: DictConfig) -> dict[str, int | None]:
    """What is measured of each video, ``views`` and ``crops``; None where there are no such things.

    Validation looks at one crop of one view, except where others were asked for; the data have checked these for the
    test.
    """
    seen = {}
    for key in ("views", "crops"):
        name = f"{config.subset}_{key}"
        if config.subset == "validation" and config[key] is not None:
            if not hasattr(datamodule, name):
                raise Refusal(f"{key}: this run's data validate in one way only; leave it out, or take subset=test")
            setattr(datamodule, name, config[key])
        seen[key] = getattr(datamodule, name, None)
    return seen


def _trainer(config: DictConfig) -> dict[str, Any]:
    return {
        "_target_": "lightning.pytorch.Trainer",
        "accelerator": config.accelerator,
        "devices": config.devices,
        "precision": config.precision,
        "enable_model_summary": False,
    }
