"""Every fault that a command and its config hold, found before any work starts and all together.

Nothing here imports torch or Lightning, makes a folder or opens a data file. Three passes: the overrides one by one
(overrides.py); the composed config as a tree, where each node with a ``_target_`` is bound to its signature (tree.py);
and the run folder that the command names. A sweep is looked at with every value that its keys may take, and then as a
whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kinoscope.config.compose import Composer, composing, plain, without_hydra
from kinoscope.config.overrides import Judged, judge, key_of
from kinoscope.config.space import Dimension, Interval, expand, split
from kinoscope.config.stages import STAGE, stage_lines
from kinoscope.config.suggest import did_you_mean
from kinoscope.config.tree import tree_faults
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.launch.sweep_jobs import PARENTS_OWN


@dataclass
class Checked:
    """What preflight found.

    Attributes:
        faults: one sentence each, in the order of the command; empty if work may start.
        overrides: those without fault, as Hydra wants them.
        config: the composed config without Hydra's node; None where it cannot be composed, or for a sweep.
        stages: what is trained before, in order, by name.
        begin: starts a sweep that runs itself, and returns its exit code; None for any other command.
    """

    faults: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    config: DictConfig | None = None
    stages: dict[str, Checked] = field(default_factory=dict)
    begin: Callable[[], int] | None = None


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
        sweep: overrides may hold several values each (``-m``, ``sweep=…``); all are checked.
        keys_only: overrides alone, for showing a config that is not complete yet.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        return Checked([f"--config-dir {config_dir}: there is no such folder"])
    with composing(verb, config_dir) as composer:
        if sweep:
            return _check_sweep(composer, overrides, config_dir, keys_only=keys_only)
        checked, judged = _check(composer, overrides, keys_only=keys_only)
        kind = "none" if judged.config is None else judged.config.hydra.runtime.choices.get("sweep", "none")
        if kind != "none" and not keys_only:  # in an experiment's yaml, or from Python
            checked.faults.append(f"sweep={kind} starts several runs: type it, with python -m train, and nowhere else")
        return checked


def _check_sweep(
    composer: Composer, overrides: Sequence[str], config_dir: str | Path | None, *, keys_only: bool
) -> Checked:
    """Checks a command that starts several runs: with each value of each key, and then as a whole."""
    from kinoscope.config.build import instantiate
    from kinoscope.launch.sweep import Command, Product

    try:
        fixed, space = split([*_space_lines(composer, overrides), *overrides])
    except Refusal as refusal:
        return Checked([str(refusal)])
    faults = {f"{key}: a sweep's own keys have one value each": None for key in space if _is_sweeps_own(key)}
    normal: dict[str, str] = {}  # lines with one value, as typed → as Hydra wants them
    keys: dict[str, str] = {}  # keys with several, likewise
    first: DictConfig | None = None
    for lines, key in expand(fixed, space):
        checked, judged = _check(composer, lines, keys_only=keys_only)
        faults.update(dict.fromkeys(_about_intervals(fault, space) for fault in checked.faults))
        if key is None:
            first, normal = judged.config, {line: judged.lines.get(line, line) for line in fixed}
        for line in lines[len(fixed) :]:  # where one of a key's values needs ++, the others bear it
            if judged.lines.get(line, "").startswith("++"):
                keys[_name(line)] = f"++{_name(line).lstrip('+')}"
    parts = [(line, *line.partition("=")[::2]) for line in overrides]
    result = Checked(list(faults), [normal.get(line) or f"{keys.get(key, key)}={value}" for line, key, value in parts])
    if first is None or faults or keys_only:
        return result
    command = Command(
        verb=composer.verb,
        typed=overrides,
        config_dir=None if config_dir is None else str(config_dir),
        shared=[line for line in normal.values() if not _is_sweeps_own(line)],
        space={keys.get(key, key): dimension for key, dimension in space.items()},
        config=plain(without_hydra(first)),
        launcher=str(first.hydra.runtime.choices.get("hydra/launcher")),
    )
    try:
        kind: Any = instantiate(first.sweep) if "sweep" in first else Product()
    except (Refusal, ValueError, TypeError) as error:
        result.faults.append(f"sweep: {error}")
        return result
    result.faults += kind.faults(command)
    if command.launcher.startswith("submitit"):
        from kinoscope.launch.submitit_launcher import launcher_faults

        result.faults += launcher_faults(first)
    result.begin = partial(kind.run, command) if hasattr(kind, "run") else None
    return result


def _space_lines(composer: Composer, overrides: Sequence[str]) -> list[str]:
    """The entries of ``sweep.space`` as overrides, for a search; what is typed wins over them."""
    if not any(key_of(line) == "sweep" for line in overrides):
        return []
    fixed, _ = split(overrides)
    config = judge(composer, fixed).config
    if config is None or config.hydra.runtime.choices.get("sweep") == "none":
        return []
    space = config.sweep.get("space")
    typed = set(map(key_of, overrides))
    entries = space.items() if isinstance(space, DictConfig) else ()
    return [f"{key}={value}" for key, value in entries if isinstance(value, str) and key_of(f"{key}=") not in typed]


def _about_intervals(fault: str, space: Mapping[str, Dimension]) -> str:
    """One sentence for both ends of an interval whose type does not fit its key."""
    for key, dimension in space.items():
        found, _, wanted = fault.partition(", but must be ")
        if isinstance(dimension, Interval) and wanted and found.startswith(f"{key.lstrip('+')} is "):
            whole = f"; for whole numbers write int(interval({dimension.low:g},{dimension.high:g}))"
            return f"{key}: an interval does not fit it, it must be {wanted}{whole if wanted.startswith('int') else ''}"
    return fault


def _name(line: str) -> str:
    return line.partition("=")[0]


def _is_sweeps_own(line: str) -> bool:
    """Whether an override is for the sweep and not for its jobs."""
    return key_of(line).partition(".")[0] == "sweep" or _name(line).lstrip("+~").startswith(PARENTS_OWN)


def _check(
    composer: Composer, overrides: Sequence[str], *, keys_only: bool, before: Sequence[str] | None = None
) -> tuple[Checked, Judged]:
    """Judges one command; for a stage's, ``before`` are the names of the stages before it."""
    judged = judge(composer, overrides)
    checked = Checked(judged.faults, list(judged.lines.values()))
    if judged.config is None or keys_only:
        return checked, judged
    found = tree_faults(composer.verb, judged.config)
    if judged.misspelt:  # the nearest option stands in: only what was typed can be judged by it
        typed = tuple(key_of(line) for line in judged.lines if key_of(line) not in judged.misspelt)
        found = {sentence: path for sentence, path in found.items() if _is_below(path, typed)}
    found = {_with_group(sentence, path, composer): path for sentence, path in found.items()}
    stages = _stages_of(judged.config)
    known = [*(before or ()), *map(str, stages)]
    checked.faults += [*found, *_folder_faults(judged.config), *_start_faults(judged.config, known)]
    if not checked.faults:
        checked.config = without_hydra(judged.config)
    own = set(checked.faults)
    for name, lines in stage_lines(judged.config, list(judged.lines)).items() if stages else ():
        earlier = [*(before or ()), *checked.stages]
        checked.stages[name], _ = _check(composer, lines, keys_only=False, before=earlier)
        checked.faults += [f"stages.{name}: {fault}" for fault in checked.stages[name].faults if fault not in own]
    return checked, judged


