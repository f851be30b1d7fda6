"""``check=true``: one batch forward and backward, and a table of the layers, before hours are spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from kinoscope.config.compose import plain
from kinoscope.console import show
from kinoscope.runs.build import build_trainer
from kinoscope.runs.quiet import quiet
from kinoscope.systems.base import System


@dataclass(frozen=True)
class Layer:
    """One row of the table: a module without children, with the shape it put out first."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


def check(config: DictConfig, datamodule: pl.LightningDataModule, system: System) -> list[Layer]:
    """Trains on one batch, validates on one, writes nothing; prints a layer table to stdout and returns its rows."""
    layers: list[Layer] = []
    hooks = [
        module.register_forward_hook(_recorder(name, module, layers))
        for name, module in system.named_modules()
        if not list(module.children())
    ]
    config = config.copy()
    OmegaConf.set_struct(config, False)  # Hydra hands it over closed
    one_batch = {"fast_dev_run": True, "enable_progress_bar": False, "enable_model_summary": False}
    one_device = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    config.trainer.update(one_batch | one_device)
    try:
        with quiet():
            trainer = build_trainer(config, system, folder=None, callbacks=[], loggers=[])
            trainer.fit(system, datamodule=datamodule)
    finally:
        for hook in hooks:
            hook.remove()
    print_table(layers, system, plain(config)["name"])
    return layers


def _recorder(name: str, module: nn.Module, layers: list[Layer]) -> Any:
    seen = False

    def record(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal seen
        if isinstance(output, Tensor) and not seen:
            seen = True
            own = sum(parameter.numel() for parameter in module.parameters())
            layers.append(Layer(name, type(module).__name__, tuple(output.shape), own))

    return record


def print_table(layers: list[Layer], system: System, title: str) -> None:
    """Layers in the order they ran, with the shapes of one batch."""
    width = max((len(layer.name) for layer in layers), default=5)
    lines = [title, f"{'layer':<{width}}  {'kind':<18}  {'parameters':>12}  output shape (one batch)"]
    for layer in layers:
        shape = " × ".join(map(str, layer.shape))
        lines.append(f"{layer.name:<{width}}  {layer.kind:<18}  {layer.parameters:>12,}  {shape}")
    total = sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad)
    lines.append(f"{total:,} trainable parameters; one batch went forward and backward")
    show(*lines)
