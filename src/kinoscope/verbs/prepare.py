"""``kinoscope prepare data=…``: reads a data set once and keeps what is asked for, before anything is trained on it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from kinoscope.console import show
from kinoscope.data.shards import writing
from kinoscope.data.video import Videos
from kinoscope.errors import Refusal
from kinoscope.runs.build import build_datamodule


def run(config: DictConfig, overrides: list[str]) -> int:
    """The verb: prints what there is, also where a training would refuse it, then the samples and the data's hash."""
    datamodule = build_datamodule(config)
    if config.shards is not None:  # or all that follows would be in vain
        writing.library()
        if not isinstance(datamodule, Videos):
            raise Refusal("shards: only videos in files of their own are written into shards.")
    datamodule.prepare_data()
    if lines := datamodule.tally():
        show(*lines, "")
    datamodule.setup("fit")
    datamodule.setup("test")
    spec = datamodule.spec
    lines = [f"{'subset':<12} {'samples':>10}"]
    lines += [f"{subset:<12} {count:>10,}" for subset, count in datamodule.counts().items()]
    lines.append(f"{spec.num_classes} classes of {spec.modality}; data hash {datamodule.fingerprint()[:16]}")
    if config.shards is not None:
        lines.append(_write_shards(datamodule, config))
    show(*lines)
    return 0


def _write_shards(datamodule: Videos, config: DictConfig) -> str:
    """Puts the videos into shards, and says so."""
    description = datamodule.write_shards(Path(config.shards), config.shard_megabytes)
    size = sum(shard.bytes for shard in description.shards)
    made = f"{len(description.shards)} shards, {size / 1e9:.3g} GB"
    return f"{made}; data=shards data.root={config.shards} trains from them"
