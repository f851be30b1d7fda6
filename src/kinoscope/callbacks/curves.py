"""Learning curves from a run's ``metrics.csv``, for whatever it logged."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from kinoscope.callbacks.drawing import (
    HEADER,
    INK,
    MARGIN,
    MUTED,
    SERIES,
    SMALL,
    TEXT,
    WIDTH,
    Sheet,
    extents,
    log,
    percent,
    publish,
)
from kinoscope.callbacks.series import MANY_POINTS, Series, is_share, names_of, panels_of, read_series, smoothed, style
from kinoscope.errors import KinoscopeError
from kinoscope.runs.loggers import MetricsFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE = 0.02  # of a run's time that its intermediate curves may take to draw


class LearningCurves(pl.Callback):
    """Draws ``learning_curves.png`` from ``metrics.csv`` in the run folder during and after the training.

    Args:
        every_n_epochs: epochs between two drawings. One is left out while drawing would take more than 2 % of the
            time; the last one never is.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.every_n_epochs = every_n_epochs
        self._not_before = 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        started = time.monotonic()
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0 and started >= self._not_before:
            self._publish(trainer, final=False)
            ended = time.monotonic()
            self._not_before = ended + (ended - started) / SHARE

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._publish(trainer, final=True)

    def _publish(self, trainer: pl.Trainer, final: bool) -> None:
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "metrics.csv"
        # The newest row stays in memory until a later step begins.
        newest = [logger.newest for logger in trainer.loggers if isinstance(logger, MetricsFile)]
        try:
            sheet = _draw(path, newest)
        except KinoscopeError as error:
            if final:
                log.warning("no learning curves: %s", error)
            return
        publish(trainer, sheet.picture(), "learning_curves", final=final)


def draw_curves(csv_path: str | Path) -> Figure:
    """Panels of related metrics over steps, training against validation, with the best validation marked.

    Args:
        csv_path: a ``metrics.csv`` with the columns ``step``, ``epoch``, ``seconds`` and ``<stage>/<term>``; any may
            be missing but ``step``, and any cell may be empty.

    Raises:
        KinoscopeError: there is no such file, or nothing in it that could be drawn.
    """
    return _draw(Path(csv_path)).figure


def _draw(csv_path: Path, newest: Sequence[Mapping[str, Any]] = ()) -> Sheet:
    series, length = read_series(csv_path, newest)
    if not series:
        raise KinoscopeError(f"{csv_path} holds no training or validation metrics yet")
    panels = panels_of(series)
    columns = {1: 1, 2: 2, 3: 3, 4: 2}.get(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    gap, ticks = 0.4, 0.5
    width = (WIDTH - 2 * MARGIN - (columns - 1) * gap) / columns
    keys = {title: _legend_rows(names_of(lines), width - ticks) for title, lines in panels.items()}
    legend = 0.47 + 0.17 * max(map(len, keys.values()))
    plot = 2.6 if rows == 1 else 2.0
    pitch = legend + plot + 0.62
    sheet = Sheet(HEADER + rows * pitch + 0.08, "Learning curves", length)
    for i, (title, lines) in enumerate(panels.items()):
        left, top = MARGIN + (i % columns) * (width + gap), HEADER + (i // columns) * pitch
        axes = sheet.axes(left + ticks, top + legend, width - ticks, plot)
        style(axes, lines, share=title == "Accuracy")
        colours = _plot(axes, lines)
        heading = sheet.text(left + ticks, top + 0.22, title, TEXT + 2, weight="bold")
        _mark_best(sheet, axes, lines, left + width, top + 0.22, width - ticks - sheet.extent(heading) - 0.15)
        _legend(sheet, lines, colours, keys[title], left + ticks, top + 0.47)
        sheet.text(left + width, top + legend + plot + 0.38, "step", SMALL, MUTED, align="right")
    return sheet


def _training_terms(lines: Sequence[Series]) -> list[str]:
    return [line.term for line in lines if line.stage == "train"]


def _dashed(line: Series, terms: Sequence[str]) -> bool:
    """Validation of a term that shares its panel with other training terms."""
    return line.stage != "train" and len(terms) > 1 and line.term in terms


def _plot(axes: Axes, lines: Sequence[Series]) -> list[str]:
    """Draws the series; returns each one's colour.

    One training metric: blue, and every validation metric in a colour of its own. Several (the players of a game): a
    colour for each term, dashed for its validation.
    """
    terms = _training_terms(lines)
    colours = []
    others = 1
    for line in lines:
        validation = line.stage != "train"
        if not validation or _dashed(line, terms):
            colour = SERIES[terms.index(line.term) % len(SERIES)]
        else:
            colour = SERIES[(max(len(terms), 1) + others - 1) % len(SERIES)]
            others += 1
        colours.append(colour)
        raw = len(line.values) > MANY_POINTS and not validation
        values = smoothed(line.values) if raw else line.values
        if raw:
            axes.plot(line.steps, line.values, color=colour, alpha=0.22, linewidth=0.8)
        few = len(line.values) <= 30
        axes.plot(
            line.steps,
            values,
            color=colour,
            linewidth=2.0 if validation else 1.5,
            linestyle=(0, (2.2, 1.6)) if _dashed(line, terms) else "-",
            marker="o" if few and (validation or len(line.values) == 1) else None,
            markersize=3.5,
            solid_capstyle="round",
        )
    return colours


def _mark_best(sheet: Sheet, axes: Axes, lines: Sequence[Series], right: float, base: float, room: float) -> None:
    """Rings the best point of the panel's main validation metric, and says where it is beside the panel's title."""
    # While two players pull a loss in opposite directions, its least value is not its best.
    if sum(line.stage == "train" and "loss" in line.term for line in lines) > 1:
        return
    for line in lines:
        best = line.best()
        if line.stage == "train" or best is None:
            continue
        step, value = line.steps[best], line.values[best]
        axes.plot(step, value, "o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1.2)
        shown = percent(value) if is_share(line.term) else f"{value:.4g}"
        sheet.text(right, base, f"○ best {shown} at step {step:,}", SMALL + 0.5, align="right", room=room)
        return


STROKE, SPACE = 0.21, 0.16  # inches in the legend: before a name, and after it


def _legend_rows(names: Sequence[str], room: float) -> list[list[str]]:
    """Breaks the legend's names into rows no longer than ``room``."""
    rows: list[list[str]] = []
    used = math.inf
    for name, extent in zip(names, extents(names, SMALL), strict=True):
        if used + STROKE + extent > room:
            rows.append([])
            used = 0.0
        rows[-1].append(name)
        used += STROKE + extent + SPACE
    return rows


def _legend(
    sheet: Sheet, lines: Sequence[Series], colours: Sequence[str], rows: list[list[str]], left: float, base: float
) -> None:
    """The series' names above the plot, each behind a stroke as the series is drawn."""
    terms = _training_terms(lines)
    strokes = iter(zip(colours, [_dashed(line, terms) for line in lines], strict=True))
    for row in rows:
        x = left
        for name in row:
            colour, dashed = next(strokes)
            for begin, end in ((0.0, 0.065), (0.095, 0.16)) if dashed else ((0.0, 0.16),):
                sheet.bar(x + begin, base - 0.055, end - begin, 0.03, colour)
            x += STROKE + sheet.extent(sheet.text(x + STROKE, base, name, SMALL)) + SPACE
        base += 0.17
