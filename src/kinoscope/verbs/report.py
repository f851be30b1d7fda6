"""``kinoscope report``: how one run went, or how several compare. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from kinoscope.callbacks.comparison import draw_comparison
from kinoscope.callbacks.drawing import save
from kinoscope.console import show
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs import report

log = logging.getLogger("kinoscope")


def run(config: DictConfig, overrides: Sequence[str]) -> int:
    """The verb: prints a run's page, or a table of several runs and the path of their picture as the last line."""
    if (config.run is None) == (config.runs is None):
        raise Refusal("give run=<folder> for one run, or runs=<folder, pattern or list> to compare several")
    if config.run is not None:
        show(report.page(report.read(config.run)))
        return 0
    wanted = [config.runs] if isinstance(config.runs, str) else list(config.runs)
    runs = report.find(wanted)
    sheet = draw_comparison(runs, report.to_draw(runs, config.monitor))
    path = Path(config.output) if config.output else _folder(wanted) / "report.png"
    try:
        save(sheet.picture(), path)
    except OSError as error:
        raise KinoscopeError(f"'{path}' cannot be written ({error.strerror or error}); give output=<file>") from error
    show(report.comparison(runs), path)
    return 0


def _folder(wanted: Sequence[str]) -> Path:
    """Where the picture goes: into the folder that was named, else here."""
    return Path(wanted[0]) if len(wanted) == 1 and Path(wanted[0]).is_dir() else Path()
