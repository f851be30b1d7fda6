"""From a resolved config to living objects."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from kinoscope.config.build import instantiate
from kinoscope.contracts import DataSpec
from kinoscope.errors import Refusal
from kinoscope.launch import ranks
from kinoscope.runs.fit_loop import repair
from kinoscope.runs.quiet import quiet
from kinoscope.systems.base import System
from kinoscope.systems.classification import Classification
from kinoscope.systems.tuning import keep_sound, require_tunable

if TYPE_CHECKING:
    from lightning.pytorch.loggers.logger import Logger

TRUSTED = ("kinoscope", "torch.nn", "torch.optim")
"""Packages whose classes a stored config may name: a config from elsewhere is data, not code."""


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


def build_flow(config: DictConfig, allowed: Sequence[str] | None = None) -> Any:
    """How flow is computed and stacked, where the network sees flow; else None."""
    return _refusing("data.flow", config.data.flow, allowed) if config.data.get("input") == "flow" else None


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


def try_callbacks(config: DictConfig) -> None:
    """Makes those callbacks once that need nothing of the run, for what they reject. Raises `Refusal`."""
    if config.callbacks.get("checkpoint") is None or config.trainer.get("enable_checkpointing") is False:
        what = (
            "trainer.enable_checkpointing=false" if config.callbacks.get("checkpoint") else "callbacks.checkpoint=null"
        )
        raise Refusal(f"{what}: checkpoints are what a run is stopped, resumed and tested by; leave it out")
    for name, node in config.callbacks.items():
        if node is not None and not node.get("_partial_"):
            _refusing(f"callbacks.{name}", node, None)


def try_optimizers(system: System) -> None:
    """Makes the optimizers and schedules once, for what they reject. Raises `Refusal`."""
    try:
        system.configure_optimizers()
    except (ValueError, TypeError) as error:
        raise Refusal(f"model: {error}") from error


def try_network(system: System) -> None:
    """Shows a classifier's network two empty stacks, where it is to see flow alone, for what it rejects.

    Of clips and images the config tells a network the size. Flow is chosen beside the network: any may meet it.

    Raises:
        Refusal: it cannot take them.
    """
    spec = system.spec
    if spec is None or spec.modality != "flow" or not isinstance(system, Classification):
        return
    network = system.network
    state = {name: value.detach().clone() for name, value in (*network.named_parameters(), *network.named_buffers())}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answer = torch.func.functional_call(network, state, torch.zeros(2, *spec.shape))
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        answer, cause = None, error
    else:
        cause = None
    if answer is None or answer.shape != (2, spec.num_classes):
        raise Refusal(
            f"model: {type(network).__name__} cannot take a stack of flow {spec.shape}, which data.input=flow gives; "
            "take a network for images, such as model=autoencoder/conv_classifier"
        ) from cause


def try_trainer(config: DictConfig, system: System) -> pl.Trainer:
    """Makes a Trainer for what it rejects, an absent device or options that do not fit together, and for its ranks."""
    with quiet():
        trainer = _trainer(config, system, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    device = trainer.strategy.root_device
    if config.trainer.get("sync_batchnorm") and device.type == "cpu" and trainer.world_size > 1:
        raise Refusal("trainer.sync_batchnorm needs GPUs; leave it out on a CPU")
    require_tunable(system, config.get("compile"), config.get("channels_last"), device, trainer.precision)
    return trainer


def build_trainer(
    config: DictConfig,
    system: System,
    folder: Path | None,
    callbacks: Sequence[pl.Callback],
    loggers: Sequence[Logger],
    plugins: Sequence[Any] = (),
) -> pl.Trainer:
    """Lightning's Trainer.

    The progress bar is one of ``callbacks``, or there is none: Lightning's own writes to stdout, which is for results.
    """
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    shown = bool(bars) and config.trainer.get("enable_progress_bar", True)
    trainer = _trainer(
        config,
        system,
        plugins,
        callbacks=[callback for callback in callbacks if shown or callback not in bars],
        enable_progress_bar=shown,
        logger=list(loggers),
        default_root_dir=folder and str(folder),
    )
    repair(trainer)
    keep_sound(system, trainer.strategy.root_device, trainer.precision)
    return trainer


def _trainer(config: DictConfig, system: System, plugins: Sequence[Any] = (), **extra: Any) -> pl.Trainer:
    """Shuffling over ranks is the loaders' own business, hence no distributed sampler."""
    _require_sound(config.trainer)
    if not system.automatic_optimization:
        extra |= _handed_over(config.trainer, system)
    trainer = _refusing(
        "trainer",
        config.trainer,
        None,
        accelerator=_accelerator(config.trainer),
        strategy=_strategy(config.trainer, system),
        use_distributed_sampler=False,
        plugins=[*plugins, *_cluster()],
        **extra,
    )
    if config.trainer.get("precision") == "16-mixed" != trainer.precision:
        raise Refusal("trainer.precision=16-mixed needs a GPU; on a CPU choose bf16-mixed")
    return trainer


