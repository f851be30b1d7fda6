"""From a resolved config to living objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, ListConfig, OmegaConf

from kinoscope.config.build import instantiate
from kinoscope.contracts import DataSpec
from kinoscope.errors import Refusal
from kinoscope.runs.fit_loop import repair
from kinoscope.runs.quiet import quiet
from kinoscope.systems.base import System

if TYPE_CHECKING:
    from lightning.pytorch.loggers.logger import Logger

TRUSTED = ("kinoscope", "torch.nn", "torch.optim")
"""Packages whose classes a stored config may name: a config from elsewhere is data, not code."""


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers. Raises `Refusal` for what is not set."""
    content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def build_spec(config: DictConfig) -> DataSpec:
    """What the config says its data are."""
    return _refusing("data.spec", config.data.spec, TRUSTED)


def build_system(config: DictConfig, allowed: Sequence[str] | None = None) -> System:
    """The LightningModule of ``config.model``, knowing its data's spec.

    Args:
        config: a resolved run config.
        allowed: packages whose targets may be built; None trusts the config (it was typed by the user).
    """
    system = _refusing("model", config.model, allowed)
    if not isinstance(system, System):
        raise Refusal(f"model: {config.model._target_} is not a kinoscope System")
    system.spec = build_spec(config)
    return system


def build_datamodule(config: DictConfig, allowed: Sequence[str] | None = None) -> Any:
    return _refusing("data", config.data, allowed)


def build_preprocess(config: DictConfig, allowed: Sequence[str] | None = None) -> Any:
    return _refusing("data.preprocess", config.data.preprocess, allowed)


def build_callbacks(
    config: DictConfig, context: Mapping[str, Any], allowed: Sequence[str] | None = None
) -> list[pl.Callback]:
    """All callbacks of ``config.callbacks``; those marked ``_partial_`` receive the run's ``context``."""
    nodes = {name: node for name, node in config.callbacks.items() if node is not None}
    return [_complete(_refusing(f"callbacks.{name}", node, allowed), context) for name, node in nodes.items()]


def build_logger(config: DictConfig, context: Mapping[str, Any]) -> Logger | None:
    """The second logger, beside ``metrics.csv``; None if the config names none."""
    if not config.logger or "_target_" not in config.logger:
        return None
    return _complete(_refusing("logger", config.logger, None), context)


def try_optimizers(system: System) -> None:
    """Makes the optimizers and schedules once, for what they reject. Raises `Refusal`."""
    try:
        system.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise Refusal(f"model: {error}") from error


def try_trainer(config: DictConfig, system: System) -> None:
    """Makes the Trainer once, for what it rejects: an absent accelerator, options that do not fit together."""
    trainer = config.trainer
    if not system.automatic_optimization and (
        trainer.get("gradient_clip_val") is not None or trainer.get("accumulate_grad_batches", 1) != 1
    ):
        raise Refusal(
            f"trainer: {type(system).__name__} steps its own optimizers, which Lightning neither clips nor accumulates "
            "for; leave gradient_clip_val and accumulate_grad_batches out"
        )
    with quiet():
        _refusing("trainer", trainer, None, logger=False, enable_progress_bar=False, enable_checkpointing=False)


def require_one_device(trainer: DictConfig | Mapping[str, Any]) -> None:
    """Raises `Refusal` for what would start several processes: metrics, folders and noise are not shared out yet."""
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    strategy = trainer.get("strategy", "auto")
    several = len(devices) > 1 if isinstance(devices, ListConfig | list) else str(devices) not in ("1", "auto", "-1")
    if str(devices) in ("auto", "-1") and trainer.get("accelerator") != "cpu":
        several = torch.cuda.device_count() > 1
    if several or nodes != 1 or strategy not in ("auto", "single_device"):
        raise Refusal(
            f"trainer: a run has one device so far, got devices={devices}, num_nodes={nodes}, strategy={strategy}; "
            "choose one, as in trainer.devices=1 or trainer.devices=[3]"
        )


def build_trainer(
    config: DictConfig, folder: Path | None, callbacks: Sequence[pl.Callback], loggers: Sequence[Logger], **extra: Any
) -> pl.Trainer:
    """Lightning's Trainer; shuffling over ranks is the loaders' own business, hence no distributed sampler.

    The progress bar is one of ``callbacks``, or there is none: Lightning's own writes to stdout, which is for results.
    """
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    shown = bool(bars) and config.trainer.get("enable_progress_bar", True)
    trainer = _refusing(
        "trainer",
        config.trainer,
        None,
        callbacks=[callback for callback in callbacks if shown or callback not in bars],
        enable_progress_bar=shown,
        logger=list(loggers),
        default_root_dir=folder and str(folder),
        use_distributed_sampler=False,
        **extra,
    )
    repair(trainer)
    return trainer


def _complete(built: Any, context: Mapping[str, Any]) -> Any:
    return built(**context) if isinstance(built, partial) else built


def _refusing(key: str, node: DictConfig, allowed: Sequence[str] | None, **extra: Any) -> Any:
    """Instantiates a node; what its constructor rejects is the config's fault, said in one sentence."""
    try:
        return instantiate(node, allowed=tuple(allowed) if allowed is not None else None, **extra)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise Refusal(f"{key}: {error}") from error
