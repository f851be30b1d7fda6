"""What is told of one run and of several, from their folders alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from told_runs import make

from kinoscope.errors import Refusal
from kinoscope.runs import report
from kinoscope.runs.folder import RunFolder


def told(*paths: Path) -> list[report.Told]:
    return [report.read(path) for path in paths]


def test_a_run_s_page_says_everything(tmp_path: Path) -> None:
    page = report.page(report.read(make(tmp_path, 1, [0.5, 0.75])))
    for words in (
        "finished, 200 steps, 110 s",
        "best        val/video_accuracy 0.75, at step 200",
        "test        test/loss 1, test/video_accuracy 0.65",
        "20 samples/s, 33 % of the steps' time waiting for data",
        "1.50 GB at most",
        "data                      20.0 s  18.2 %  ████",
        "forward                   10.0 s   9.1 %  ██",
    ):
        assert words in page, page
    assert "waiting for device" not in page, "nothing was"


def test_the_shares_of_a_page_are_all_of_the_time(tmp_path: Path) -> None:
    lines = report.spent(report.read(make(tmp_path, 1, [0.5])).summary)
    shares = [float(line.split(" %")[0].split()[-1]) for line in lines if line.startswith("  ")]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    assert "data 18 %" in report.in_one_line(report.read(make(tmp_path, 2, [0.5])).summary)


def test_a_run_that_was_never_measured_has_a_page(tmp_path: Path) -> None:
    path = make(tmp_path, 1, [])
    RunFolder.open(path).write_summary(time={}, memory={}, steps=0, best={}, test={})
    page = report.page(report.read(path))
    assert "finished, 0 steps" in page
    assert "time" not in page


def test_a_run_that_is_running_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    path = make(tmp_path, 1, [0.5], status="running")
    folder = RunFolder.open(path)
    assert report.read(path).status == "killed"
    assert f"python -m train resume={path}" in report.page(report.read(path))
    folder.lock()
    try:
        assert report.read(path).status == "running"
    finally:
        folder.unlock()
    assert "train.log" in report.page(report.read(make(tmp_path, 2, [0.5], status="failed")))


def test_what_differs_is_what_somebody_chose(tmp_path: Path) -> None:
    runs = told(
        make(tmp_path, 1, [0.5], seed=0, model__seed=0, data__seed=0, model__optimizer__lr=0.1, model__same=[1, 2]),
        make(tmp_path, 2, [0.5], seed=1, model__seed=1, data__seed=1, model__optimizer__lr=0.1, model__same=[1, 2]),
        make(tmp_path, 3, [0.5], seed=0, model__seed=0, data__seed=0, model__optimizer__lr=0.3, model__same=[1, 2]),
    )
    assert report.differences(runs) == {"seed": ["0", "1", "0"], "model.optimizer.lr": ["0.1", "0.1", "0.3"]}
    assert report.labels(runs) == ["seed 0, lr 0.1", "seed 1, lr 0.1", "seed 0, lr 0.3"]
    assert report.differences(runs[:1] * 2) == {}


def test_a_key_that_some_runs_do_not_have(tmp_path: Path) -> None:
    with_ema, without = told(make(tmp_path, 1, [0.5], model__ema=0.9), make(tmp_path, 2, [0.5]))
    assert report.differences([with_ema, without]) == {"model.ema": ["0.9", "–"]}
    other = report.read(make(tmp_path, 3, [0.5], name="video/other", seed=1))
    assert report.differences([with_ema, other]) == {}, "different experiments are compared in what they share"
    assert report.labels([with_ema, other]) == ["video/toy", "video/other"]


def test_runs_that_nothing_tells_apart_are_called_by_their_folder(tmp_path: Path) -> None:
    runs = told(make(tmp_path, 1, [0.5]), make(tmp_path, 2, [0.5]))
    assert report.labels(runs) == [run.path.name for run in runs]


def test_short_names_tell_keys_apart() -> None:
    keys = ["seed", "model.optimizer.lr", "model.critic_optimizer.lr", "data.batch_size"]
    assert report.short_names(keys) == ["seed", "optimizer.lr", "critic_optimizer.lr", "batch_size"]


def test_the_table_has_a_row_for_each_run(tmp_path: Path) -> None:
    make(tmp_path, 1, [0.5, 0.9], seed=0, data__workers=0)
    make(tmp_path, 2, [0.5, 0.7], seed=0, data__workers=2, seconds=1.0, status="failed")
    heading, *rows = report.table(report.find([str(tmp_path)]))
    assert heading[1:] == [
        "status", "workers", "best val/video_accuracy", "test/video_accuracy", "time", "samples/s", "data wait",
    ]  # fmt: skip
    assert [row[1:] for row in rows] == [
        ["finished", "0", "0.9", "0.8", "110 s", "20", "33 %"],
        ["failed", "2", "0.7", "0.6", "11 s", "200", "33 %"],
    ]
    lines = report.comparison(report.find([str(tmp_path)])).splitlines()
    assert len({line.index(word) for line, word in zip(lines, ("status", "finished", "failed"), strict=True)}) == 1


def test_a_table_of_many_differences_says_what_it_leaves_out(tmp_path: Path) -> None:
    keys = [f"model__k{i}" for i in range(8)]
    for number in (1, 2):
        values: dict[str, Any] = {key: 10 * i + number for i, key in enumerate(keys)}
        make(tmp_path, number, [0.5], **values)
    assert report.comparison(report.find([str(tmp_path)])).endswith("2 more keys of their configs differ")


def test_runs_are_found_by_folder_pattern_list_and_sweep(tmp_path: Path) -> None:
    paths = [make(tmp_path / "outputs", number, [0.5]) for number in (2, 1, 3)]
    first, second, third = sorted(paths)
    make(second, 4, [0.5])  # what a run holds is not searched
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "sweep.csv").write_text(f"job,folder,status\n0,{third},finished\n1,,failed\n2,{first},finished\n")

    def found(*runs: str) -> list[Path]:
        return [run.path for run in report.find(runs)]

    assert found(str(tmp_path / "outputs")) == [first, second, third]
    assert found(str(tmp_path / "outputs" / "*" / "*" / "*-0000000[13]")) == [first, third]
    assert found(str(third), str(first), str(third)) == [first, third]
    assert found(str(sweep)) == [first, third]


@pytest.mark.parametrize("empty", [True, False])
def test_a_pattern_without_runs_is_refused(empty: bool, tmp_path: Path) -> None:
    if empty:
        (tmp_path / "video").mkdir()
    with pytest.raises(Refusal, match="holds no run" if empty else "is no folder and matches none"):
        report.find([str(tmp_path / "video")])


def test_a_damaged_config_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path, 1, [0.5])
    (path / "config.yaml").write_text("model: {data: [")
    with pytest.raises(Refusal, match="is damaged"):
        report.read(path)
    (path / "config.yaml").write_text("- a list\n")
    with pytest.raises(Refusal, match="not a run's config"):
        report.read(path)


def test_what_is_drawn(tmp_path: Path) -> None:
    monitored = make(tmp_path, 1, [0.5])
    unmonitored = [make(tmp_path, number, [0.5], monitor=None) for number in (2, 3)]
    never_logged = make(tmp_path, 4, [])
    assert report.to_draw(told(monitored, *unmonitored, never_logged), None) == ["val/video_accuracy"]
    assert report.to_draw(told(*unmonitored), None) == ["train/loss"]
    assert report.to_draw(told(never_logged), None) == []
    assert report.to_draw(told(monitored), "train/loss") == ["train/loss"]
    with pytest.raises(Refusal, match=r"monitor=val/los: .*logged are: train/loss, val/video_accuracy"):
        report.to_draw(told(monitored), "val/los")
