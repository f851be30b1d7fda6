"""What was typed after the command, judged word by word.

Hydra stops at the first bad override and its advice for a misspelt key is to add it with ``+``. Here each override is
looked at alone, with what the keys and signatures around it are called, and those without fault are handed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from kinoscope.config import signatures
from kinoscope.config.compose import Composer
from kinoscope.config.schema import SCHEMAS
from kinoscope.config.signatures import Signature, TargetNotFound
from kinoscope.config.space import read_override
from kinoscope.config.suggest import did_you_mean, listed, near
from kinoscope.config.types import ANYTHING


@dataclass
class Judged:
    """What became of the overrides.

    Attributes:
        lines: those without fault as typed → as Hydra wants them.
        faults: one sentence for each of the others.
        misspelt: groups whose option is not there; the nearest stands in for it, to judge the rest.
        config: what the lines compose to; None where the chosen groups do not compose.
    """

    lines: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    misspelt: set[str] = field(default_factory=set)
    config: DictConfig | None = None


def judge(composer: Composer, lines: Sequence[str]) -> Judged:
    """Judges overrides of one value each (else see space.py): syntax, groups, options, keys; not yet values' types."""
    judged = Judged()
    values: list[Override] = []
    for line in lines:
        override = _parse(composer, line, judged.faults)
        if override is None:
            continue
        if override.key_or_group == "hydra.searchpath":
            judged.faults.append(f"{line}: a folder of your own yaml is given by --config-dir")
        elif override.is_hydra_override():
            judged.lines[line] = line
        elif _names_group(composer, override):
            _judge_group(composer, override, judged)
        else:
            values.append(override)
    judged.config = _compose_groups(composer, judged)
    if judged.config is not None:
        for override in values:
            _judge_value(composer, judged.config, override, judged)
        OmegaConf.set_struct(judged.config, True)
    return judged


def key_of(line: str) -> str:
    """The config key that an override sets; a group's (``logger=csv``) is that of its node."""
    return line.partition("=")[0].lstrip("+~").partition("@")[0].replace("/", ".")


def _parse(composer: Composer, line: str, faults: list[str]) -> Override | None:
    """One override as Hydra reads it; None, and a fault, if it cannot."""
    try:
        override = read_override(line)
    except HydraException:
        if "=" in line or line.startswith("~"):
            faults.append(f"{line}: this cannot be read; quote what holds blanks, commas or brackets: 'key=\"value\"'")
        else:
            hint = did_you_mean(line, composer.options("experiment"), "experiment=")
            faults.append(f"{line}: not of the form key=value" + (f"; {hint}" if hint else ""))
        return None
    if override.is_sweep_override():
        faults.append(f"{line}: several values need -m, one run for each (a list is written [a,b])")
        return None
    return override


# --- groups --------------------------------------------------------------------------------------------------------


def _names_group(composer: Composer, override: Override) -> bool:
    options = composer.options(override.key_or_group)
    if not options:
        return False
    # A dict or number for a group's name is meant for the key of the same name (data={…}); but debug=nan is an option.
    value = override.value()
    return override.is_delete() or value is None or isinstance(value, (str, list)) or _typed(override) in options


def _typed(override: Override) -> str:
    return "" if override.is_delete() else override.get_value_string().strip()


def _judge_group(composer: Composer, override: Override, judged: Judged) -> None:
    group, line, value = override.key_or_group, override.input_line or "", override.value()
    options = composer.options(group)
    if override.is_delete():
        judged.lines[line] = line
    elif value is None:  # Hydra knows no group=null
        judged.lines[line] = f"{group}=none" if "none" in options else f"~{group}"
    elif not isinstance(value, (str, list)):  # Hydra reads nan as a number
        judged.lines[line] = f"{override.get_key_element()}='{_typed(override)}'"
    else:
        chosen = value if isinstance(value, list) else [value]
        normal = line
        for option in (str(option) for option in chosen if option not in options):
            hint = did_you_mean(option, options) or f"there are: {', '.join(options)}"
            judged.faults.append(f"{line}: {group} has no option '{option}'; {hint}")
            judged.misspelt.add(group)
            nearest = near(option, options, count=1)
            normal = normal.replace(option, nearest[0]) if nearest else ""
        if normal:
            judged.lines[line] = normal


def _compose_groups(composer: Composer, judged: Judged) -> DictConfig | None:
    """The config with the chosen groups, open for changes. A choice that cannot be composed becomes a fault."""
    try:
        config = composer(list(judged.lines.values()))
    except Exception as error:
        guilty = _first_guilty(composer, judged.lines)
        reason = explain(error)
        if guilty and "No match in the defaults list" in reason:
            reason = f"this experiment has no {guilty.partition('=')[0]} to choose"
        judged.faults.append(f"{guilty}: {reason}" if guilty else reason)
        return None
    config = config.copy()
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    return config


def _first_guilty(composer: Composer, lines: Mapping[str, str]) -> str | None:
    """The first override, as typed, with which composing fails."""
    for count in range(len(lines) + 1):
        try:
            composer(list(lines.values())[:count])
        except Exception:
            return list(lines)[count - 1] if count else None
    return None


