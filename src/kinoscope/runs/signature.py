"""A run's identity: what can change its result, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kinoscope.runs.folder import RunFolder

# Dotted prefixes of config keys that cannot change a result: how it is shown, where it lies, how fast it is read.
OUTSIDE = (
    "logger",
    "card",
    "name",
    "output_dir",
    "data_dir",
    "resume",
    "threads",  # as the worker count, it is the machine's; equal to the last bit only at the same number
    "compile",  # the same arithmetic, rounded otherwise in the last bit, as with threads: so are the next two
    "channels_last",
    "deterministic",
    "trainer.deterministic",
    "trainer.benchmark",
    "check",
    "sweep",
    "callbacks",  # but see `is_inside`
    "data.workers",
    "data.time_limit",
    "data.root",
    "data.data_dir",
    "data.download",
    "data.cache_gigabytes",
    "trainer.devices",  # devices × batch is in, which device is not
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
)
# (key, value) that gives the very same result as the key's default where the other keys have these values, or are not
# there: prepare keeps the pixels that PyAV gives, and other decoders give others. The other caches lose some of them.
ALIKE: dict[tuple[str, str], tuple[str, dict[str, str]]] = {("data.cache", "raw"): ("none", {"data.decoder": "pyav"})}
# Lightning's callbacks take part in the training, but for those that only watch it. One of your own is taken to watch.
LIGHTNING = ("lightning.pytorch.callbacks.", "pytorch_lightning.callbacks.")
WATCHING = ("DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary", "ProgressBar", "ThroughputMonitor")
EXTENSIBLE = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")  # resuming may raise these


def is_inside(key: str, callbacks: Mapping[str, Any]) -> bool:
    """Whether a config key is part of a run's identity.

    Args:
        key: dotted.
        callbacks: the config's, by name, of which some take part in the training.
    """
    if key.startswith("callbacks."):
        node = callbacks.get(key.split(".")[1])
        target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
        return target.startswith(LIGHTNING) and not target.endswith(WATCHING)
    return not _under(key, OUTSIDE)


def _under(key: str, prefixes: Iterable[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config → {dotted key: leaf}. Lists and empty dicts are leaves."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, prefix=f"{key}."))
        else:
            flat[key] = value
    return flat


def essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a resolved config is part of a run's identity, by its dotted keys."""
    callbacks, flat = config.get("callbacks") or {}, flatten(config)
    return {key: canonical(key, value, flat) for key, value in flat.items() if is_inside(key, callbacks)}


def canonical(key: str, value: Any, flat: Mapping[str, Any]) -> Any:
    """One value for all those of a dotted key that give the very same result, beside the rest of a ``flat`` config."""
    if not isinstance(value, str) or (key, value) not in ALIKE:
        return value
    same, needed = ALIKE[key, value]
    return same if all(flat.get(other, wanted) == wanted for other, wanted in needed.items()) else value


def inside(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `essence` of a config, in which a run that it starts from counts by its weights.

    Raises:
        Refusal: ``init_from`` names no run that has a checkpoint.
    """
    kept = essence(config)
    source = kept.get("init_from")
    if isinstance(source, str) and not source.startswith("stage:"):  # a stage is known by its config
        kept["init_from"] = file_hash(RunFolder.open(source).trained())
    return kept


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def signature(config: Mapping[str, Any], data_hash: str, devices: int = 1) -> str:
    """8 hex digits of the resolved ``config``, the data's hash and the number of devices. Raises like `inside`."""
    identity = json.dumps([inside(config), data_hash, devices], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
