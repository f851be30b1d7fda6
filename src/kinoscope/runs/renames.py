"""What had another name in an older version, so that its runs can still be read. Imports no torch.

A run's config and checkpoints hold names of classes, config keys and weights. Whoever renames one of them adds a line
here, and nothing else: `current` and `renamed_weights` are applied wherever a run is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from omegaconf import DictConfig

TARGETS: dict[str, str] = {
    "kinoscope.runs.loggers.wandb_logger": "kinoscope.runs.wandb.wandb_logger",
    "kinoscope.data.video.UCF101": "kinoscope.data.datasets.UCF101",
    "kinoscope.data.video.Motion": "kinoscope.data.datasets.Motion",
}
"""Dotted name of a class or function then → now; of a module, for everything in it."""

KEYS: dict[str, str] = {}
"""Dotted config key then → now, as ``model.optimiser`` → ``model.optimizer``; a node moves with all it holds."""

GONE: dict[str, str] = {"callbacks.learning_rate": "lightning.pytorch.callbacks.LearningRateMonitor"}
"""Dotted config key → the ``_target_`` of the node that it held, for nodes whose work is now done elsewhere."""

WEIGHTS: dict[str, str] = {}
"""Name of a tensor or module in a system's state then → now, as ``network.features`` → ``network.encoder``."""

Value = TypeVar("Value")


def current(config: DictConfig) -> DictConfig:
    """A stored run config in today's names; root keys that it does not know yet take their defaults."""
    from omegaconf import OmegaConf

    from kinoscope.config.compose import config_folder

    content = _renamed_targets(OmegaConf.to_container(config, resolve=False))
    for old, new in KEYS.items():
        _move(content, old.split("."), new.split("."))
    for key, target in GONE.items():
        _leave_out(content, key.split("."), target)
    shipped = OmegaConf.to_container(OmegaConf.load(config_folder() / "train.yaml"), resolve=False)
    assert isinstance(shipped, dict)
    later = {key: value for key, value in shipped.items() if key not in ("defaults", "hydra", "name")}
    return OmegaConf.create({**later, **content})


def renamed_weights(state: Mapping[str, Value]) -> dict[str, Value]:
    """A system's stored state in today's names."""
    return {_renamed(name, WEIGHTS): value for name, value in state.items()}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def _renamed_targets(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: _renamed(value, TARGETS) if key == "_target_" and isinstance(value, str) else _renamed_targets(value)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_renamed_targets(item) for item in content]
    return content


def _leave_out(content: Any, way: list[str], target: str) -> None:
    """Takes a node out of nested dicts if it is there and builds ``target``."""
    *way, last = way
    parent = _inside(content, way)
    node = parent.get(last)
    if isinstance(node, dict) and node.get("_target_") == target:
        del parent[last]


def _inside(content: Any, way: list[str]) -> dict[str, Any]:
    """The node that ``way`` leads to in nested dicts; an empty one where there is none."""
    for part in way:
        content = content.get(part) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def _move(content: Any, old: list[str], new: list[str]) -> None:
    """Moves a node of nested dicts, if it is there; what its new place holds already stays."""
    *way, last = old
    node = _inside(content, way)
    if last not in node:
        return
    value = node.pop(last)
    *way, last = new
    node = content
    for part in way:
        node = node.setdefault(part, {})
    there = node.get(last, {})
    node[last] = {**value, **there} if isinstance(value, dict) and isinstance(there, dict) else node.get(last, value)
