"""Results files: what ``results/record.py`` takes from runs, what it refuses, and what the committed ones hold."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import MACHINE, ROOT, load

from kinoscope.errors import Refusal

record = load("results/record.py")


def make(folder: Path, seed: int, accuracy: float, **changes: Any) -> Path:
    """A finished run of two seeds' difference: its folder as `RunFolder` wants it."""
    folder.mkdir()
    config = {
        "name": "video/c3d_small",
        "seed": seed,
        "monitor": "val/video_accuracy",
        "output_dir": str(folder.parent),
        "data": {
            "_target_": "kinoscope.data.datasets.UCF101",
            "root": "/disk/ucf101",
            "split": 1,
            "seed": seed,
            "batch_size": 8,
            "spec": {"num_classes": 3},
        },
        "trainer": {"precision": "32-true", "accelerator": "auto", "limit_test_batches": None},
    }
    for key, value in changes.items():
        if key in ("batch_size", "split"):
            config["data"][key] = value
        elif key == "limit_test_batches":
            config["trainer"][key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    summary = {
        "status": changes.get("status", "finished"),
        "signature": f"{seed:08x}",
        "seconds": 3.5,
        "steps": 40,
        "monitor": "val/video_accuracy",
        "best": {"val/video_accuracy": 0.5, "step": 30},
        "last": {},
        "test": {"test/video_accuracy": accuracy},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    provenance = {
        "date": "2026-01-02T03:04:05+0000",
        "command": f"/disk/src/train.py experiment=video/c3d_small data=ucf101 data.root=/disk/ucf101 seed={seed}",
        "working_directory": str(folder),
        "seed": seed,
        "data_hash": changes.get("data_hash", "ab"),
        "git": {"commit": "c0ffee", "dirty": True, "diff": "/disk/secret"},
        "versions": {"torch": "2.13.0"},
        "host": {"name": "mymachine", "platform": "Linux-6.1-x86_64", "cpu": "A CPU", "threads": 2, "gpus": []},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def test_seeds_become_a_mean_with_its_spread_and_no_folder(tmp_path: Path) -> None:
    content = record.record([make(tmp_path / str(seed), seed, value) for seed, value in enumerate((0.5, 0.6, 0.7))])
    spread = content["test"]["test/video_accuracy"]
    assert spread["n"] == 3
    assert math.isclose(spread["mean"], 0.6) and math.isclose(spread["std"], 0.1)
    assert content["data"] == "UCF101 (split 1, 3 classes)"
    assert content["seeds"] == [0, 1, 2]
    assert content["commands"][2] == "python -m train experiment=video/c3d_small data=ucf101 data.root=<ucf101> seed=2"
    assert content["commits"] == ["c0ffee with changes"]
    text = json.dumps(content)
    assert not any(word in text for word in ("/disk", str(tmp_path), "mymachine", "secret"))


def test_one_run_has_no_spread(tmp_path: Path) -> None:
    content = record.record([make(tmp_path / "a", 0, 0.5)])
    assert content["test"]["test/video_accuracy"] == {"mean": 0.5, "std": None, "n": 1}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"status": "failed"}, "failed: only finished"),
        ({"batch_size": 16}, "data.batch_size"),
        ({"data_hash": "cd"}, "its data"),
        ({"limit_test_batches": 2}, "a part of its data"),
        ({"seed": 0}, "the same seed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_runs_that_are_not_seeds_of_one_experiment_are_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    changes = {"seed": 1, **changes}
    seed = changes.pop("seed")
    with pytest.raises(Refusal, match=re.escape(sentence)):
        record.record([make(tmp_path / "a", 0, 0.5), make(tmp_path / "b", seed, 0.6, **changes)])


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("/x/kinoscope train seed=1 output_dir=/x/y", "python -m train seed=1"),
        ("/x/kinoscope/__main__.py train data.root=../up/ucf101", "python -m train data.root=<ucf101>"),
        ("/x/train.py 'data.classes=[A,B]'", "python -m train 'data.classes=[A,B]'"),
        ("/x/notebook.py", "kinoscope.train(…) in notebook.py"),
    ],
)
def test_a_command_is_shown_as_typed_but_for_its_places(line: str, shown: str) -> None:
    assert record.command(line) == shown


def test_no_results_file_names_a_folder_of_a_machine() -> None:
    assert MACHINE.search('"data.root=/home/me/ucf101"')
    for path in (ROOT / "results").glob("*.json"):
        assert not MACHINE.search(path.read_text()), path.name
