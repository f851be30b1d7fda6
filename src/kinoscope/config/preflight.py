"""Every fault that a command and its config hold, found before any work starts and all together.

Nothing here imports torch or Lightning, makes a folder or opens a data file. Three passes: the overrides one by one
(overrides.py); the composed config as a tree, where each node with a ``_target_`` is bound to its signature; and the
run folder that the command names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from kinoscope.config import signatures
from kinoscope.config.compose import Composer, composing, without_hydra
from kinoscope.config.overrides import expand, explain, judge
from kinoscope.config.schema import SCHEMAS
from kinoscope.config.signatures import Parameter, Signature, TargetNotFound
from kinoscope.config.suggest import did_you_mean, listed
from kinoscope.config.types import ANYTHING, is_sequence, show
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
            return _check(composer, overrides, keys_only=keys_only)
        faults: dict[str, None] = {}
        prefixes: dict[str, str] = {}
        for lines in expand(overrides):
            checked = _check(composer, lines, keys_only=keys_only)
            faults.update(dict.fromkeys(checked.faults))
            prefixes.update({_key(line): line.partition("=")[0] for line in checked.overrides})
        # The sweep itself goes on as it was typed, but for '+' and '~' where Hydra needs them.
        lines = [f"{prefixes.get(_key(line), line.partition('=')[0])}={line.partition('=')[2]}" for line in overrides]
        return Checked(list(faults), [line.removesuffix("=") if line.startswith("~") else line for line in lines])


def _key(line: str) -> str:
    return line.partition("=")[0].lstrip("+~")


def _check(composer: Composer, overrides: Sequence[str], *, keys_only: bool) -> Checked:
    judged = judge(composer, overrides)
    checked = Checked(judged.faults, judged.lines)
    if judged.config is None or keys_only:
        return checked
    checked.faults += dict.fromkeys([*_tree_faults(composer.verb, judged.config), *_folder_faults(judged.config)])
    if not checked.faults:
        checked.config = without_hydra(judged.config)
    return checked


# --- the tree ------------------------------------------------------------------------------------------------------

_UNKNOWN = object()  # a value that could not be resolved and has been reported


def _tree_faults(verb: str, config: DictConfig) -> list[str]:
    faults: list[str] = []
    values = {key: _resolve(config, key, str(key), config, faults) for key in config if key != "hydra"}
    _bind(values, signatures.find(SCHEMAS[verb]), "", faults)
    for key, value in values.items():
        _bind_below(value, str(key), faults)
    return faults


def _resolve(node: DictConfig | ListConfig, key: Any, path: str, config: DictConfig, faults: list[str]) -> Any:
    """The plain value of a key; what cannot be resolved is reported and becomes `_UNKNOWN`."""
    try:
        value = node[key]
    except MissingMandatoryValue:
        faults.append(_not_set(node, key, path))
        return _UNKNOWN
    except InterpolationToMissingValueError:
        return _UNKNOWN  # what it points at is reported in its own place
    except OmegaConfBaseException as error:
        faults.append(_not_resolved(node, key, path, config, error))
        return _UNKNOWN
    if isinstance(value, DictConfig):
        return {k: _resolve(value, k, f"{path}.{k}", config, faults) for k in value}
    if isinstance(value, ListConfig):
        return [_resolve(value, i, f"{path}[{i}]", config, faults) for i in range(len(value))]
    return value


def _not_set(node: DictConfig | ListConfig, key: Any, path: str) -> str:
    meaning = ""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    if isinstance(target, str):
        try:
            parameter = signatures.find(target).parameters.get(str(key))
        except TargetNotFound:
            parameter = None
        meaning = parameter.help.rstrip(".") if parameter else ""
    return f"{path} is not set: give {path}=…" + (f" ({meaning})" if meaning else "")


def _not_resolved(
    node: DictConfig | ListConfig, key: Any, path: str, config: DictConfig, error: OmegaConfBaseException
) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KinoscopeError):  # a resolver's own sentence
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    raw = node._get_node(key)
    text = raw._value() if raw is not None and not isinstance(raw, list) else "?"
    if isinstance(error, InterpolationKeyError):
        wanted = str(error).partition("'")[2].partition("'")[0]
        group = wanted.partition(".")[0]
        chosen = config.hydra.runtime.choices.get(group)
        holder = f"{group}={chosen}" if chosen else "this config"
        return f"{path} takes its value from '{wanted}', which {holder} does not have"
    return f"{path}: '{text}' cannot be resolved ({explain(error)})"


def _bind_below(value: Any, path: str, faults: list[str]) -> None:
    """Binds every node with a ``_target_`` at or below ``path``."""
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str):
            try:
                _bind(value, signatures.find(target), path, faults)
            except TargetNotFound as missing:
                head = target.rpartition(".")[0]
                hint = did_you_mean(target.rpartition(".")[2], missing.near, f"{head}.")
                faults.append(f"{path}._target_: {missing}" + (f"; {hint}" if hint else ""))
        elif target is not None and target is not _UNKNOWN:
            faults.append(f"{path}._target_ is {show(target)}, but must be the dotted name of a class or function")
        for key, child in value.items():
            _bind_below(child, f"{path}.{key}", faults)
    elif is_sequence(value):
        for index, child in enumerate(value):
            _bind_below(child, f"{path}[{index}]", faults)


def _bind(values: Mapping[Any, Any], signature: Signature, path: str, faults: list[str]) -> None:
    """Holds a node's keys and values against a signature."""
    prefix = f"{path}." if path else ""
    given = {str(key): value for key, value in values.items() if not str(key).startswith("_")}
    for name, value in given.items():
        parameter = signature.parameters.get(name)
        if parameter is not None:
            _check_value(value, parameter, f"{prefix}{name}", faults)
        elif not signature.open:
            hint = did_you_mean(name, signature.parameters, prefix) or _takes(signature)
            owner = signature.origin.rpartition(".")[2]
            faults.append(f"{prefix}{name}: {owner} has no argument '{name}'; {hint}")
    if values.get("_partial_") is True or values.get("_args_") is _UNKNOWN:
        return
    positional = signature.positional[: len(values.get("_args_") or ())]
    required = [p.name for p in signature.parameters.values() if p.required and p.name not in positional]
    missing = [name for name in required if name not in given]
    if missing:
        owner = signature.origin.rpartition(".")[2]
        keys = listed([f"{prefix}{name}=…" for name in missing])
        faults.append(f"{path or 'config'}: {owner} also needs {listed([repr(n) for n in missing])}; give {keys}")


def _takes(signature: Signature) -> str:
    return f"it has: {', '.join(signature.parameters)}" if signature.parameters else "it takes none"


def _check_value(value: Any, parameter: Parameter, path: str, faults: list[str]) -> None:
    if _holds_unknown(value) or (isinstance(value, Mapping) and "_target_" in value):
        return  # already reported, or an object whose own node is bound
    if parameter.hint is ANYTHING or parameter.accepts(value):
        return
    shown = repr(value) if isinstance(value, str) else show(value)
    words = [str(choice) for choice in parameter.hint.choices() if isinstance(choice, str)]
    hint = did_you_mean(value, words) if isinstance(value, str) else ""
    faults.append(f"{path} is {shown}, but must be {parameter.hint}" + (f"; {hint}" if hint else ""))


def _holds_unknown(value: Any) -> bool:
    return value is _UNKNOWN or any(_holds_unknown(inner) for inner in _inside(value))


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif is_sequence(value):
        yield from value


# --- the folder that a command names -------------------------------------------------------------------------------


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
