"""Which run a command continues: a named one, the newest unfinished one of its kind, or none."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kinoscope.errors import Refusal
from kinoscope.runs import provenance
from kinoscope.runs.build import plain
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.signature import EXTENSIBLE, flatten, is_inside

log = logging.getLogger("kinoscope")


@dataclass(frozen=True)
class Found:
    """The config to train with, and the folder to continue in (None: a new one, or ``resume=auto`` looks for it)."""

    config: DictConfig
    folder: RunFolder | None
    finished: RunFolder | None = None  # nothing is left to do


def find(config: DictConfig, overrides: Sequence[str]) -> Found:
    """Reads ``config.resume``.

    A resumed run keeps the config of its folder. Overrides may change what lies outside its signature (logger,
    workers, …) and raise ``trainer.max_*``.

    Raises:
        Refusal: not a run folder, or overrides that would make it another run; all of them are listed.
    """
    if config.resume is None or config.resume == "auto":
        return Found(config, None)
    folder = RunFolder.open(config.resume)
    stored = folder.read_config()
    raised = _apply(stored, config, overrides)
    _warn_of_changed_commit(folder)
    done = folder.read_summary()["status"] == "finished" and not raised
    return Found(stored, folder, finished=folder if done else None)


def _apply(stored: DictConfig, composed: DictConfig, overrides: Sequence[str]) -> bool:
    """Puts the allowed overrides into ``stored``; returns whether the training was made longer."""
    asked, kept = plain(composed), plain(stored)
    refused: list[str] = []
    raised = False
    for key in map(_key, overrides):
        if key in ("resume", "output_dir", "data_dir", "check") or key.startswith("hydra"):
            continue
        if key == "experiment":  # typed again with the same command: its values are in the folder's config
            if asked["name"] != kept["name"]:
                refused.append(f"experiment={asked['name']} (the run is {kept['name']})")
            continue
        value, before = _select(asked, key), _select(kept, key)
        if value == before:
            continue
        ours, theirs = (flatten({key: node}) for node in (value, before))
        changed = [leaf for leaf in {**ours, **theirs} if ours.get(leaf, _ABSENT) != theirs.get(leaf, _ABSENT)]
        if key in EXTENSIBLE and _raises(value, before):
            raised = True
        elif any(is_inside(leaf) for leaf in changed):
            refused.append(f"{key}={value} (the run has {'no such key' if before is _ABSENT else before})")
            continue
        OmegaConf.update(stored, key, value, merge=False, force_add=True)
    if refused:
        raise Refusal(
            f"resume: {', '.join(refused)} would make this another run; leave {'it' if len(refused) == 1 else 'them'} "
            "out, or start a new run"
        )
    return raised


_ABSENT = object()


def _key(override: str) -> str:
    """The config key that an override sets; a group's (``logger=csv``) is that of its node."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def _select(config: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return _ABSENT
        config = config[part]
    return config


def _raises(value: object, before: object) -> bool:
    if isinstance(value, int | float) and isinstance(before, int | float):
        unlimited = {-1}
        return value in unlimited or (before not in unlimited and value > before)
    return True  # max_time, or a limit where there was none before


def newest(config: DictConfig, signature: str) -> RunFolder | None:
    """For ``resume=auto``: the newest unfinished, not living run of this signature; None starts a new one."""
    if config.resume != "auto":
        return None
    parent = Path(config.output_dir) / config.name
    for path in sorted(parent.glob(f"*-{signature}"), reverse=True):
        try:
            folder = RunFolder.open(path)
            status = folder.read_summary().get("status")
        except (Refusal, json.JSONDecodeError):
            continue
        if status in ("running", "interrupted") and not folder.is_live():
            _warn_of_changed_commit(folder)
            return folder
    return None


def require_same_data(folder: RunFolder, data_hash: str) -> None:
    """Raises `Refusal` if the data are not those that the run began with."""
    before = json.loads(folder.provenance_file.read_text())["data_hash"]
    if before != data_hash:
        raise Refusal(
            f"resume: the data have changed since '{folder.path}' began (hash {before[:8]}, now {data_hash[:8]}); "
            "bring the old ones back, or start a new run"
        )


def _warn_of_changed_commit(folder: RunFolder) -> None:
    try:
        before = json.loads(folder.provenance_file.read_text())["git"]
    except (OSError, ValueError, KeyError):
        return
    now = provenance.git_state(Path(__file__).parent)
    if before and now and before["commit"] != now["commit"]:
        log.warning("the code has changed since this run began (%.8s, now %.8s)", before["commit"], now["commit"])
