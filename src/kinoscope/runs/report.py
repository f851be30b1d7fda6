"""How runs went, from what lies in their folders, whether they have ended or not. Imports no torch."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kinoscope.callbacks.series import Series, duration, read_series
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.signature import flatten
from kinoscope.runs.stopwatch import PHASES

WORDS = {"startup": "start-up", "device": "waiting for device"}  # of phases that are not called by their name
NOT_COMPARED = ("name", "output_dir", "data_dir", "resume", "card", "logger", "callbacks")  # keys, and what is below
MOST_DIFFERENCES = 6  # shown beside each other
BAR = 24  # characters of a share of one


@dataclass(frozen=True)
class Told:
    """What a run's folder tells.

    Attributes:
        path: the folder.
        config: its config as plain containers.
        summary: its ``summary.json``.
        live: whether a process works on it now.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    live: bool

    @property
    def name(self) -> str:
        """The experiment's."""
        return str(self.config.get("name", ""))

    @property
    def status(self) -> str:
        """As the summary says; ``killed`` where that is running and no process is."""
        status = str(self.summary.get("status"))
        return "killed" if status == "running" and not self.live else status

    @property
    def best(self) -> tuple[str, float] | None:
        """The monitored metric and its best value; None where nothing is monitored, or nothing was yet."""
        monitor = self.summary.get("monitor")
        value = (self.summary.get("best") or {}).get(monitor)
        return None if value is None else (str(monitor), float(value))

    @property
    def test(self) -> tuple[str, float] | None:
        """The test's value of the monitored metric; of a loss, or the first there is, where that was not tested."""
        tested = self.summary.get("test") or {}
        wanted = f"test/{str(self.summary.get('monitor')).partition('/')[2]}"
        name = min(tested, key=lambda name: (name != wanted, "loss" not in name), default=None)
        return None if name is None else (name, float(tested[name]))

    @cached_property
    def series(self) -> dict[str, Series]:
        """What ``metrics.csv`` holds of training and validation, by its flat names."""
        try:
            series, _ = read_series(self.path / "metrics.csv")
        except KinoscopeError:  # nothing was logged yet
            return {}
        return {f"{one.stage}/{one.term}": one for one in series}

    @property
    def time(self) -> dict[str, float]:
        """Seconds per phase and what follows from them; empty for a run that was not measured."""
        return self.summary.get("time") or {}


