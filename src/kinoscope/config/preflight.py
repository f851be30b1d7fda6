"""Every fault that a command and its config hold, found before any work starts and all together.

Nothing here imports torch or Lightning, makes a folder or opens a data file. Three passes: the overrides one by one
(overrides.py); the composed config as a tree, where each node with a ``_target_`` is bound to its signature (tree.py);
and the run folder that the command names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kinoscope.config.compose import Composer, composing, without_hydra
from kinoscope.config.overrides import Judged, expand, judge
from kinoscope.config.tree import tree_faults
from kinoscope.errors import KinoscopeError


@dataclass
class Checked:
    """What preflight found.

    Attributes:
        faults: one sentence each, in the order of the command; empty if work may start.
        overrides: those without fault, as Hydra wants them.
        config: the composed config without Hydra's node; None where it cannot be composed, or for a sweep.
    """

    faults: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    config: DictConfig | None = None


def preflight(
    verb: str,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    *,
    sweep: bool = False,
    keys_only: bool = False,
) -> Checked:
    """Checks a command.

    Args:
        verb: train, evaluate, sample or prepare.
        overrides: what follows it.
        config_dir: a folder of the user's own yaml.
        sweep: overrides may hold several values each (``-m``); all are checked.
        keys_only: overrides alone, for showing a config that is not complete yet.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        return Checked([f"--config-dir {config_dir}: there is no such folder"])
    with composing(verb, config_dir) as composer:
        if not sweep:
            return _check(composer, overrides, keys_only=keys_only)[0]
        faults: dict[str, None] = {}
        normal: dict[str, str] = {}
        for lines in expand(overrides):
            checked, judged = _check(composer, lines, keys_only=keys_only)
            faults.update(dict.fromkeys(checked.faults))
            for typed, line in zip(overrides, lines, strict=True):
                if typed == line:
                    normal[typed] = judged.lines.get(line, line)
                elif judged.lines.get(line, "").startswith("++"):  # one of its values needs it, the others bear it
                    normal[typed] = f"++{typed.lstrip('+')}"
        return Checked(list(faults), [normal.get(line, line) for line in overrides])


def _check(composer: Composer, overrides: Sequence[str], *, keys_only: bool) -> tuple[Checked, Judged]:
    judged = judge(composer, overrides)
    checked = Checked(judged.faults, list(judged.lines.values()))
    if judged.config is None or keys_only:
        return checked, judged
    found = tree_faults(composer.verb, judged.config)
    if judged.misspelt:  # the nearest option stands in: only what was typed can be judged by it
        typed = tuple(_key(line) for line in judged.lines if _key(line) not in judged.misspelt)
        found = {sentence: path for sentence, path in found.items() if _is_below(path, typed)}
    checked.faults += [*found, *_folder_faults(judged.config)]
    if not checked.faults:
        checked.config = without_hydra(judged.config)
    return checked, judged


def _key(line: str) -> str:
    return line.partition("=")[0].lstrip("+~").replace("/", ".")


def _is_below(path: str, keys: tuple[str, ...]) -> bool:
    return path in keys or path.startswith(tuple(f"{key}{mark}" for key in keys for mark in ".["))


def _folder_faults(config: DictConfig) -> Iterator[str]:
    """``resume=`` and ``run=`` must name a run folder."""
    from kinoscope.runs.folder import RunFolder

    for key in ("resume", "run"):
        try:
            value = config.get(key)
        except OmegaConfBaseException:
            continue  # reported with the tree
        if not isinstance(value, str) or (key == "resume" and value == "auto"):
            continue
        try:
            RunFolder.open(value)
        except KinoscopeError as error:
            yield f"{key}={value}: {error}"
