"""What a command says to the stages of an experiment. Imports no torch.

An experiment with ``stages:`` is the last of several trainings. Each entry is a stage that is trained before it, in
order, as keys and values of the command line's language:

    stages:
      pretrain:
        experiment: autoencoder/conv_small
        trainer.max_steps: 2000
    init_from: stage:pretrain

On the command line ``stages.pretrain.trainer.max_steps=500`` changes one. What is typed without a stage's name is for
the experiment itself; of that, what says on which data, where and how a run computes holds for all its stages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from kinoscope.config.overrides import key_of
from kinoscope.config.types import is_sequence

STAGE = "stage:"  # init_from=stage:<name>

# Dotted prefixes of keys that, typed once, hold for every stage.
SHARED = (
    "data",
    "seed",
    "trainer",
    "logger",
    "debug",
    "data_dir",
    "threads",
    "deterministic",
    "compile",
    "channels_last",
    "callbacks.checkpoint",
    "callbacks.progress",
)
# And those of them that are an experiment's own: how long it trains, and how it steps.
OWN = (
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.min_epochs",
    "trainer.min_steps",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)

_WORD = re.compile(r"[A-Za-z_][\w./-]*")
_NO_WORDS = ("null", "true", "false", "nan", "inf")


def stage_lines(config: DictConfig, typed: Sequence[str]) -> dict[str, list[str]]:
    """The overrides of each stage before the last, in order.

    Args:
        config: the experiment's config, as composed.
        typed: the overrides of its command; those that all stages share come first, so that a stage's own word wins.
    """
    together = shared(typed)
    lines: dict[str, list[str]] = {}
    for name, content in (config.get("stages") or {}).items():
        leaves = _leaves(OmegaConf.to_container(content, resolve=True))
        own = [f"{'++' if _makes_node(key) else ''}{key}={_spelt(value)}" for key, value in leaves]
        said = {key_of(line) for line in own}
        lines[str(name)] = [*(line for line in together if key_of(line) not in said), *own]
    return lines


def shared(typed: Sequence[str]) -> list[str]:
    """Those of the typed overrides that hold for every stage."""
    return [line for line in typed if _under(key_of(line), SHARED) and not _under(key_of(line), OWN)]


def _under(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _makes_node(key: str) -> bool:
    """Whether a key may belong to a callback of one's own, which the command line adds with a plus."""
    return key.startswith("callbacks.") and key.count(".") > 1


def _spelt(value: Any) -> str:
    """A value as the command line has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_spelt(item)}" for key, item in value.items()) + "}"
    if is_sequence(value):
        return "[" + ",".join(map(_spelt, value)) + "]"
    if isinstance(value, str) and (not _WORD.fullmatch(value) or value.lower() in _NO_WORDS):
        return QuotedString(text=value, quote=Quote.single).with_quotes()
    return str(value)