# --- keys ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """How far a dotted key leads into a config: the last node on the way, its path, and what is left of the key."""

    node: Any
    where: str
    rest: tuple[str, ...]


def _judge_value(composer: Composer, config: DictConfig, override: Override, judged: Judged) -> None:
    key, line = override.key_or_group, override.input_line or ""
    if "/" in key or override.package is not None:
        groups = composer.groups()
        hint = did_you_mean(key, groups) or f"there are: {', '.join(groups)}"
        judged.faults.append(f"{line}: there is no group '{key}'; {hint}")
        return
    place = _find(config, key)
    fault = _fault_of(composer, config, place, override) if place.rest else None
    if fault is None:
        fault = _apply(config, override)
    if fault is not None:
        judged.faults.append(f"{line}: {fault}")
        return
    # Without '+' Hydra refuses an argument that is not in the yaml, with it a key that is; '++' does both.
    as_typed = override.is_delete() or (not place.rest and override.type is OverrideType.CHANGE)
    judged.lines[line] = line if as_typed else f"++{line.lstrip('+')}"


def _find(config: DictConfig, key: str) -> _Place:
    node: Any = config
    parts = key.split(".")
    for depth, part in enumerate(parts):
        place = _Place(node, ".".join(parts[:depth]), tuple(parts[depth:]))
        if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        elif isinstance(node, DictConfig) and not _is_unset(node) and part in node.keys():  # noqa: SIM118 - null counts
            node = node._get_node(part)
        else:
            return place
        if node._is_interpolation() and depth < len(parts) - 1:
            node = node._maybe_dereference_node()
    return _Place(node, key, ())


def _is_unset(node: Any) -> bool:
    return node is None or node._is_none() or node._is_missing()


def _apply(config: DictConfig, override: Override) -> str | None:
    key = override.key_or_group
    try:
        if override.is_delete():
            parent, _, last = key.rpartition(".")
            del (OmegaConf.select(config, parent) if parent else config)[last]
        else:
            OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
    except (OmegaConfBaseException, ValueError, AttributeError, TypeError) as error:
        return explain(error)
    return None


def _fault_of(composer: Composer, config: DictConfig, place: _Place, override: Override) -> str | None:
    """A key that is not in the yaml: fine where nothing is yet, or as an argument of a ``_target_``; else a fault."""
    node, name = place.node, place.rest[0]
    if isinstance(node, ListConfig):
        return f"'{place.where}' is a list with entries 0 to {len(node) - 1}"
    if override.is_delete():
        return f"there is no '{override.key_or_group}' to take away"
    if _is_unset(node):  # null or ???: what is put there now makes the node
        return None
    if not isinstance(node, DictConfig):
        return f"'{place.where}' is a value and holds no '{name}'"
    signature = _signature(composer, node, place.where)
    if signature is None and override.type in (OverrideType.ADD, OverrideType.FORCE_ADD):
        return None  # a plain dict takes any key, if told so
    if signature is not None and (name in signature.parameters or signature.open or name.startswith("_")):
        return None
    return _unknown_key(composer, config, place, list(signature.parameters) if signature else [])


def _signature(composer: Composer, node: DictConfig, where: str) -> Signature | None:
    """What names may be added to a node; None for a plain dict."""
    if not where:
        return signatures.find(SCHEMAS[composer.verb])
    if where.startswith("stages."):
        return signatures.OPEN  # a stage's keys are held against the config that they make
    target = node.get("_target_")
    if not isinstance(target, str):
        return None
    try:
        return signatures.find(target)
    except TargetNotFound:
        return signatures.OPEN  # said once, with the tree


def _unknown_key(composer: Composer, config: DictConfig, place: _Place, arguments: Sequence[str]) -> str:
    node, where, name = place.node, place.where, place.rest[0]
    siblings = [str(key) for key in node if not str(key).startswith("_") and (where or key != "hydra")]
    groups = [] if where else [group for group in composer.groups() if "/" not in group]
    known = list(dict.fromkeys([*siblings, *arguments, *groups]))
    paths: dict[str, list[str]] = {}  # by their last part, for who knows the name but not the place
    for path in _paths(config):
        paths.setdefault(path.rpartition(".")[2], []).append(path)
    hint = (
        did_you_mean(name, known, f"{where}." if where else "")
        or _these(paths.get(name, []))
        or _these([path for word in near(name, paths, count=1) for path in paths[word]])
        or (f"it has: {', '.join(known)}" if arguments else f"to add it, give +{'.'.join([where, *place.rest])}=…")
    )
    return f"'{where or composer.verb}' has no key '{name}'; {hint}"


def _these(paths: Sequence[str]) -> str:
    return f"did you mean {listed([repr(path) for path in paths[:3]], 'or')}?" if paths else ""


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


_PREFIX = re.compile(r"^\w+ raised while resolving interpolation: ")


def explain(error: BaseException) -> str:
    """The innermost reason of Hydra's or OmegaConf's exception, on one line."""
    reason = type(error).__name__
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MarkedYAMLError) and link.problem_mark is not None:
            return f"'{link.problem_mark.name}' is not yaml: line {link.problem_mark.line + 1}, {link.problem}"
        if text := str(link).strip():
            reason = _PREFIX.sub("", text.splitlines()[0].strip()).strip('"')
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return reason
