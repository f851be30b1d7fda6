from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest
from picture_fakes import Run, System

from kinoscope.callbacks import progress
from kinoscope.callbacks.progress import Progress, Rate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_without_a_terminal(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run("fit", Progress(seconds=0.0))
    out, err = capfd.readouterr()
    assert out == "" and "\r" not in err
    lines = err.splitlines()
    training = [line for line in lines if line.startswith("epoch")]
    assert len(training) == 6  # three batches, two epochs
    assert re.fullmatch(r"epoch 1/2, batch 1/3, loss 0.5, accuracy 75.0 %, [\d,]+ images/s, \d+ s", training[0])
    assert re.search(r"batch 2/3, loss 0.5, accuracy 75.0 %, val video accuracy 90.0 %", training[4])
    assert lines[-1].startswith("trained to epoch 2/2, loss 0.5")
    assert "gradient" not in err


def test_few_lines_without_a_terminal(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    still = SimpleNamespace(monotonic=lambda: 100.0, perf_counter=lambda: 100.0)  # a slow machine is due a line more
    monkeypatch.setattr(progress, "time", still)
    run("fit", Progress())
    run("test", Progress())
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines()] == ["trained to epoch 2/2", "tested"]


def test_a_bar_on_a_terminal(run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, size in (("COLUMNS", "200"), ("LINES", "50")):  # a bar is cut to what the environment says, if anything
        monkeypatch.setenv(name, size)
    run("fit", Progress(), modality="image")
    run("test", Progress())
    drawn = terminal.getvalue()
    assert "\r" in drawn and "epoch 2/2" in drawn and "3/3" in drawn
    assert re.search(r"loss 0.5, accuracy 75.0 %, val video accuracy 90.0 %, [\d,]+ images/s", drawn)
    assert "testing" in drawn and "DataLoader" not in drawn
    assert capfd.readouterr().out == ""


def test_videos_are_counted_in_clips(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    run("fit", Progress(), modality="video", limit_val_batches=0)
    assert re.search(r"[\d,]+ clips/s", capfd.readouterr().err)


def test_nothing_is_read_from_the_device_in_a_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Lightning's metrics would be synchronised here")

    monkeypatch.setattr(progress.Progress, "get_metrics", refuse)
    run("fit", Progress(seconds=0.0))


def test_a_system_without_window_means_has_a_bar_too(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    system = System()
    del system.latest
    run("fit", Progress(seconds=0.0), system=system, limit_val_batches=0)
    assert re.search(r"^epoch 1/2, batch 1/3, [\d,]+ images/s", capfd.readouterr().err, flags=re.MULTILINE)


def test_the_rate_is_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    rate = Rate()
    rate.add(10)  # nothing is known of when this batch began
    assert rate.per_second == 0
    for _ in range(50):
        now += 0.5
        rate.add(10)
    assert rate.per_second == pytest.approx(20)
    now += 1000  # a validation
    rate.resume()
    now += 0.5
    rate.add(10)
    assert rate.per_second == pytest.approx(20)
    for _ in range(1000):  # the machine is slower now; the past is forgotten
        now += 1.0
        rate.add(10)
    assert rate.per_second == pytest.approx(10)


def test_print_goes_to_stderr(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    Progress().print("a", 1)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "a 1\n")