def read(path: str | Path) -> Told:
    """Reads a run's folder. Raises `Refusal` if it is none, or damaged."""
    import yaml

    folder = RunFolder.open(path)
    try:  # a resolved config is plain yaml; libyaml reads it in a tenth of OmegaConf's time
        config = yaml.load(folder.config_file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Refusal(f"'{folder.config_file}' is damaged ({str(error).splitlines()[0]})") from None
    if not isinstance(config, dict):
        raise Refusal(f"'{folder.config_file}' is not a run's config")
    return Told(folder.path, config, folder.read_summary(), folder.is_live())


def find(runs: Sequence[str]) -> list[Told]:
    """All runs that are meant, oldest first.

    Args:
        runs: folders, or patterns of folders: each a run, a sweep (its runs), or a folder with runs below it.

    Raises:
        Refusal: one of them is none of that.
    """
    found: dict[Path, None] = {}
    for pattern in runs:
        folders = [Path(path) for path in sorted(glob.glob(pattern))]  # noqa: PTH207 - a pattern may be absolute
        below = [run for folder in folders for run in _runs_of(folder)]
        if not below:
            what = "holds no run" if folders else "is no folder and matches none"
            raise Refusal(f"runs: '{pattern}' {what}; runs lie in outputs/<experiment>/<date_time>-<signature>")
        found.update(dict.fromkeys(below))
    return [read(path) for path in sorted(found, key=lambda path: (path.name, str(path)))]


def _runs_of(folder: Path) -> list[Path]:
    if _is_run(folder):
        return [folder]
    table = folder / "sweep.csv"
    if table.is_file():
        with table.open(newline="") as file:
            named = [Path(row["folder"]) for row in csv.DictReader(file) if row.get("folder")]
        return [path for path in named if _is_run(path)]
    found = []
    for path, folders, _ in os.walk(folder):
        if _is_run(Path(path)):
            found.append(Path(path))
            folders.clear()  # there is nothing of the kind below a run
    return found


def _is_run(path: Path) -> bool:
    return (path / "summary.json").is_file() and (path / "config.yaml").is_file()


# One run


def page(run: Told) -> str:
    """Everything that a run tells, in lines for a terminal."""
    summary = run.summary
    monitor = summary.get("monitor")
    lines = [f"{run.path}", f"  {'experiment':<12}{run.name}", f"  {'status':<12}{_status(run)}"]
    for kind in ("best", "last", "test"):
        metrics = dict(summary.get(kind) or {})
        step = metrics.pop("step", None)
        if not metrics:
            continue
        names = sorted(metrics, key=lambda name: (name != monitor, name))
        words = ", ".join(f"{name} {metrics[name]:.4g}" for name in names)
        lines.append(f"  {kind:<12}{words}{'' if step is None else f', at step {step:,}'}")
    return "\n".join([*lines, *(f"  {line}" for line in spent(summary))])


def _status(run: Told) -> str:
    at = f"{run.summary.get('steps', 0):,} steps, {duration(run.summary.get('seconds', 0.0))}"
    cure = {
        "killed": f"; goes on with: python -m train resume={run.path}",
        "interrupted": f"; goes on with: python -m train resume={run.path}",
        "failed": f"; its reason is the last line of {run.path / 'train.log'}",
    }
    return f"{run.status}, {at}{cure.get(run.status, '')}"


def spent(summary: Mapping[str, Any]) -> list[str]:
    """Where a run's time and memory went, as lines; none for a run that was not measured."""
    time, memory = summary.get("time") or {}, summary.get("memory") or {}
    if not time.get("total"):
        return []
    lines = []
    if time.get("batches"):
        waits = f"{100 * time['data_share']:.0f} % of the steps' time waiting for data"
        lines.append(f"{'speed':<12}{time['samples_per_second']:,.4g} samples/s, {waits}")
    if memory:
        cuda = f", {gigabytes(memory['cuda'])} on the CUDA device" if memory.get("cuda") else ""
        lines.append(f"{'memory':<12}{gigabytes(memory['process'])} at most{cuda}")
    lines.append(f"{'time':<12}{duration(time['total'])} in all processes that worked on it")
    for phase in PHASES:
        seconds = time.get(phase, 0.0)
        if seconds:
            share = seconds / time["total"]
            bar = "█" * round(BAR * share)
            lines.append(f"  {WORDS.get(phase, phase):<20}{seconds:10.1f} s {100 * share:5.1f} %  {bar}".rstrip())
    return lines


def in_one_line(summary: Mapping[str, Any]) -> str:
    """The same for a log: the greatest parts first."""
    time, memory = summary.get("time") or {}, summary.get("memory") or {}
    parts = sorted(((time.get(phase, 0.0), phase) for phase in PHASES), reverse=True)
    shares = [
        f"{WORDS.get(phase, phase)} {100 * seconds / time['total']:.0f} %"
        for seconds, phase in parts
        if seconds >= 0.005 * time["total"]
    ]
    rate = f"{time['samples_per_second']:,.4g} samples/s, " if time.get("batches") else ""
    return f"{rate}{gigabytes(memory.get('process', 0))} of memory at most; time: {', '.join(shares)}"


def gigabytes(size: int) -> str:
    """``1.25 GB``."""
    return f"{size / 1e9:.2f} GB"


# Several runs


def differences(runs: Sequence[Told]) -> dict[str, list[str]]:
    """Keys of the configs that are not the same in all runs, each with its values; the shallowest keys first.

    Of keys that always hold equal values (a seed that the data repeat) the first one speaks for all. Between
    experiments of different names only those keys are compared that all of them have.
    """
    flat = [{key: value for key, value in flatten(run.config).items() if _is_compared(key, value)} for run in runs]
    keys = {key for config in flat for key in config}
    if len({run.name for run in runs}) > 1:
        keys = {key for key in keys if all(key in config for config in flat)}
    found: dict[tuple[str, ...], str] = {}
    for key in sorted(keys, key=lambda key: (key.count("."), key)):
        values = tuple(_show(config[key]) if key in config else "–" for config in flat)
        if len(set(values)) > 1:
            found.setdefault(values, key)
    return {key: list(values) for values, key in found.items()}


def _is_compared(key: str, value: Any) -> bool:
    return value != {} and not any(key == prefix or key.startswith(f"{prefix}.") for prefix in NOT_COMPARED)


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def short_names(keys: Sequence[str]) -> list[str]:
    """The last parts of dotted keys, as many as tell them apart."""
    parts = [key.split(".") for key in keys]
    short = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        short.append(".".join(own[-length:]))
    return short


def labels(runs: Sequence[Told]) -> list[str]:
    """Each run in a few words: what it alone has, or its folder's name where it has nothing of its own."""
    names = {run.name for run in runs}
    different = dict(list(differences(runs).items())[: MOST_DIFFERENCES // 2])
    keys = short_names(list(different))
    words = []
    for i, run in enumerate(runs):
        values = [f"{key} {column[i]}" for key, column in zip(keys, different.values(), strict=True)]
        words.append(", ".join([*([run.name] if len(names) > 1 else []), *values]))
    return [word if word and words.count(word) == 1 else run.path.name for word, run in zip(words, runs, strict=True)]


def table(runs: Sequence[Told]) -> list[list[str]]:
    """A row per run under a row of headings: its folder, what differs in its config, how it went."""
    different = differences(runs)
    kept = dict(list(different.items())[:MOST_DIFFERENCES])
    best = {run.best[0] for run in runs if run.best}
    tested = {run.test[0] for run in runs if run.test}
    rows = [["run", "status", *short_names(list(kept)), _heading("best", best), _heading("test", tested)]]
    rows[0] += ["time", "samples/s", "data wait"]
    for i, run in enumerate(runs):
        rows.append(
            [
                str(run.path),
                run.status,
                *(values[i] for values in kept.values()),
                _metric(run.best, alone=len(best) == 1),
                _metric(run.test, alone=len(tested) == 1),
                duration(run.time.get("total") or run.summary.get("seconds", 0.0)),
                f"{run.time['samples_per_second']:,.4g}" if run.time.get("batches") else "–",
                f"{100 * run.time['data_share']:.0f} %" if run.time.get("batches") else "–",
            ]
        )
    return rows


def _heading(kind: str, names: set[str]) -> str:
    """A column's heading: the metric, if it is the same in all rows."""
    name = next(iter(names)) if len(names) == 1 else ""
    return name if name.startswith(f"{kind}/") else f"{kind} {name}".rstrip()


def _metric(metric: tuple[str, float] | None, alone: bool) -> str:
    if metric is None:
        return "–"
    name, value = metric
    return f"{value:.4g}" if alone else f"{name} {value:.4g}"


def comparison(runs: Sequence[Told]) -> str:
    """The table in columns, and what it leaves out."""
    rows = table(runs)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = len(differences(runs)) - MOST_DIFFERENCES
    return "\n".join([*lines, *([f"{more} more keys of their configs differ"] if more > 0 else [])])


def to_draw(runs: Sequence[Told], monitor: str | None) -> list[str]:
    """Which metrics to draw: the one asked for; else those that the runs monitor; else what most of them log.

    Raises:
        Refusal: none of the runs has logged the one asked for.
    """
    if monitor is not None:
        if not any(monitor in run.series for run in runs):
            logged = sorted({name for run in runs for name in run.series})
            raise Refusal(f"monitor={monitor}: none of these runs has logged it; logged are: {', '.join(logged)}")
        return [monitor]
    monitored = dict.fromkeys(str(run.summary["monitor"]) for run in runs if run.summary.get("monitor") in run.series)
    counts = Counter(name for run in runs for name in run.series)
    common = sorted(counts, key=lambda name: (-counts[name], "loss" not in name, not name.startswith("val/"), name))
    return list(monitored) or common[:1]
