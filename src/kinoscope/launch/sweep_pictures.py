"""Two pictures of a sweep: every job as a line through its values to its result, and which values mattered.

No sweep ends for a picture: what cannot be drawn is said and left out.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kinoscope.launch.sweep_jobs import Job
from kinoscope.launch.sweep_table import Objectives, best, scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from kinoscope.callbacks.drawing import Sheet

SHARE = 0.02  # of a sweep's time that its intermediate pictures may take to draw
LOG_RATIO = 50.0  # numbers above zero that span more than this are shown on a logarithmic scale
MOST_AXES = 9
MOST_LABELS = 8


class Pictures:
    """Draws ``pictures/parallel_coordinates.png`` and ``pictures/importance.png`` in a sweep's folder.

    Args:
        folder: the sweep's.
        name: of the experiment.
        objectives: what is sought; the first one counts where there is room for one.
        log: whether a key is searched on a logarithmic scale; the numbers decide for those that are not named.
    """

    def __init__(
        self, folder: Path, name: str, objectives: Objectives, log: Mapping[str, bool] = MappingProxyType({})
    ) -> None:
        self.folder, self.name, self.objectives, self.log = folder / "pictures", name, objectives, log
        self._not_before = 0.0

    def draw(self, jobs: Sequence[Job], final: bool = False) -> None:
        """Draws what the jobs so far show; in between only if that takes little of the sweep's time."""
        began = time.monotonic()
        if not self.objectives or (not final and began < self._not_before):
            return
        for name, drawn in (("parallel_coordinates", parallel_coordinates), ("importance", importance)):
            try:
                sheet = drawn(jobs, self.objectives, self.name, self.log)
                if sheet is not None:
                    from kinoscope.callbacks.drawing import save

                    save(sheet.picture(), self.folder / f"{name}.png")
            except Exception as error:
                print(f"kinoscope: no picture '{name}': {error}", file=sys.stderr, flush=True)
        ended = time.monotonic()
        self._not_before = ended + (ended - began) / SHARE


@dataclass(frozen=True)
class Scale:
    """One vertical axis: where a value lies between 0 (bottom) and 1 (top), and what is written beside it.

    Attributes:
        place: value → height, or None where it has none.
        ticks: heights and their labels.
    """

    place: Callable[[Any], float | None]
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, values: Sequence[Any], log: bool | None = None) -> Scale:
        """A scale for these values: of numbers if all of them are, else one height for each word."""
        numbers = [number(value) for value in values]
        if any(value is None for value in numbers) or len({*numbers}) < 2:
            return cls._of_words(values)
        known = [value for value in numbers if value is not None]
        return cls._of_numbers(known, is_log(known) if log is None else log)

    @classmethod
    def _of_words(cls, values: Sequence[Any]) -> Scale:
        words = list(dict.fromkeys(str(value) for value in values))
        heights = {word: (i + 0.5) / len(words) for i, word in enumerate(words)}
        shown = tuple((height, word) for word, height in heights.items())
        return cls(lambda value: heights.get(str(value)), shown if len(shown) <= MOST_LABELS else ())

    @classmethod
    def _of_numbers(cls, values: Sequence[float], log: bool) -> Scale:
        low, high = min(values), max(values)
        bend = math.log10 if log else float
        bottom, top = bend(low), bend(high)

        def place(value: Any) -> float | None:
            found = number(value)
            return None if found is None or (log and found <= 0) else (bend(found) - bottom) / (top - bottom)

        different = sorted(set(values))
        if len(different) <= 5:
            marks = different
        elif log:
            marks = [low, *(10.0**e for e in range(math.ceil(bottom), math.floor(top) + 1)), high]
        else:
            marks = [low + part * (high - low) / 4 for part in range(5)]
        ticks: list[tuple[float, str]] = []
        for mark in marks:
            height = place(mark)
            if height is not None and (not ticks or height - ticks[-1][0] > 0.07):
                ticks.append((height, f"{mark:.3g}"))
        return cls(place, tuple(ticks))


def is_log(values: Sequence[float]) -> bool:
    """Whether numbers span so much that only their orders of magnitude can be told apart."""
    return min(values) > 0 and max(values) / min(values) > LOG_RATIO


