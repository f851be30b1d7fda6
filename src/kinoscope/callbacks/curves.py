"""Learning curves from a run's ``metrics.csv``, for whatever it logged."""

from __future__ import annotations

import csv
import itertools
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from kinoscope.callbacks.drawing import (
    HEADER,
    INK,
    MARGIN,
    MUTED,
    RULE,
    SERIES,
    SMALL,
    TEXT,
    WIDTH,
    Sheet,
    extents,
    log,
    percent,
    plural,
    publish,
)
from kinoscope.errors import KinoscopeError
from kinoscope.runs.loggers import MetricsFile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARE = 0.02  # of a run's time that its intermediate curves may take to draw
MANY_POINTS = 100  # more points than this are also drawn smoothed
HIGHER_IS_BETTER = ("accuracy", "hit", "elbo", "log_likelihood", "psnr", "ssim", "inception")
LOWER_IS_BETTER = ("loss", "error", "nll", "nats", "bits", "fid", "kid")


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


@dataclass(frozen=True)
class Series:
    """One logged metric: ``steps`` ascending, ``values`` finite."""

    stage: str
    term: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def name(self) -> str:
        """In words, less what the panel's title says: ``training``, ``validation video``, ``D(real)``."""
        words = [word for word in re.split(r"[^A-Za-z0-9]+", self.term) if word]
        about = set(words) & {"real", "fake"}
        if about:
            rest = f"D({about.pop()})"
        elif _panel(self.term) in ("Loss", "Accuracy"):
            rest = " ".join(word for word in words if word not in ("loss", "accuracy")).replace("hit", "hit@")
        else:
            rest = ""
        return rest or "training" if self.stage == "train" else f"validation {rest}".rstrip()

    def best(self) -> int | None:
        """The position of the best value, or None where it is not known what is better."""
        sign = {True: 1, False: -1, None: 0}[_higher_is_better(self.term)]
        return max(range(len(self.values)), key=lambda i: sign * self.values[i]) if sign else None


def draw_curves(csv_path: str | Path) -> Figure:
    """Panels of related metrics over steps, training against validation, with the best validation marked.

    Args:
        csv_path: a ``metrics.csv`` with the columns ``step``, ``epoch``, ``seconds`` and ``<stage>/<term>``; any may
            be missing but ``step``, and any cell may be empty.

    Raises:
        KinoscopeError: there is no such file, or nothing in it that could be drawn.
    """
    return _draw(Path(csv_path)).figure


def read_series(csv_path: Path, newest: Sequence[Mapping[str, Any]] = ()) -> tuple[list[Series], str]:
    """All training and validation metrics of the file, and in words how long the run was.

    Where a step has several rows, the last value of a metric counts.

    Args:
        csv_path: the file; it may be missing if there are newest rows.
        newest: rows that are not in the file yet.
    """
    rows: list[Mapping[str, Any]] = []
    if csv_path.exists() or not newest:
        try:
            with csv_path.open(newline="", encoding="utf-8") as file:
                rows.extend(csv.DictReader(file))
        except OSError as error:
            raise KinoscopeError(f"{csv_path} cannot be read: {error.strerror}") from error
    rows.extend(newest)
    points: dict[str, dict[int, float]] = {}
    length: dict[str, float] = {}
    for row in rows:
        step = _number(row.get("step"))
        if step is None:
            continue
        for column, cell in row.items():
            value = _number(cell)
            if value is None or not isinstance(column, str):
                continue
            if column in ("step", "epoch", "seconds"):
                length[column] = max(value, length.get(column, value))
            elif column.startswith(("train/", "val/")):
                points.setdefault(column, {})[int(step)] = value
    series = []
    for column, values in points.items():
        stage, term = column.split("/", 1)
        steps = sorted(values)
        series.append(Series(stage, term, tuple(steps), tuple(values[step] for step in steps)))
    words = [plural(int(length.get("step", 0)), "step")]
    if "epoch" in length:
        words.append(plural(int(length["epoch"]) + 1, "epoch"))
    if "seconds" in length:
        words.append(_duration(length["seconds"]))
    return series, ", ".join(words)


def panels_of(series: Sequence[Series]) -> dict[str, list[Series]]:
    """Which metrics share a panel: losses, accuracies, the critic's answers; any other term has its own.

    In a panel training comes first, then validation with its main metric first. A series equal to one that is already
    there (clip and video accuracy where a video has one view) is left out.
    """
    panels: dict[str, list[Series]] = {}
    order = sorted(series, key=lambda s: (s.stage != "train", "hit" in s.term, "clip" in s.term))
    for one in order:
        panel = panels.setdefault(_panel(one.term), [])
        if not any(other.stage == one.stage and other.values == one.values for other in panel):
            panel.append(one)
    return dict(sorted(panels.items(), key=lambda item: (item[0] != "Loss", item[0] != "Accuracy")))


def names_of(lines: Sequence[Series]) -> list[str]:
    """A panel's legend. Where clips are not told from videos, neither is named: the samples may be images."""
    names = [line.name for line in lines]
    return names if any(" clip" in name for name in names) else [name.replace(" video", "") for name in names]


def _panel(term: str) -> str:
    words = set(re.split(r"[^a-z]+", term.lower()))
    if words & {"real", "fake"}:
        return "Critic's answers"
    if "loss" in words:
        return "Loss"
    if _is_share(term):
        return "Accuracy"
    return term.replace("_", " ").capitalize()


def _is_share(term: str) -> bool:
    return "accuracy" in term or "hit" in term


def _higher_is_better(term: str) -> bool | None:
    if any(word in term for word in HIGHER_IS_BETTER):
        return True
    return False if any(word in term for word in LOWER_IS_BETTER) else None


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
        _style(axes, lines, share=title == "Accuracy")
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
        values = _smoothed(line.values) if raw else line.values
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


def _style(axes: Axes, lines: Sequence[Series], share: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    values = [value for line in lines for value in line.values]
    thousands = max(line.steps[-1] for line in lines) >= 10_000
    low, high = min(values), max(values)
    if low > 0 and high / low > 100:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if share:
        axes.set_ylim(min(low, 0.9) - 0.03, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.0f} %"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if thousands and x else f"{x:,.0f}"))
    axes.tick_params(length=0, labelsize=SMALL + 0.5, labelcolor=MUTED, pad=4)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set(visible=True, color=MUTED, linewidth=0.8)
    axes.margins(x=0.02)


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
        shown = percent(value) if _is_share(line.term) else f"{value:.4g}"
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


def _smoothed(values: Sequence[float]) -> list[float]:
    """Means over the neighbours on both sides, a fortieth of all points each; fewer towards the ends.

    A mean over the past alone would lag behind a falling loss.
    """
    sums = [0.0, *itertools.accumulate(values)]
    n, reach = len(values), len(values) // 40
    reaches = [min(reach, i, n - 1 - i) for i in range(n)]
    return [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reaches)]


def _number(cell: Any) -> float | None:
    """A finite number, or None: empty, missing, text, or not finite."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
