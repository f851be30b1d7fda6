"""From a config node to the object that its ``_target_`` makes.

Hydra's own list of forbidden targets lets ``joblib.load`` and ``torch.load`` through, which run what is in a file. So a
config from elsewhere is built with a list of what is *allowed*, held against the whole tree before anything is built.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kinoscope.config.types import is_sequence
from kinoscope.errors import Refusal

# Parts of kinoscope that read other configs, start processes or decide whom to trust: no stored config needs them.
_NEVER = tuple(f"kinoscope.{part}" for part in ("cli", "config", "launch", "runs", "verbs"))


def instantiate(node: DictConfig | Mapping[str, Any], allowed: tuple[str, ...] | None = None, **extra: Any) -> Any:
    """Builds the object of a node and of all nodes in it. Its arguments are plain containers, never OmegaConf's.

    Args:
        node: a node with ``_target_``; interpolations are resolved first.
        allowed: packages (``torch.nn``) whose classes and functions may be built; None trusts the config.
        extra: further arguments of the target, which win over the node's.

    Raises:
        Refusal: a target outside ``allowed``, or one that is not there.
        Exception: what a constructor raised (a ``ValueError`` for a value it rejects), without Hydra's wrapping.
    """
    import hydra.utils
    from hydra.errors import InstantiationException

    content = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    if allowed is not None:
        for path, target in targets(content):
            _require_allowed(target, path, allowed)
    try:
        return hydra.utils.instantiate(content, _convert_="all", **extra)
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, (ImportError, InstantiationException)):
            raise Refusal(str(error).splitlines()[0]) from error
        raise cause from None


def targets(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each ``_target_`` in plain containers, with where it stands."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            where = f"{path}.{key}" if path else str(key)
            if key == "_target_":
                yield where, value
            else:
                yield from targets(value, where)
    elif is_sequence(content):
        for index, value in enumerate(content):
            yield from targets(value, f"{path}[{index}]")


def _require_allowed(target: Any, path: str, allowed: tuple[str, ...]) -> None:
    refusal = Refusal(
        f"{path}: '{target}' is not in {', '.join(allowed)}; a stored config may build nothing else (trust=[…] adds "
        "a package of your own)"
    )
    if not isinstance(target, str) or not _inside(target, allowed) or _inside(target, _NEVER):
        raise refusal
    # torch.nn.functional.torch.load is spelt inside an allowed package, but defined elsewhere.
    definition = inspect.unwrap(_locate(target, path))
    home = getattr(definition, "__module__", None)
    if not callable(definition) or not isinstance(home, str) or not _inside(home, allowed) or _inside(home, _NEVER):
        raise refusal


def _inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _locate(target: str, path: str) -> Any:
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        try:
            for part in parts[length:]:
                value = getattr(value, part)
        except AttributeError:
            break
        return value
    raise Refusal(f"{path}: there is no '{target}'")
