"""``kinoscope sync``: sends to W&B's server what it does not have of the runs on this disk."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from kinoscope.console import show
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.launch.processes import Child
from kinoscope.runs.wandb_files import has_account, is_sent, unsent_files

log = logging.getLogger("kinoscope")

AT_ONCE = 100  # files per command, whose length is limited


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """The verb: prints one line for each file of records, as it was sent or would be."""
    if not Path(config.output_dir).is_dir():
        raise Refusal(f"output_dir: there is no folder '{config.output_dir}'; name the one that holds the runs")
    files = unsent_files(config.output_dir)
    if not files:
        log.info("W&B: nothing waits in '%s'", config.output_dir)
        return 0
    if config.dry:
        show(*files)
        return 0
    if not has_account():
        raise Refusal(
            f"W&B has no API key here, and {len(files)} parts of runs wait to be sent: 'wandb login' once, or set "
            "WANDB_API_KEY; dry=true lists them"
        )
    for batch in _batches(files):
        _send(batch)
        show(*filter(is_sent, batch))
    left = [file for file in files if not is_sent(file)]
    if left:
        raise KinoscopeError(f"W&B has not taken {len(left)} of {len(files)}, as '{left[0]}'; run this again later")
    return 0


def _batches(files: Sequence[Path]) -> Iterator[list[Path]]:
    """The parts of one run stay together: W&B appends them in the order of their beginning."""
    batch: list[Path] = []
    for position, file in enumerate(files):
        new_run = position == 0 or file.parents[1] != files[position - 1].parents[1]
        if new_run and len(batch) >= AT_ONCE:
            yield batch
            batch = []
        batch.append(file)
    yield batch


def _send(files: Sequence[Path]) -> None:
    child = Child(
        [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, files)],
        stdout=2,  # stdout is for what was sent
    )
    try:
        child.wait()
    finally:
        child.end()
