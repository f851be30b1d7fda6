"""A run's identity: what can change its result, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

# Dotted prefixes of config keys that cannot change a result: how it is shown, where it lies, how fast it is read.
OUTSIDE = (
    "logger",
    "card",
    "name",
    "output_dir",
    "data_dir",
    "resume",
    "threads",  # as the worker count, it is the machine's; equal to the last bit only at the same number
    "check",
    "callbacks",  # but see INSIDE
    "data.workers",
    "data.root",
    "data.data_dir",
    "data.download",
    "trainer.devices",  # devices × batch is in, which device is not
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.profiler",
)
INSIDE = ("callbacks.early_stopping",)
EXTENSIBLE = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time")  # resuming may raise these


def is_inside(key: str) -> bool:
    """Whether the config key (dotted) is part of a run's identity."""
    return _under(key, INSIDE) or not _under(key, OUTSIDE)


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


def signature(config: Mapping[str, Any], data_hash: str, devices: int = 1) -> str:
    """8 hex digits of the resolved ``config``, the data's hash and the number of devices."""
    inside = {key: value for key, value in flatten(config).items() if is_inside(key)}
    identity = json.dumps([inside, data_hash, devices], sort_keys=True, default=str)
    return hashlib.sha256(identity.encode()).hexdigest()[:8]
