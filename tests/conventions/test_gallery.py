"""The README's gallery is what configs, network headers and results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripts import ROOT, load

from kinoscope.config.compose import compose

gallery = load("docs/gallery.py")


def test_the_readme_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_readme_is_found_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "README.md"
    stale.write_text(gallery.README.read_text().replace("video/c3d_small.yaml", "video/c4d_small.yaml"))
    monkeypatch.setattr(gallery, "README", stale)
    assert gallery.main(["--check"]) == 1
    assert gallery.main([]) == 0
    assert stale.read_text() == (ROOT / "README.md").read_text()


def test_every_experiment_is_listed() -> None:
    table = gallery.table()
    for path in (ROOT / "configs" / "experiment").rglob("*.yaml"):
        assert f"({path.relative_to(ROOT).as_posix()})" in table


def test_a_result_stands_in_its_papers_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {
        "experiment": "video/c3d_small",
        "data": "motion (order)",
        "monitor": "val/video_accuracy",
        "runs": [{}, {}, {}],
        "test": {"test/video_accuracy": {"mean": 0.6123, "std": 0.0456, "n": 3}},
    }
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.json").write_text(json.dumps(result))
    (tmp_path / "results" / "speed.json").write_text('{"ratio": 1.0}')  # of a benchmark: not an experiment's
    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    (found,) = gallery.results()["video/c3d_small"]
    monkeypatch.undo()
    monkeypatch.setattr(gallery, "results", lambda: {"video/c3d_small": [found]})
    (row,) = [line for line in gallery.table().splitlines() if "`video/c3d_small`" in line]
    assert "**61.2 ± 4.6 %** video accuracy, 3 seeds, on small, motion (order) ([file](results/mine.json))" in row


def test_departures_are_the_items_of_the_header() -> None:
    source = '"""A net.\n\nDeparts:\n    - One thing,\n      at length.\n    - Another.\n\nShape legend: B.\n"""\n'
    assert gallery.departures(source) == ["One thing, at length.", "Another."]
    assert gallery.departures('"""A net.\n\nDeparts:\n    - Nothing: all as printed.\n"""\n') == []
    with pytest.raises(ValueError, match="Departs"):
        gallery.departures('"""A net."""\n')


def test_the_network_of_each_experiment_is_found() -> None:
    for paper in gallery.experiments():
        path = gallery.network_file(compose("train", [f"experiment={paper}"]))
        assert path.is_relative_to(ROOT / "src" / "kinoscope" / "networks")
