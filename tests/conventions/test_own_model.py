"""docs/your-own-model.md, followed to the letter in an empty folder: its files, its commands, and what they show."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import ROOT

from kinoscope.cli import main
from kinoscope.runs.folder import RunFolder

PAGE = (ROOT / "docs" / "your-own-model.md").read_text()
BLOCKS = [(kind, body) for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
COMMANDS = [line for kind, body in BLOCKS if kind == "sh" for line in body.splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's folder: each block whose first line names a file is that file."""
    folder = tmp_path_factory.mktemp("own")
    for kind, body in BLOCKS:
        if kind in ("python", "yaml"):
            first, _, text = body.partition("\n")
            file = folder / first.removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_models"]:
        del sys.modules[name]


def run(line: str, capfd: pytest.CaptureFixture[str], places: dict[str, str]) -> str:
    """Does one command of the page, in this process where it is one of ours; returns its stdout."""
    for placeholder, place in places.items():
        line = line.replace(placeholder, place)
    words = shlex.split(line)
    if words[:3] == ["python", "-m", "train"]:
        words = ["train", *words[3:]]
    elif words[0] == "kinoscope":
        words = words[1:]
    else:
        done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    capfd.readouterr()
    code = main(words)
    written = capfd.readouterr()
    assert code == 0, written.err
    return written.out


@pytest.mark.timeout(1800)  # four trainings, of minutes where others are at work, too
def test_every_command_does_what_the_page_says(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in workplace.iterdir()} == {"my_models", "conf", "test_my_models.py", "use.py"}
    places: dict[str, str] = {}
    shown: dict[str, str] = {}
    for line in COMMANDS:
        shown[line] = run(line, capfd, places)
        last = shown[line].strip().rpartition("\n")[2]
        if line.startswith("python -m train") and last and Path(last).is_dir():
            places.setdefault("<run>", last)
    first = RunFolder.open(places["<run>"])
    summary = first.read_summary()
    assert summary["status"] == "finished"
    assert summary["test"]["test/video_accuracy"] > 0.5  # of ten classes, after three epochs
    (helped,) = [out for line, out in shown.items() if line.endswith("--help")]
    assert "units of the hidden layer" in helped
    (checked,) = [out for line, out in shown.items() if "check=true" in line]
    assert "network.features.1" in checked
    (predicted,) = [out for line, out in shown.items() if line.startswith("python use.py")]
    assert predicted.strip() in map(str, range(10))
    assert (first.path / "evaluation.json").exists()
    assert len(list(Path("outputs").glob("*/*/summary.json"))) == 3


def test_the_fault_it_shows_is_what_is_said(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (block,) = [body for kind, body in BLOCKS if kind == "text"]
    command, sentence = block.splitlines()
    capfd.readouterr()
    assert main(["train", *shlex.split(command)[4:]]) == 2
    assert capfd.readouterr().err.strip() == sentence
