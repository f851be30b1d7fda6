"""``kinoscope report`` on runs that were trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import Command

from kinoscope.runs.folder import RunFolder


def test_a_run(classifier: RunFolder, run: Command) -> None:
    outcome = run("report", f"run={classifier.path}")
    assert outcome.code == 0, outcome.err
    for words in (
        "status      finished, 6 steps",
        "best        val/video_accuracy",
        "samples/s",
        "start-up",
        "GB at most",
    ):
        assert words in outcome.out, outcome.out


def test_runs(classifier: RunFolder, autoencoder: RunFolder, home: Path, run: Command, here: Path) -> None:
    outcome = run("report", f"runs=[{classifier.path},{autoencoder.path}]")
    assert outcome.code == 0, outcome.err
    *table, picture = outcome.out.splitlines()
    assert {line.split()[0] for line in table[1:3]} == {str(classifier.path), str(autoencoder.path)}
    assert picture == "report.png"
    with Image.open(here / picture) as image:
        assert image.width == 1600
    assert run("report", f"runs={home / 'outputs'}", "output=all.png").out.splitlines()[-1] == "all.png"
    assert (here / "all.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give run=<folder> for one run, or runs="),
        (["run={run}", "runs={run}"], "give run=<folder> for one run, or runs="),
        (["runs=nowhere"], "runs: 'nowhere' is no folder and matches none"),
        (["run=nowhere"], "'nowhere' is not a folder"),
        (["runs={run}", "monitor=val/accuracyy"], "monitor=val/accuracyy: none of these runs has logged it"),
        (["rums={run}"], "did you mean 'runs'"),
    ],
)
def test_what_cannot_be_told_is_refused(
    arguments: list[str], sentence: str, classifier: RunFolder, run: Command, here: Path
) -> None:
    outcome = run("report", *(argument.format(run=classifier.path) for argument in arguments))
    assert outcome.code == 2
    assert sentence in outcome.err
    assert list(here.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_one_sentence(classifier: RunFolder, run: Command) -> None:
    outcome = run("report", f"runs={classifier.path}", "output=/proc/report.png")
    assert outcome.code == 1
    assert "'/proc/report.png' cannot be written" in outcome.err
    assert "Traceback" not in outcome.err


def test_nothing_of_it_needs_torch(classifier: RunFolder, here: Path) -> None:
    program = (
        "import sys; from kinoscope.cli import main; "
        f"codes = [main(['report', f'{{key}}={classifier.path}']) for key in ('run', 'runs')]; "
        "print(codes, *sorted({'torch', 'lightning', 'wandb', 'pandas', 'sklearn', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.stdout.splitlines()[-1] == "[0, 0]", done.stderr
