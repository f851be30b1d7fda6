"""Where a run came from: code, versions, command, host, data."""

from __future__ import annotations

import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "kinoscope",
    "torch",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "wandb",
    "numpy",
    "av",
    "decord",
    "torchcodec",
)
PATIENCE = 60  # seconds for git, of which a large checkout on a slow disk takes many
MOST_DIFF = 1_000_000  # characters of uncommitted changes that are kept
MOST_UNTRACKED = 1000  # names of files that git does not follow


def collect(seed: int, data_hash: str, init_from: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything needed to know, later, what exactly was run.

    Args:
        seed: of the run.
        data_hash: of its data.
        init_from: the run whose weights it begins with, see warm_start.py.
    """
    import torch

    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "working_directory": str(Path.cwd()),
        "seed": seed,
        "data_hash": data_hash,
        "init_from": None if init_from is None else dict(init_from),
        "git": git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version(), **versions()},
        "host": {
            "name": socket.gethostname(),
            "platform": platform.platform(),
            "cpu": cpu(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def cpu() -> str:
    """The processor's name, without which a number of seconds says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str | None]:
    """Installed version of each package a result depends on; None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the checkout that holds ``folder``; None outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(folder, "diff", "HEAD") or ""
    # What git does not follow is named, not kept: it may be anything. A class of one's own may be among it.
    untracked = (_git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", ":/") or "").splitlines()
    return {
        "commit": commit,
        "dirty": bool(diff or untracked),
        "diff": diff[:MOST_DIFF],
        "untracked": untracked[:MOST_UNTRACKED],
    }


def _git(folder: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *command],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
