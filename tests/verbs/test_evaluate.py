"""``kinoscope evaluate``: the run's own test again, other views and crops, another checkpoint, another subset."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny import Command

from kinoscope.runs.folder import RunFolder


def evaluated(run: Command, folder: RunFolder, *overrides: str) -> dict[str, Any]:
    outcome = run("evaluate", f"run={folder.path}", *overrides)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{folder.path}\n"
    return json.loads((folder.path / "evaluation.json").read_text())


def test_the_same_views_give_what_the_run_reported(run: Command, classifier: RunFolder) -> None:
    before = classifier.read_summary()
    drawn = {path: path.stat().st_mtime_ns for path in classifier.pictures.iterdir()}
    found = evaluated(run, classifier)
    assert found["test"] == pytest.approx(before["test"])
    assert classifier.read_summary() == before
    redrawn = {path.name for path in classifier.pictures.iterdir() if path.stat().st_mtime_ns > drawn.get(path, 0)}
    assert redrawn - {"mistakes", "contact_sheet.mp4"} == {"contact_sheet.png", "confusion_matrix.png", "mistakes.png"}


def test_the_form_of_evaluation_json(run: Command, classifier: RunFolder) -> None:
    found = evaluated(run, classifier)
    summary = classifier.read_summary()
    assert {"status", "signature", "seconds", "steps", "monitor", "test"} <= found.keys()
    assert found["status"] == "finished"
    assert found["signature"] == summary["signature"]
    assert found["test"].keys() == summary["test"].keys()
    assert found["checkpoint"] == "best.ckpt"
    assert found["views"] == 3
    assert found["skipped"] == {"videos": 0, "samples": 0}


def test_views_and_crops(run: Command, classifier: RunFolder) -> None:
    """12 videos × 2 views × 5 crops: clip accuracy is a count out of 120, video accuracy out of 12."""
    found = evaluated(run, classifier, "views=2", "crops=5")
    assert (found["views"], found["crops"]) == (2, 5)
    for name, total in (("test/clip_accuracy", 120), ("test/video_accuracy", 12)):
        count = found["test"][name] * total
        assert count == pytest.approx(round(count), abs=1e-4)
    assert found["test"]["test/loss"] != classifier.read_summary()["test"]["test/loss"]


def test_batch_size_and_workers_do_not_matter(run: Command, classifier: RunFolder) -> None:
    found = evaluated(run, classifier, "batch_size=5", "workers=1")
    assert found["test"] == pytest.approx(classifier.read_summary()["test"], rel=1e-5)


def test_another_checkpoint_and_the_validation_subset(run: Command, classifier: RunFolder) -> None:
    """Of the last checkpoint on the validation videos, the run itself has reported what must come out."""
    found = evaluated(run, classifier, "checkpoint=last", "subset=validation")
    last = classifier.read_summary()["last"]
    assert found["checkpoint"] == "last.ckpt"
    assert "test" not in found
    assert found["val"] == pytest.approx({name: value for name, value in last.items() if name != "step"}, rel=1e-5)


def test_views_and_crops_of_the_validation(run: Command, classifier: RunFolder) -> None:
    """6 videos × 2 views × 5 crops, and what is not asked for stays one."""
    plain = evaluated(run, classifier, "subset=validation")
    assert (plain["views"], plain["crops"]) == (1, 1)
    found = evaluated(run, classifier, "subset=validation", "views=2", "crops=5")
    assert (found["views"], found["crops"]) == (2, 5)
    for name, total in (("val/clip_accuracy", 60), ("val/video_accuracy", 6)):
        count = found["val"][name] * total
        assert count == pytest.approx(round(count), abs=1e-4)
    assert found["val"]["val/loss"] != plain["val"]["val/loss"]
    more = evaluated(run, classifier, "subset=validation", "crops=3")
    assert (more["views"], more["crops"]) == (1, 3)
    assert more["val"]["val/loss"] not in (plain["val"]["val/loss"], found["val"]["val/loss"])


@pytest.mark.parametrize("kind", ["autoencoder", "gan"])
def test_other_systems(kind: str, run: Command, request: pytest.FixtureRequest) -> None:
    folder: RunFolder = request.getfixturevalue(kind)
    assert evaluated(run, folder)["test"] == pytest.approx(folder.read_summary()["test"], rel=1e-4)


def test_views_of_images_are_refused(run: Command, autoencoder: RunFolder) -> None:
    outcome = run("evaluate", f"run={autoencoder.path}", "views=3")
    assert outcome.code == 2
    assert outcome.err.startswith("kinoscope: views: ")
    assert outcome.out == ""


def test_several_faults_are_reported_together(run: Command) -> None:
    outcome = run("evaluate", "run=nowhere", "checkpoint=worst", "vews=3")
    assert outcome.code == 2
    for part in ("'nowhere' is not a folder", "checkpoint", "did you mean 'views'"):
        assert part in outcome.err
