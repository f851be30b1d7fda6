"""A composed config held against the signatures of what it names, node by node and value by value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from kinoscope.config import signatures
from kinoscope.config.overrides import explain
from kinoscope.config.schema import SCHEMAS
from kinoscope.config.signatures import Parameter, Signature, TargetNotFound
from kinoscope.config.suggest import did_you_mean, listed
from kinoscope.config.types import ANYTHING, is_sequence, show
from kinoscope.errors import KinoscopeError

Faults = dict[str, str]  # sentence → the path it is about; a sentence that several paths share is said once

_UNKNOWN = object()  # a value that could not be resolved and has been reported


def tree_faults(verb: str, config: DictConfig) -> Faults:
    """Binds the root to the verb's schema and every node with a ``_target_`` to its signature.

    Args:
        verb: whose config it is.
        config: as composed, with Hydra's node (for the groups' choices); interpolations are resolved here, one by one.
    """
    faults: Faults = {}
    values = {key: _resolve(config, key, str(key), config, faults) for key in config if key != "hydra"}
    _bind(values, signatures.find(SCHEMAS[verb]), "", faults)
    for key, value in values.items():
        _bind_below(value, str(key), faults)
    return faults


def node_faults(values: Mapping[Any, Any], target: str, path: str) -> list[str]:
    """Binds one node, given as plain values, to a signature; for those that lie in Hydra's part of a config."""
    faults: Faults = {}
    _bind(values, signatures.find(target), path, faults)
    return list(faults)


def _resolve(node: DictConfig | ListConfig, key: Any, path: str, config: DictConfig, faults: Faults) -> Any:
    """The plain value of a key; what cannot be resolved is reported and becomes `_UNKNOWN`."""
    try:
        value = node[key]
    except MissingMandatoryValue:
        faults.setdefault(_not_set(node, key, path), path)
        return _UNKNOWN
    except InterpolationToMissingValueError:
        return _UNKNOWN  # what it points at is reported in its own place
    except OmegaConfBaseException as error:
        faults.setdefault(_not_resolved(node, key, path, config, error), path)
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


def _bind_below(value: Any, path: str, faults: Faults) -> None:
    """Binds every node with a ``_target_`` at or below ``path``."""
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str):
            try:
                _bind(value, signatures.find(target), path, faults)
            except TargetNotFound as missing:
                head = target.rpartition(".")[0]
                hint = did_you_mean(target.rpartition(".")[2], missing.near, f"{head}.")
                faults[f"{path}._target_: {missing}" + (f"; {hint}" if hint else "")] = f"{path}._target_"
        elif target is not None and target is not _UNKNOWN:
            sentence = f"{path}._target_ is {show(target)}, but must be the dotted name of a class or function"
            faults[sentence] = f"{path}._target_"
        for key, child in value.items():
            _bind_below(child, f"{path}.{key}", faults)
    elif is_sequence(value):
        for index, child in enumerate(value):
            _bind_below(child, f"{path}[{index}]", faults)


def _bind(values: Mapping[Any, Any], signature: Signature, path: str, faults: Faults) -> None:
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
            faults[f"{prefix}{name}: {owner} has no argument '{name}'; {hint}"] = f"{prefix}{name}"
    if values.get("_partial_") is True or values.get("_args_") is _UNKNOWN:
        return
    positional = signature.positional[: len(values.get("_args_") or ())]
    required = [p.name for p in signature.parameters.values() if p.required and p.name not in positional]
    missing = [name for name in required if name not in given]
    if missing:
        owner = signature.origin.rpartition(".")[2]
        keys = listed([f"{prefix}{name}=…" for name in missing])
        needs = f"{owner} also needs {listed([repr(name) for name in missing])}; give {keys}"
        faults[f"{path}: {needs}" if path else needs] = path


def _takes(signature: Signature) -> str:
    return f"it has: {', '.join(signature.parameters)}" if signature.parameters else "it takes none"


def _check_value(value: Any, parameter: Parameter, path: str, faults: Faults) -> None:
    if _holds_unknown(value) or (isinstance(value, Mapping) and "_target_" in value):
        return  # already reported, or an object whose own node is bound
    if parameter.hint is ANYTHING or parameter.accepts(value):
        return
    shown = repr(value) if isinstance(value, str) else show(value)
    words = [str(choice) for choice in parameter.hint.choices() if isinstance(choice, str)]
    hint = did_you_mean(value, words) if isinstance(value, str) else ""
    faults[f"{path} is {shown}, but must be {parameter.hint}" + (f"; {hint}" if hint else "")] = path


def _holds_unknown(value: Any) -> bool:
    return value is _UNKNOWN or any(_holds_unknown(inner) for inner in _inside(value))


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif is_sequence(value):
        yield from value
