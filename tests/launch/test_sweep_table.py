"""The table, ``sweep.csv`` and ``best.json`` of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sweeping import table_of

from kinoscope.launch.sweep_jobs import Job
from kinoscope.launch.sweep_table import best, in_words, table, write_results


def job(number: int, exit_code: int | None = 0, values: dict[str, str] | None = None, **best: float) -> Job:
    summary: dict[str, Any] = {"monitor": "val/a", "seconds": 60.0}
    summary["best"] = {f"val/{name}": value for name, value in best.items()}
    values = values or {"seed": str(number)}
    return Job(
        number,
        ["experiment=video/c3d", *(f"++{key}={value}" for key, value in values.items())],
        values,
        folder=f"outputs/{number}",
        exit_code=exit_code,
        summary=summary,
    )


def test_the_table_shows_what_varied() -> None:
    jobs = [job(n, values={"model.lr": lr}, a=a) for n, lr, a in ((0, "0.1", 0.5), (1, "0.0123456789", 0.75))]
    for one in jobs:
        one.summary["test"] = {"test/a": one.summary["best"]["val/a"] / 2}
    assert table(jobs).splitlines() == [
        "job  model.lr  status    seconds  best/val/a  test/a  folder",
        "0    0.1       finished  60       0.5         0.25    outputs/0",
        "1    0.01235   finished  60       0.75        0.375   outputs/1",
    ]
    assert [one.objective for one in jobs] == [0.5, 0.75]


@pytest.mark.parametrize(
    ("exit_code", "pruned", "status"),
    [
        (0, False, "finished"),
        (0, True, "finished"),  # it was done before it heard that it should stop
        (75, True, "pruned"),
        (75, False, "interrupted"),
        (2, False, "refused"),
        (1, False, "failed"),
        (-9, True, "failed"),
        (None, False, "running"),
    ],
)
def test_how_a_job_ended(exit_code: int | None, pruned: bool, status: str) -> None:
    one = job(0, exit_code)
    one.pruned = pruned
    assert one.status == status


def test_the_best_is_a_finished_one_in_the_direction_that_is_sought() -> None:
    jobs = [job(0, a=3.0), job(1, a=1.0), job(2, a=2.0), job(3, 1, a=0.0), job(4, 0, a=float("nan")), job(5, b=0.0)]
    assert [one.number for one in best(jobs, {"val/a": "min"})] == [1]
    assert [one.number for one in best(jobs, {"val/a": "max"})] == [0]
    assert best(jobs, {}) == []
    assert in_words(jobs, {"val/a": "min"}) == [
        "6 jobs: 5 finished, 1 failed",
        "best: val/a = 1 in job 1, outputs/1",
    ]


def test_the_pareto_front() -> None:
    """Of the points (1, 3), (2, 2), (3, 1), (3, 3) and (2, 2) again, only (3, 3) is beaten in both."""
    points = [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (3.0, 3.0), (2.0, 2.0)]
    jobs = [job(n, a=a, b=b) for n, (a, b) in enumerate(points)]
    assert [one.number for one in best(jobs, {"val/a": "min", "val/b": "min"})] == [0, 1, 4, 2]
    assert [one.number for one in best(jobs, {"val/a": "max", "val/b": "max"})] == [3]


def test_the_files(tmp_path: Path) -> None:
    """Columns are the union of all jobs'; a metric that has no best checkpoint is the one at the end."""
    ended, failed = job(0, a=0.5), job(1, 1, {"model.lr": "0.1"})
    ended.summary["last"] = {"val/b": 7.0}
    write_results(tmp_path, [ended, failed], {"val/a": "max", "val/b": "min"})
    first, second = table_of(tmp_path)
    assert list(first) == [
        *(
            "job",
            "experiment",
            "seed",
            "model.lr",
            "folder",
            "status",
            "exit_code",
            "seconds",
            "process_seconds",
            "monitor",
        ),
        *("best/val/a", "last/val/b"),
    ]
    assert (first["best/val/a"], first["last/val/b"], first["model.lr"]) == ("0.5", "7.0", "")
    assert (second["status"], second["exit_code"], second["best/val/a"]) == ("failed", "1", "")
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "objectives": {"val/a": "max", "val/b": "min"},
        "jobs": {"finished": 1, "failed": 1},
        "best": [{"job": 0, "folder": "outputs/0", "overrides": {"seed": "0"}, "val/a": 0.5, "val/b": 7.0}],
    }
