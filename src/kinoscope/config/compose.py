"""Composing a command's config: where the yaml lies, and Hydra's compose API around it."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from kinoscope.config import resolvers
from kinoscope.errors import Refusal

HYDRA_BASE = "1.3"


def config_folder() -> Path:
    """The installed ``kinoscope.configs``: the repository's ``configs/`` where the install is editable."""
    try:
        folder = Path(str(importlib.resources.files("kinoscope.configs").joinpath("train.yaml"))).parent
    except ModuleNotFoundError:  # run from a source tree that was never installed
        folder = Path(__file__).parents[3] / "configs"
    if not (folder / "train.yaml").is_file():
        raise Refusal(f"the configs are missing from '{folder}': install kinoscope again")
    return folder


class Composer:
    """One command's yaml, ready to be composed with any overrides. Use `composing`."""

    def __init__(self, verb: str, folders: Sequence[Path]) -> None:
        self.verb = verb
        self._folders = folders
        self._always = [f"hydra.searchpath=['file://{folder}']" for folder in folders[1:]]

    def __call__(self, overrides: Sequence[str] = ()) -> DictConfig:
        """The composed config with its ``hydra`` node, unresolved. Hydra's exceptions pass through."""
        config = hydra_compose(self.verb, [*self._always, *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return config

    def options(self, group: str) -> list[str]:
        """The options of a group, those in subfolders with their path (``video/c3d``); empty if there is no such."""
        roots = [folder / group for folder in self._folders]
        return sorted({file.relative_to(root).with_suffix("").as_posix() for root in roots for file in _yaml(root)})

    def groups(self) -> list[str]:
        """All folders that hold options, at any depth, but for Hydra's own."""
        found: set[str] = set()
        for root in self._folders:
            for file in _yaml(root):
                found.update(parent.as_posix() for parent in file.relative_to(root).parents)
        return sorted(group for group in found if group.partition("/")[0] not in (".", "hydra"))


def _yaml(root: Path) -> list[Path]:
    return [file for file in root.rglob("*.yaml") if not file.name.startswith((".", "_"))]


@contextmanager
def composing(verb: str, config_dir: str | Path | None = None) -> Iterator[Composer]:
    """Hydra ready to compose ``verb``'s config; what was set before is put back at the end.

    Args:
        verb: train, evaluate, sample or prepare.
        config_dir: a folder of the user's own yaml, searched after ours (``--config-dir``).
    """
    resolvers.register()
    before = HydraConfig.instance().cfg
    around = GlobalHydra.instance().hydra  # a command that is running, which composes its stages
    GlobalHydra.instance().clear()
    folders = [config_folder(), *([] if config_dir is None else [Path(config_dir).resolve()])]
    try:
        with initialize_config_dir(str(folders[0]), job_name="kinoscope", version_base=HYDRA_BASE):
            yield Composer(verb, folders)
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().hydra = around


def without_hydra(config: DictConfig) -> DictConfig:
    """What a run has of a composed config, its ``name`` fixed (Hydra's choices are lost with its node)."""
    own = config.copy()
    with open_dict(own):
        if "name" in own:
            own.name = config.name
        own.pop("hydra", None)
        own.pop("sweep", None)  # no job knows of it
    OmegaConf.set_readonly(own, None)
    return own


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers. OmegaConf's exceptions pass through, such as that of a missing value."""
    content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def compose(verb: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """The config of a command as its yaml and the overrides say, unchecked and unresolved.

    For tests and notebooks; `compose_checked` finds the faults as well.
    """
    with composing(verb, config_dir) as composer:
        return without_hydra(composer(overrides))


def compose_checked(verb: str, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """The config of a command after preflight.

    Raises:
        Refusal: one sentence for each fault in it, all together.
    """
    from kinoscope.config.preflight import preflight

    checked = preflight(verb, overrides, config_dir)
    if checked.faults:
        raise Refusal("; ".join(checked.faults))
    assert checked.config is not None
    return checked.config
