"""What was typed after the command, judged word by word.

Hydra stops at the first bad override and its advice for a misspelt key is to add it with ``+``. Here each override is
looked at alone, with what the keys and signatures around it are called, and those without fault are handed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kinoscope.config import signatures
from kinoscope.config.compose import Composer
from kinoscope.config.schema import SCHEMAS
from kinoscope.config.signatures import Signature, TargetNotFound
from kinoscope.config.suggest import did_you_mean, listed
from kinoscope.config.types import ANYTHING, DictOf


@dataclass
class Judged:
    """Overrides that can be composed, as Hydra wants them, and the faults of the others."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def judge(composer: Composer, lines: Sequence[str]) -> Judged:
    """Judges overrides without sweeps (see `expand`): syntax, groups, options and keys, not yet the values' types."""
    judged = Judged()
    values: list[Override] = []
    for line in lines:
        override = parse(composer, line, judged.faults)
        if override is None:
            continue
        if override.is_hydra_override():
            judged.lines.append(line)
        elif _names_group(composer, override):
            _judge_group(composer, override, judged)
        else:
            values.append(override)
    config = _compose_groups(composer, judged)
    if config is not None:
        for override in values:
            _judge_value(composer, config, override, judged)
    return judged


def parse(composer: Composer, line: str, faults: list[str]) -> Override | None:
    """One override as Hydra reads it; None, and a fault, if it cannot."""
    try:
        override = OverridesParser.create(config_loader=composer.loader).parse_override(line)
    except HydraException:
        if "=" in line or line.startswith(("~", "-")):
            faults.append(f"{line}: this cannot be read; quote what the shell or Hydra would split: 'key=\"value\"'")
        else:
            options = composer.options("experiment")
            hint = (
                f"did you mean 'experiment={line}'?" if line in options else did_you_mean(line, options, "experiment=")
            )
            faults.append(f"{line}: not of the form key=value; {hint}".rstrip("; "))
        return None
    if override.value_type is not ValueType.ELEMENT and override.value_type is not None:
        faults.append(f"{line}: several values need -m to run one job for each (a list is written [a,b])")
        return None
    return override


def expand(composer: Composer, lines: Sequence[str]) -> Iterator[list[str]]:
    """The override lists that stand for a sweep: one with every first value, then one more for each other value.

    The jobs are their product; every value is seen once here, and a fault in a value needs no second look.
    """
    choices = [_sweep_values(composer, line) for line in lines]
    first = [values[0] for values in choices]
    yield first
    for position, values in enumerate(choices):
        for value in values[1:]:
            yield [*first[:position], value, *first[position + 1 :]]


def _sweep_values(composer: Composer, line: str) -> list[str]:
    try:
        override = OverridesParser.create(config_loader=composer.loader).parse_override(line)
        if override.value_type in (None, ValueType.ELEMENT):
            return [line]
        key = override.get_key_element()
        if override.value_type is ValueType.INTERVAL_SWEEP:
            interval = override.value()
            return [f"{key}={end}" for end in (interval.start, interval.end)]  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        return [f"{key}={value}" for value in override.sweep_string_iterator()] or [line]
    except HydraException:
        return [line]  # `judge` will say what is wrong with it


# --- groups --------------------------------------------------------------------------------------------------------


def _names_group(composer: Composer, override: Override) -> bool:
    if not composer.options(override.key_or_group):
        return False
    # A dict or number for a group's name is meant for the key of the same name (data={…}).
    return override.is_delete() or isinstance(override.value(), (str, list)) or override.value() is None


def _judge_group(composer: Composer, override: Override, judged: Judged) -> None:
    group, line, value = override.key_or_group, override.input_line or "", override.value()
    if value is None and not override.is_delete():
        judged.lines.append(f"~{group}")  # Hydra knows no group=null
        return
    options = composer.options(group)
    unknown = [option for option in (value if isinstance(value, list) else [value]) if option not in [*options, None]]
    for option in unknown:
        near = did_you_mean(str(option), options) or f"there are: {', '.join(options)}"
        judged.faults.append(f"{line}: {group} has no option '{option}'; {near}")
    if not unknown:
        judged.lines.append(line)


def _compose_groups(composer: Composer, judged: Judged) -> DictConfig | None:
    """The config with the chosen groups, open for changes. A choice that cannot be composed becomes a fault."""
    try:
        config = composer(judged.lines)
    except Exception as error:
        guilty = _first_guilty(composer, judged.lines)
        reason = explain(error)
        judged.faults.append(f"{guilty}: {reason}" if guilty else reason)
        return None
    config = config.copy()
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    return config


def _first_guilty(composer: Composer, lines: Sequence[str]) -> str | None:
    for count in range(len(lines) + 1):
        try:
            composer(lines[:count])
        except Exception:
            return lines[count - 1] if count else None
    return None


# --- keys ----------------------------------------------------------------------------------------------------------


