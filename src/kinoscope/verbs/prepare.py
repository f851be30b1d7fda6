"""``kinoscope prepare data=…``: generates or indexes a data set before anything is trained on it."""

from __future__ import annotations

import logging
import sys

from omegaconf import DictConfig

from kinoscope.runs.build import build_datamodule

log = logging.getLogger("kinoscope")


def run(config: DictConfig, overrides: list[str]) -> int:
    """The verb: prints how many samples each subset holds, and the data's hash."""
    datamodule = build_datamodule(config)
    datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.setup("test")
    spec = datamodule.spec
    lines = [f"{'subset':<12} {'samples':>9}"]
    lines += [f"{subset:<12} {count:>9,}" for subset, count in datamodule.counts().items()]
    lines.append(f"{spec.num_classes} classes of {spec.modality}; data hash {datamodule.fingerprint()[:16]}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
