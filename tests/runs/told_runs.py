"""Run folders as a training leaves them, made in a moment: for the tests of what is told of runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import yaml

from kinoscope.runs.stopwatch import PHASES


def make(
    parent: Path,
    number: int,
    accuracies: list[float],
    status: str = "finished",
    name: str = "video/toy",
    monitor: str | None = "val/video_accuracy",
    seconds: float = 10.0,
    **config: Any,
) -> Path:
    """A run whose validation accuracies are given; each phase took ``seconds``, and data twice as long.

    Args:
        parent: where its folder is made.
        number: the runs' order in time.
        accuracies: one per epoch of 100 steps.
        status: in the summary.
        name: the experiment's.
        monitor: what it monitors.
        seconds: per phase.
        config: what its config holds besides; a dot in a key is written ``__``.
    """
    path = parent / name / f"2026-01-02_03-04-{number:02d}-{number:08x}"
    path.mkdir(parents=True)
    content: dict[str, Any] = {"name": name, "output_dir": str(parent), "model": {}, "data": {}}
    for key, value in config.items():
        node = content
        *above, last = key.split("__")
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    (path / "config.yaml").write_text(yaml.safe_dump(content))
    rows = [
        {
            "step": 100 * (epoch + 1),
            "epoch": epoch,
            "seconds": epoch,
            "train/loss": 2.0 - value,
            monitor or "val/x": value,
        }
        for epoch, value in enumerate(accuracies)
    ]
    if rows:
        with (path / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    best = max(accuracies, default=None)
    time = dict.fromkeys(PHASES, seconds) | {"data": 2 * seconds, "device": 0.0}
    step = 6 * seconds  # data, transfer, forward, backward, optimizer
    time |= {"total": sum(time.values()), "samples": 1200, "batches": 12, "data_share": 2 * seconds / step}
    time |= {"samples_per_second": 1200 / step}
    summary = {
        "status": status,
        "signature": f"{number:08x}",
        "seconds": 11 * seconds,
        "steps": 100 * len(accuracies),
        "monitor": monitor,
        "best": {} if best is None or monitor is None else {monitor: best, "step": 100 * (accuracies.index(best) + 1)},
        "last": {},
        "test": {} if best is None else {"test/loss": 1.0, "test/video_accuracy": best - 0.1},
        "time": time,
        "memory": {"process": 1_500_000_000, "cuda": 0},
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path
