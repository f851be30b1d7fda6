"""Several runs on one page: their curves over each other, and how long each of them took for what."""

from __future__ import annotations

from collections.abc import Sequence

from kinoscope.callbacks.drawing import (
    AMBER,
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
    percent,
    plural,
)
from kinoscope.callbacks.series import MANY_POINTS, Series, duration, higher_is_better, is_share, smoothed, style
from kinoscope.runs.report import Told, differences, labels, short_names

MOST_ROWS = 16
MOST_PANELS = 2
PLOT, HEAD, PITCH = 2.7, 0.34, 0.26  # inches: of a plot, of its heading, from row to row
PARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("training", "#56606f", ("device", "transfer", "forward", "backward", "optimizer")),
    ("waiting for data", AMBER, ("data",)),
    ("validation, test", "#a3acb9", ("validation", "test")),
    ("start-up, logging, checkpoints", RULE, ("startup", "logging", "checkpoints")),
)


def draw_comparison(runs: Sequence[Told], metrics: Sequence[str]) -> Sheet:
    """Curves of the ``metrics`` (the first two), one line per run, above a row for each run, the best one first."""
    runs = _best_first(runs, metrics[0] if metrics else None)
    colours = [*SERIES[: len(runs)], *([MUTED] * (len(runs) - len(SERIES)))]
    panels = list(metrics[:MOST_PANELS])
    top = HEADER + (HEAD + PLOT + 0.75 if panels else 0.0)
    shown = runs[:MOST_ROWS]
    height = top + 0.3 + PITCH * (len(shown) + (len(runs) > len(shown))) + 0.5
    names = sorted({run.name for run in runs})
    title = f"{plural(len(runs), 'run')} of {names[0]}" if len(names) == 1 else plural(len(runs), "run")
    sheet = Sheet(height, title, _subtitle(runs))
    gap, ticks = 0.5, 0.5
    width = (WIDTH - 2 * MARGIN - (len(panels) - 1) * gap) / max(len(panels), 1)
    for i, metric in enumerate(panels):
        left = MARGIN + i * (width + gap)
        sheet.text(left + ticks, HEADER + 0.17, metric, TEXT + 2, weight="bold", room=width - ticks)
        _plot(sheet, runs, colours, metric, (left + ticks, HEADER + HEAD, width - ticks))
    _rows(sheet, shown, colours, metrics[0] if metrics else None, top)
    if len(runs) > len(shown):
        words = f"and {plural(len(runs) - len(shown), 'more run')}"
        sheet.text(MARGIN, top + 0.3 + PITCH * len(shown) + 0.1, words, SMALL, MUTED)
    _key(sheet, height - 0.25)
    return sheet


def _subtitle(runs: Sequence[Told]) -> str:
    keys = list(differences(runs))
    if not keys:
        return "nothing differs in their configs"
    few = ", ".join(short_names(keys)[:6])
    return f"what differs: {few}" + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def _best_first(runs: Sequence[Told], metric: str | None) -> list[Told]:
    better = higher_is_better(metric) if metric is not None else None
    if metric is None or better is None:
        return list(runs)
    sign = -1 if better else 1

    return sorted(runs, key=lambda run: sign * _best(run, metric) if metric in run.series else float("inf"))


def _best(run: Told, metric: str) -> float:
    """The best value that the run has logged; the last one where nobody knows what is better."""
    one = run.series[metric]
    best = one.best()
    return one.values[-1 if best is None else best]


def _plot(
    sheet: Sheet, runs: Sequence[Told], colours: Sequence[str], metric: str, place: tuple[float, float, float]
) -> None:
    left, top, width = place
    drawn = [(run.series[metric], colour) for run, colour in zip(runs, colours, strict=True) if metric in run.series]
    if not drawn:
        return
    axes = sheet.axes(left, top, width, PLOT)
    style(axes, [one for one, _ in drawn], share=is_share(metric))
    for order, (one, colour) in reversed(list(enumerate(drawn))):  # the best run lies on top
        main = colour != MUTED
        many = len(one.values) > MANY_POINTS
        axes.plot(
            one.steps,
            smoothed(one.values) if many else one.values,
            color=colour if main else RULE,
            linewidth=1.8 if main else 1.0,
            marker="o" if len(one.values) <= 30 and main else None,
            markersize=3.5,
            solid_capstyle="round",
            zorder=3 - order / len(drawn),
        )
        _ring(axes, one, main and not many)
    sheet.text(left + width, top + PLOT + 0.38, "step", SMALL, MUTED, align="right")


def _ring(axes: object, one: Series, wanted: bool) -> None:
    """Around a run's best point."""
    best = one.best()
    if wanted and best is not None and one.stage != "train":
        look = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.0}
        axes.plot(one.steps[best], one.values[best], "o", zorder=4, **look)  # type: ignore[attr-defined]


def _rows(sheet: Sheet, runs: Sequence[Told], colours: Sequence[str], metric: str | None, top: float) -> None:
    """A line per run: its stroke, what it is, its best and its test, and a bar of its seconds."""
    values_at, test_at, bar_at, ends = 4.75, 5.85, 6.1, WIDTH - MARGIN - 0.75
    longest = max((run.time.get("total", 0.0) for run in runs), default=0.0) or 1.0
    sheet.text(values_at, top + 0.1, "best", SMALL, MUTED, align="right")
    sheet.text(test_at, top + 0.1, "test", SMALL, MUTED, align="right")
    sheet.text(bar_at, top + 0.1, "time", SMALL, MUTED)
    for i, (run, label) in enumerate(zip(runs, labels(runs), strict=True)):
        base = top + 0.3 + PITCH * i + 0.1
        sheet.bar(MARGIN, base - 0.06, 0.24, 0.035, colours[i] if colours[i] != MUTED else RULE)
        status = "" if run.status == "finished" else f" ({run.status})"
        sheet.text(MARGIN + 0.34, base, f"{label}{status}", TEXT, room=values_at - MARGIN - 1.0)
        drawn = (metric, _best(run, metric)) if metric in run.series else run.best
        for right, value in ((values_at, drawn), (test_at, run.test)):
            sheet.text(right, base, _shown(*value) if value else "–", TEXT, align="right")
        x = bar_at
        for _, colour, phases in PARTS:
            extent = (ends - bar_at) * sum(run.time.get(phase, 0.0) for phase in phases) / longest
            sheet.bar(x, base - 0.11, extent, 0.14, colour)
            x += extent
        words = duration(run.time["total"]) if run.time.get("total") else "–"
        sheet.text(x + 0.08, base, words, SMALL, MUTED)


def _shown(metric: str, value: float) -> str:
    return percent(value) if is_share(metric) else f"{value:.4g}"


def _key(sheet: Sheet, base: float) -> None:
    """What the bars' colours mean."""
    x = WIDTH - MARGIN
    lengths = extents([words for words, _, _ in PARTS], SMALL)
    for (words, colour, _), extent in reversed(list(zip(PARTS, lengths, strict=True))):
        x -= extent
        sheet.text(x, base, words, SMALL, MUTED)
        sheet.bar(x - 0.16, base - 0.085, 0.11, 0.11, colour)
        x -= 0.34
