"""What a run's ``metrics.csv`` holds, as series over steps with names for people. Imports no torch."""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinoscope.callbacks.drawing import MUTED, RULE, SMALL, plural
from kinoscope.errors import KinoscopeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MANY_POINTS = 100  # more points than this are drawn smoothed
HIGHER_IS_BETTER = ("accuracy", "hit", "elbo", "log_likelihood", "psnr", "ssim", "inception")
LOWER_IS_BETTER = ("loss", "error", "nll", "nats", "bits", "fid", "kid")


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
        sign = {True: 1, False: -1, None: 0}[higher_is_better(self.term)]
        return max(range(len(self.values)), key=lambda i: sign * self.values[i]) if sign else None


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
        step = number(row.get("step"))
        if step is None:
            continue
        for column, cell in row.items():
            value = number(cell)
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
        words.append(duration(length["seconds"]))
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
    if is_share(term):
        return "Accuracy"
    return term.replace("_", " ").capitalize()


def is_share(term: str) -> bool:
    return "accuracy" in term or "hit" in term


def higher_is_better(term: str) -> bool | None:
    if any(word in term for word in HIGHER_IS_BETTER):
        return True
    return False if any(word in term for word in LOWER_IS_BETTER) else None


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over the neighbours on both sides, a fortieth of all points each; fewer towards the ends.

    A mean over the past alone would lag behind a falling loss.
    """
    sums = [0.0, *itertools.accumulate(values)]
    n, reach = len(values), len(values) // 40
    reaches = [min(reach, i, n - 1 - i) for i in range(n)]
    return [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reaches)]


def number(cell: Any) -> float | None:
    """A finite number, or None: empty, missing, text, or not finite."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def style(axes: Axes, lines: Sequence[Series], share: bool) -> None:
    """Scales, ticks and grid for these series; ``share`` shows values as percentages."""
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
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if thousands and x else f"{x:,.0f}"))
    axes.tick_params(length=0, labelsize=SMALL + 0.5, labelcolor=MUTED, pad=4)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set(visible=True, color=MUTED, linewidth=0.8)
    axes.margins(x=0.02)