def number(value: Any) -> float | None:
    """A finite number, also if it is text; None for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def varied(jobs: Sequence[Job]) -> list[str]:
    """The keys that have several values among the jobs."""
    keys = dict.fromkeys(key for job in jobs for key in job.values)
    return [key for key in keys if len({str(job.values.get(key)) for job in jobs}) > 1]


def parallel_coordinates(
    jobs: Sequence[Job], objectives: Objectives, name: str, log: Mapping[str, bool]
) -> Sheet | None:
    """Every job as a line through its values to its objectives; None while there is nothing to compare."""
    from kinoscope.callbacks.drawing import HEADER, MARGIN, MUTED, SMALL, TEXT, WIDTH, Sheet, plural

    keys = varied(jobs)[: MOST_AXES - len(objectives)]
    done = [(score, job) for job in jobs if (score := scores(job, objectives))]
    if not keys or len(done) < 2:
        return None
    front = best(jobs, objectives)
    left, top, height = MARGIN + 0.75, HEADER + 0.55, 3.9
    width = WIDTH - left - MARGIN - 0.75
    others = len(jobs) - len(done)
    subtitle = plural(len(done), "finished job") + (f", {others} that did not finish in grey" if others else "")
    chosen = "the best one" if len(front) == 1 else f"the {len(front)} that no other beats"
    sheet = Sheet(top + height + 0.42, f"Sweep of {name}", f"{subtitle}; {chosen} in vermillion")
    scales = [Scale.of([job.values.get(key) for job in jobs], log.get(key)) for key in keys]
    scales += [Scale.of([job.metric(objective) for _, job in done]) for objective in objectives]
    axes = sheet.axes(left, top, width, height)
    axes.set(xlim=(0, len(scales) - 1), ylim=(0, 1))
    _lines(axes, jobs, done, front, keys, objectives, scales)
    pitch = width / (len(scales) - 1)
    for i, title in enumerate([*keys, *objectives]):
        head, _, tail = title.replace("/", ".").rpartition(".") if i < len(keys) else title.rpartition("/")
        x = left + i * pitch
        sheet.text(x, top - 0.32, tail, TEXT + 1, weight="bold", align="center", room=pitch * 0.94)
        sheet.text(x, top - 0.14, head, SMALL, MUTED, align="center", room=pitch * 0.94)
        _axis(axes, i, scales[i], last=i >= len(keys))
    for i, mode in enumerate(objectives.values(), start=len(keys)):
        words = "more is better" if mode == "max" else "less is better"
        sheet.text(left + i * pitch, top + height + 0.24, words, SMALL, MUTED, align="center", room=pitch * 0.94)
    return sheet


def _lines(
    axes: Axes,
    jobs: Sequence[Job],
    done: Sequence[tuple[list[float], Job]],
    front: Sequence[Job],
    keys: Sequence[str],
    objectives: Objectives,
    scales: Sequence[Scale],
) -> None:
    """The jobs, worst first, so that the best lie on top; the better, the darker."""
    from kinoscope.callbacks.drawing import BLUE, RULE, VERMILLION

    ranked = sorted(done, key=lambda pair: pair[0], reverse=True)
    numbers = [job.number for _, job in ranked]
    for job in sorted(jobs, key=lambda job: numbers.index(job.number) if job.number in numbers else -1):
        values = [*(job.values.get(key) for key in keys)]
        if job.number in numbers:
            values += [job.metric(objective) for objective in objectives]
        heights = [scale.place(value) for scale, value in zip(scales, values, strict=False)]
        known = [(i, height) for i, height in enumerate(heights) if height is not None]
        share = (numbers.index(job.number) + 1) / len(numbers) if job.number in numbers else 0.0
        if job in front:
            look: dict[str, Any] = {"edgecolor": VERMILLION, "linewidth": 2.6, "zorder": 5}
        elif share:
            look = {"edgecolor": BLUE, "linewidth": 1.3, "alpha": 0.15 + 0.65 * share**2, "zorder": 3}
        else:
            look = {"edgecolor": RULE, "linewidth": 1.0, "zorder": 2}
        _curve(axes, known, **look)


def _curve(axes: Axes, points: Sequence[tuple[int, float]], **look: Any) -> None:
    """A line that leaves every axis level, so that lines which meet there can be told apart."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    if len(points) < 2:
        return
    corners: list[tuple[float, float]] = [points[0]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (x0 + x1) / 2
        corners += [(middle, y0), (middle, y1), (x1, y1)]
    codes = [Curve.MOVETO, *[Curve.CURVE4] * (len(corners) - 1)]
    axes.add_patch(PathPatch(Curve(corners, codes), facecolor="none", clip_on=False, **look))


def _axis(axes: Axes, x: int, scale: Scale, last: bool) -> None:
    from matplotlib.patheffects import withStroke

    from kinoscope.callbacks.drawing import INK, MUTED, PAPER, SMALL

    axes.plot([x, x], [0, 1], color=INK if last else MUTED, linewidth=1.2 if last else 0.8, zorder=6, clip_on=False)
    for height, words in scale.ticks:
        axes.annotate(
            words if len(words) <= 18 else f"{words[:17]}…",
            (x, height),
            xytext=(6 if last else -6, 0),
            textcoords="offset points",
            ha="left" if last else "right",
            va="center",
            size=SMALL + 0.5,
            color=INK,
            zorder=7,
            annotation_clip=False,
            path_effects=[withStroke(linewidth=3, foreground=PAPER)],
            parse_math=False,
        )


def importance(jobs: Sequence[Job], objectives: Objectives, name: str, log: Mapping[str, bool]) -> Sheet | None:
    """How much of the first objective's spread each value explains (functional ANOVA); None while it says nothing."""
    from kinoscope.callbacks.drawing import (
        BLUE,
        HEADER,
        MARGIN,
        MUTED,
        RULE,
        SMALL,
        TEXT,
        WIDTH,
        Sheet,
        percent,
        plural,
    )

    first = next(iter(objectives))
    shares = importances(jobs, {first: objectives[first]}, log)
    if shares is None:
        return None
    done = sum(scores(job, objectives) is not None for job in jobs)
    pitch = 0.42
    sheet = Sheet(
        HEADER + 0.1 + pitch * len(shares) + 0.25,
        f"What mattered for {first}",
        f"{name}: share of its spread that each value explains, over {plural(done, 'finished job')} (functional ANOVA)",
    )
    begin, room = MARGIN + 3.3, WIDTH - 2 * MARGIN - 3.3 - 0.75
    for i, (key, share) in enumerate(shares.items()):
        top = HEADER + 0.1 + i * pitch
        head, _, tail = key.replace("/", ".").rpartition(".")
        label = sheet.text(begin - 0.15, top + 0.2, tail, TEXT + 1, weight="bold", align="right", room=1.7)
        sheet.text(begin - 0.15 - sheet.extent(label) - 0.06, top + 0.2, head, SMALL, MUTED, align="right", room=1.6)
        sheet.bar(begin, top + 0.04, room, 0.22, RULE)
        sheet.bar(begin, top + 0.04, max(0.01, room * share), 0.22, BLUE)
        sheet.text(begin + room + 0.12, top + 0.2, percent(share), TEXT)
    return sheet


def importances(jobs: Sequence[Job], objectives: Objectives, log: Mapping[str, bool]) -> dict[str, float] | None:
    """Each varied key's share of the variance, greatest first; None with fewer than two keys or four different results.

    With fewer jobs the forest behind it has nothing to split.
    """
    keys = varied(jobs)
    done = [(score[0], job) for job in jobs if (score := scores(job, objectives))]
    if len(keys) < 2 or len({score for score, _ in done}) < 4:
        return None
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    distributions: dict[str, BaseDistribution] = {}
    points: dict[str, list[Any]] = {}
    for key in keys:
        found = [number(job.values.get(key)) for _, job in done]
        numbers = [value for value in found if value is not None]
        if len(numbers) == len(found) and min(numbers) < max(numbers):
            bent = log.get(key, is_log(numbers))
            distributions[key], points[key] = FloatDistribution(min(numbers), max(numbers), log=bent), numbers
        else:
            words = [str(job.values.get(key)) for _, job in done]
            distributions[key], points[key] = CategoricalDistribution(sorted(set(words))), words
    with quiet_optuna():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for i, (score, _) in enumerate(done):
            params = {key: points[key][i] for key in keys}
            study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=score))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's own talk, and its notes on what is experimental, are not the sweep's."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
