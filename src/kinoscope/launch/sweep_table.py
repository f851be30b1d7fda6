"""What a sweep leaves for people and programs: a table, ``sweep.csv``, and ``best.json``."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from kinoscope.launch.sweep_jobs import Job
from kinoscope.runs.folder import write_json, write_text

Objectives: TypeAlias = "Mapping[str, Literal['min', 'max']]"

FIXED = ("folder", "status", "exit_code", "seconds", "process_seconds", "monitor")
SUFFIX = {True: "s", False: ""}


def write_results(folder: Path, jobs: Sequence[Job], objectives: Objectives) -> None:
    """``sweep.csv`` and ``best.json`` of the jobs so far, whole at any time."""
    rows = [row(job, objectives) for job in jobs]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns_of(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "sweep.csv", text.getvalue())
    write_json(
        folder / "best.json",
        {
            "objectives": dict(objectives),
            "jobs": dict(Counter(job.status for job in jobs)),
            "best": [
                {
                    "job": job.number,
                    "folder": job.folder,
                    "overrides": job.values,
                    **{name: job.metric(name) for name in objectives},
                }
                for job in best(jobs, objectives)
            ],
        },
    )


def row(job: Job, objectives: Objectives) -> dict[str, Any]:
    """A job's line in ``sweep.csv``: what it was given, how it ended, its metrics."""
    metrics = {
        (name if name.startswith(f"{kind}/") else f"{kind}/{name}"): value
        for kind in ("best", "test")
        for name, value in (job.summary.get(kind) or {}).items()
    }
    at_the_end = {f"last/{name}": job.metric(name) for name in objectives if f"best/{name}" not in metrics}
    return {
        "job": job.number,
        **dict(split(override) for override in job.overrides),
        "folder": job.folder,
        "status": job.status,
        "exit_code": "" if job.exit_code is None else job.exit_code,
        "seconds": job.summary.get("seconds", job.seconds),
        "process_seconds": job.seconds,  # with imports, checks and building
        "monitor": job.summary.get("monitor") or "",
        **metrics,
        **{name: value for name, value in at_the_end.items() if value is not None},
    }


def split(override: str) -> tuple[str, str]:
    """Key and value of an override."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The union of all rows' columns: overrides, then the fixed ones, then metrics."""
    union = list(dict.fromkeys(name for row in rows for name in row))
    metrics = [name for name in union if name.startswith(("best/", "test/", "last/"))]
    rest = [name for name in union if name not in FIXED and name not in metrics]
    return [*rest, *FIXED, *metrics]


def table(jobs: Sequence[Job], objectives: Objectives | None = None) -> str:
    """The sweep at a glance: what varied, how each job ended, its objectives and its test metrics."""
    rows = [row(job, objectives or {}) for job in jobs]
    given = {split(o)[0] for job in jobs for o in job.overrides} - {*FIXED}
    varied = [key for key in columns_of(rows) if key in given]
    if len(jobs) > 1:
        varied = [key for key in varied if len({row.get(key) for row in rows}) > 1]
    monitors = [f"best/{row['monitor']}" for row in rows if row["monitor"]]
    sought = [name for name in columns_of(rows) if name.partition("/")[2] in (objectives or {})]
    tests = [name for name in columns_of(rows) if name.startswith("test/")]
    columns = list(dict.fromkeys(["job", *varied, "status", "seconds", *monitors, *sought, *tests, "folder"]))
    lines = [columns, *([_cell(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    if isinstance(value, str) and "." in value:  # a suggested value has all its digits in the file
        try:
            value = float(value)
        except ValueError:
            return value
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def scores(job: Job, objectives: Objectives) -> list[float] | None:
    """The objectives of a finished job, each so that less is better; None where one is missing or not a number."""
    if job.status != "finished":
        return None
    values = [job.metric(name) for name in objectives]
    if not all(value is not None and math.isfinite(value) for value in values):
        return None
    return [
        (-1 if mode == "max" else 1) * (value or 0.0) for value, mode in zip(values, objectives.values(), strict=True)
    ]


def best(jobs: Sequence[Job], objectives: Objectives) -> list[Job]:
    """The best finished job; of several objectives the Pareto front: those that no other beats in all of them."""
    scored = [(score, job) for job in jobs if (score := scores(job, objectives))]
    front = [(score, job) for score, job in scored if not any(_dominates(other, score) for other, _ in scored)]
    front.sort(key=lambda pair: (pair[0], pair[1].number))
    return [job for _, job in front[: 1 if len(objectives) == 1 else None]]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def in_words(jobs: Sequence[Job], objectives: Objectives) -> list[str]:
    """How many jobs ended how, and the best of them: the last lines that a sweep says."""
    counts = Counter(job.status for job in jobs)
    said = [f"{len(jobs)} job{SUFFIX[len(jobs) != 1]}: {', '.join(f'{n} {status}' for status, n in counts.items())}"]
    for job in best(jobs, objectives):
        values = ", ".join(f"{name} = {job.metric(name):.4g}" for name in objectives)
        said.append(f"best: {values} in job {job.number}, {job.folder}")
    return said