def _accelerator(trainer: Mapping[str, Any]) -> str:
    """What ``trainer.accelerator`` means; never an Apple GPU, which has no float64 to sum metrics in."""
    asked = str(trainer.get("accelerator", "auto"))
    if asked == "mps":
        raise Refusal("trainer.accelerator=mps: metrics are summed in float64, which Apple's GPUs lack; choose cpu")
    return "cpu" if asked == "auto" and torch.backends.mps.is_available() else asked


def _require_sound(trainer: Mapping[str, Any]) -> None:
    """Raises `Refusal` for what Lightning takes without a word, or fails on in the middle of the work."""
    accumulate, clip = trainer.get("accumulate_grad_batches", 1), trainer.get("gradient_clip_val")
    if accumulate < 1:
        raise Refusal(f"trainer.accumulate_grad_batches must be at least 1, got {accumulate}")
    if clip is not None and clip <= 0:
        raise Refusal(f"trainer.gradient_clip_val must be positive, got {clip}; null clips nothing")


def _handed_over(trainer: Mapping[str, Any], system: System) -> dict[str, Any]:
    """Gives a system that steps its own optimizers what Lightning refuses to do for it; returns what is left for it."""
    left: dict[str, Any] = {"accumulate_grad_batches": 1, "gradient_clip_val": None, "gradient_clip_algorithm": None}
    try:
        system.take_over(*(trainer.get(key, default) for key, default in left.items()))
    except ValueError as error:
        raise Refusal(f"trainer: {error}") from error
    return left


def _strategy(trainer: Mapping[str, Any], system: System) -> Any:
    """What ``trainer.strategy`` means for this system and this number of devices. Raises `Refusal`."""
    chosen, size = trainer.get("strategy", "auto"), ranks.world_size(trainer)
    started = ranks.started(default=size)
    if started != size:
        raise Refusal(f"trainer: {started} processes were started, but trainer.devices × trainer.num_nodes is {size}")
    if isinstance(chosen, str) and chosen.endswith(("_spawn", "_fork", "_notebook")):
        raise Refusal(f"trainer.strategy={chosen} starts ranks in Lightning's way; choose ddp, whose ranks are ours")
    strategy = instantiate(chosen) if isinstance(chosen, Mapping) else chosen
    name = type(system).__name__
    if isinstance(strategy, ModelParallelStrategy):
        if size == 1:
            raise Refusal("trainer.strategy: a model is shared out over several devices, but there is one; choose auto")
        if not system.fsdp:
            raise Refusal(f"trainer.strategy: {name} cannot be shared out over devices; train it with trainer=ddp")
    if size == 1:
        return "auto" if strategy == "ddp" else strategy
    if not system.ddp:
        raise Refusal(f"trainer: {name} works on one device, got {size}; choose trainer.devices=1")
    if strategy in ("auto", "ddp"):
        return DDPStrategy(find_unused_parameters=system.find_unused_parameters)
    return strategy


def _cluster() -> list[ClusterEnvironment]:
    """Where the ranks come from, if Lightning would guess wrong or do too much.

    Those that we have started are ours inside of a SLURM job as well. Where ``srun`` has started them, Lightning's
    requeueing is left out: it would act in the middle of a step, and on a checkpoint of its own. A run stops where it
    can be resumed and exits with 75; whoever submitted it decides what comes next.
    """
    if ranks.SCRATCH in os.environ:
        return [LightningEnvironment()]
    theirs = not TorchElasticEnvironment.detect() and SLURMEnvironment.detect()  # Lightning's own order of looking
    return [SLURMEnvironment(auto_requeue=False)] if theirs else []


def _complete(built: Any, context: Mapping[str, Any]) -> Any:
    return built(**context) if isinstance(built, partial) else built


def _refusing(key: str, node: DictConfig, allowed: Sequence[str] | None, **extra: Any) -> Any:
    """Instantiates a node; what its constructor rejects is the config's fault, said in one sentence."""
    try:
        return instantiate(node, allowed=tuple(allowed) if allowed is not None else None, **extra)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise Refusal(f"{key}: {error}") from error