def _judge_value(composer: Composer, config: DictConfig, override: Override, judged: Judged) -> None:
    key, line = override.key_or_group, override.input_line or ""
    fault = _fault_of_key(composer, config, override)
    if fault:
        judged.faults.append(f"{line}: {fault}")
        return
    try:
        if override.is_delete():
            parent, _, last = key.rpartition(".")
            node = OmegaConf.select(config, parent) if parent else config
            del node[last]
        else:
            OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
    except (OmegaConfBaseException, ValueError, AttributeError) as error:
        judged.faults.append(f"{line}: {explain(error)}")
        return
    # '++' sets a key whether it is in the yaml (x=1) or only an argument of the node's _target_.
    judged.lines.append(line if override.is_delete() else f"++{line.lstrip('+')}")


def _fault_of_key(composer: Composer, config: DictConfig, override: Override) -> str | None:
    key = override.key_or_group
    if "/" in key or override.package is not None:
        near = did_you_mean(key, composer.groups()) or f"the groups are: {', '.join(_top_groups(composer))}"
        return f"there is no group '{key}'; {near}"
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                return f"'{where}' is a list of {len(node)} entries"
            part = int(part)
        elif not isinstance(node, DictConfig):
            return f"'{where}' is a value, it holds no '{part}'"
        elif part not in node:
            return _fault_of_missing(composer, config, node, where, parts[depth:], override)
        child = node._get_node(part)
        if not isinstance(child, (DictConfig, ListConfig)) and depth == len(parts) - 1:
            return None
        if _is_unset(child):  # null or ???: whatever is put there now makes the node
            return None
        try:
            node = node[part]
        except OmegaConfBaseException:
            return None  # an interpolation that is judged with the tree
    return None


def _is_unset(child: Any) -> bool:
    return child is None or child._is_none() or child._is_missing()


def _fault_of_missing(
    composer: Composer, config: DictConfig, node: DictConfig, where: str, rest: Sequence[str], override: Override
) -> str | None:
    """A key that is not in the yaml: fine if it is an argument of the node's ``_target_``, else a fault."""
    name = rest[0]
    signature = _signature(composer, node, where)
    if signature is None:  # a plain dict takes any key, but only if told so
        if override.type in (OverrideType.ADD, OverrideType.FORCE_ADD):
            return None
        arguments: list[str] = []
    else:
        if override.is_delete():
            return "there is no such key to take away"
        if name in signature.parameters or signature.open or name.startswith("_") or name.isdigit():
            return None
        arguments = list(signature.parameters)
    return _unknown_key(composer, config, node, where, name, arguments)


def _signature(composer: Composer, node: DictConfig, where: str) -> Signature | None:
    """What names may be added to a node; None for a plain dict."""
    if not where:
        return signatures.find(SCHEMAS[composer.verb])
    target = node.get("_target_")
    if not isinstance(target, str):
        return None
    try:
        return signatures.find(target)
    except TargetNotFound:
        return signatures.OPEN  # said once, with the tree


def _unknown_key(
    composer: Composer, config: DictConfig, node: DictConfig, where: str, name: str, arguments: Sequence[str]
) -> str:
    prefix = f"{where}." if where else ""
    siblings = [str(key) for key in node if not str(key).startswith("_") and (where or key != "hydra")]
    known = list(dict.fromkeys([*siblings, *arguments]))
    hint = did_you_mean(name, known, prefix)
    if not hint:
        leaves = list(_paths(config))
        same = [path for path in leaves if path.rpartition(".")[2] == name]
        near = dict.fromkeys(path.rpartition(".")[2] for path in leaves)
        hint = f"did you mean {listed([repr(path) for path in same[:3]], 'or')}?" if same else ""
        if not hint and not where:
            hint = did_you_mean(name, composer.groups())
        if not hint and (close := did_you_mean(name, near)):
            word = close.split("'")[1]
            hint = f"did you mean {listed([repr(p) for p in leaves if p.rpartition('.')[2] == word][:3], 'or')}?"
    holder = f"'{where}'" if where else f"'{composer.verb}'"
    return f"{holder} has no key '{name}'; {hint or f'it has: {", ".join(known)}'}"


def _paths(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all leaves of the user's own config, and of the arguments that its targets also take."""
    if not isinstance(node, DictConfig) or _is_unset(node) or node._is_interpolation():
        if prefix:
            yield prefix
        return
    for key in node:
        if str(key).startswith("_") or (not prefix and key == "hydra"):
            continue
        yield from _paths(node._get_node(key), f"{prefix}.{key}" if prefix else str(key))
    target = None if not prefix else node.get("_target_")
    if isinstance(target, str):
        try:
            parameters = signatures.find(target).parameters.values()
        except TargetNotFound:
            return
        plain = (p.name for p in parameters if p.name not in node and not (p.required and p.hint is ANYTHING))
        yield from (f"{prefix}.{name}" for name in plain)


def _top_groups(composer: Composer) -> list[str]:
    return [group for group in composer.groups() if "/" not in group]


def explain(error: BaseException) -> str:
    """The innermost reason of Hydra's or OmegaConf's exception, on one line."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # type: ignore[assignment]
    texts = [text for link in chain if (text := str(link).strip())]
    if not texts:
        return type(chain[0]).__name__
    first = [line.strip() for line in texts[-1].splitlines() if line.strip()]
    return first[0] if first else type(chain[0]).__name__


__all__ = ["DictOf", "Judged", "expand", "explain", "judge", "parse"]