def _stages_of(config: DictConfig) -> DictConfig:
    """The stages of an experiment; none where they are not what they should be, which the tree has reported."""
    stages = config.get("stages")
    sound = isinstance(stages, DictConfig) and all(isinstance(node, DictConfig) for node in stages.values())
    return stages if isinstance(stages, DictConfig) and sound else DictConfig({})


def _with_group(sentence: str, path: str, composer: Composer) -> str:
    """A fault of a value that is an option's name: such a key is filled by a group."""
    group = path.replace(".", "/")
    wrong = [option for option in composer.options(group) if f"{path} is {option!r}, but must be " in sentence]
    return f"{sentence}, or be chosen by {group}={wrong[0]}" if wrong else sentence


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


def _start_faults(config: DictConfig, before: Sequence[str]) -> Iterator[str]:
    """``init_from=`` must name a trained run, or a stage before this one; ``fresh=`` is nothing without it."""
    from kinoscope.runs.folder import RunFolder

    source = config.get("init_from")
    if config.get("resume") not in (None, "auto"):  # what a run has begun with is in its folder
        return
    if source is None and config.get("fresh"):
        yield "fresh: nothing is taken over without init_from=<run>; leave it out"
    if not isinstance(source, str):
        return
    if source.startswith(STAGE):
        name = source.removeprefix(STAGE)
        if name not in before:
            known = did_you_mean(name, before, STAGE) or f"there are: {', '.join(before) or 'none'}"
            yield f"init_from={source}: there is no stage '{name}' before this one; {known}"
        return
    try:
        RunFolder.open(source).trained()
    except KinoscopeError as error:
        yield f"init_from={source}: {error}"
