"""Which run a command continues: a named one, the newest unfinished one of its kind, or none."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from kinoscope.config.compose import plain
from kinoscope.config.overrides import key_of
from kinoscope.errors import Refusal
from kinoscope.runs import provenance
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.signature import EXTENSIBLE, canonical, flatten, is_inside

if TYPE_CHECKING:
    from kinoscope.runs.warm_start import WarmStart

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
    done = folder.read_summary()["status"] == "finished" and not raised
    return Found(stored, folder, finished=folder if done else None)


def _apply(stored: DictConfig, composed: DictConfig, overrides: Sequence[str]) -> bool:
    """Puts the allowed overrides into ``stored``; returns whether the training was made longer."""
    asked, kept = plain(composed), plain(stored)
    flat = flatten(kept)
    refused: list[str] = []
    raised = False
    callbacks = {name: node for part in (asked, kept) for name, node in part["callbacks"].items() if node}
    for key in map(key_of, overrides):
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
        changed = [
            leaf
            for leaf in {**ours, **theirs}
            if canonical(leaf, ours.get(leaf, _ABSENT), flat) != canonical(leaf, theirs.get(leaf, _ABSENT), flat)
        ]
        if key in EXTENSIBLE and _raises(value, before):
            raised = True
        elif any(is_inside(leaf, callbacks) for leaf in changed):
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


def _select(config: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return _ABSENT
        config = config[part]
    return config


def _raises(value: Any, before: Any) -> bool:
    """Whether a limit of the training (epochs, steps, or a time) is higher than the one before."""
    unlimited = (None, -1, _ABSENT)
    return value in unlimited or (before not in unlimited and _amount(value) > _amount(before))


def _amount(limit: Any) -> float:
    """A number as it is; a time, ``"DD:HH:MM:SS"`` or {days, hours, …}, in seconds. Raises `Refusal` for any other."""
    if isinstance(limit, str):
        limit = dict(zip(("days", "hours", "minutes", "seconds"), limit.split(":"), strict=False))
    if not isinstance(limit, Mapping):
        return limit
    try:
        return timedelta(**{str(unit): float(count) for unit, count in limit.items()}).total_seconds()
    except (TypeError, ValueError) as error:
        raise Refusal(f"trainer.max_time is 'DD:HH:MM:SS', or {{days: …, hours: …}}: {error}") from None


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
            return folder
    return None


def take_up(config: DictConfig, folder: RunFolder) -> None:
    """Gives ``config`` what ``resume=auto`` finds in the folder: its thread count, and how long it is to train."""
    stored = folder.read_config()
    for key in ("threads", *EXTENSIBLE):
        OmegaConf.update(config, key, OmegaConf.select(stored, key), merge=False, force_add=True)


def require_same_data(folder: RunFolder, data_hash: str) -> None:
    """Raises `Refusal` if the data are not those that the run began with."""
    before = json.loads(folder.provenance_file.read_text())["data_hash"]
    if before != data_hash:
        raise Refusal(
            f"resume: the data have changed since '{folder.path}' began (hash {before[:8]}, now {data_hash[:8]}); "
            "bring the old ones back, or start a new run"
        )


def require_same_devices(folder: RunFolder, devices: int) -> None:
    """Raises `Refusal` if the run began with another number of devices: each had its share of every batch."""
    before = folder.read_summary().get("devices", 1)
    if before != devices:
        raise Refusal(
            f"resume: '{folder.path}' has trained on {before} device{'s' * (before != 1)}, got {devices}: give it as "
            "many (trainer.devices, trainer.num_nodes), or start a new run"
        )


def require_same_start(folder: RunFolder, start: WarmStart | None) -> None:
    """Raises `Refusal` if a run that begins anew would begin with other weights than the first time."""
    before = json.loads(folder.provenance_file.read_text()).get("init_from")
    if start is not None and before is not None and before["sha256"] != start.origin["sha256"]:
        raise Refusal(
            f"resume: '{start.origin['folder']}' has changed since '{folder.path}' began with its weights, and of this "
            "run nothing was saved yet; start a new run"
        )


def warn_of_changed_commit(folder: RunFolder) -> None:
    """Says so if the code is not that of the run's beginning."""
    try:
        before = json.loads(folder.provenance_file.read_text())["git"]
    except (OSError, ValueError, KeyError):
        return
    now = provenance.git_state(Path(__file__).parent)
    if before and now and before["commit"] != now["commit"]:
        log.warning("the code has changed since this run began (%.8s, now %.8s)", before["commit"], now["commit"])
