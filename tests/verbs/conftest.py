"""One tiny data set and one tiny trained run of each kind, shared by the tests of all commands."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import AUTOENCODER, GAN, ONE_EPOCH, VIDEO, Command, Outcome

import kinoscope
from kinoscope.cli import main
from kinoscope.runs.folder import RunFolder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``kinoscope <arguments>`` in this process. File descriptors are captured, so that nothing slips past."""

    def command(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        written = capfd.readouterr()
        return Outcome(code, written.out, written.err)

    return command


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared runs lie, with the data that they were trained on."""
    return tmp_path_factory.mktemp("verbs")


@pytest.fixture(scope="session")
def data_dir(home: Path) -> str:
    """``data_dir=…``: the videos are generated once."""
    return f"data_dir={home / 'data'}"


def trained(home: Path, overrides: Sequence[str]) -> RunFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return RunFolder.open(home / kinoscope.train(overrides))


@pytest.fixture(scope="session")
def classifier(home: Path, data_dir: str) -> RunFolder:
    """Two epochs of a single-frame network, with pictures; 30 videos to train on, 6 to validate, 12 to test."""
    return trained(home, [*VIDEO, data_dir, "trainer.max_epochs=2", "model.log_every=1", "data.validation=0.2"])


@pytest.fixture(scope="session")
def autoencoder(home: Path) -> RunFolder:
    return trained(home, [*AUTOENCODER, *ONE_EPOCH])


@pytest.fixture(scope="session")
def gan(home: Path) -> RunFolder:
    return trained(home, [*GAN, *ONE_EPOCH])


@pytest.fixture
def videos(classifier: RunFolder, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of two classes, 16 videos, as a UCF101 folder to be spoilt."""
    (source,) = (path for path in (home / "data" / "motion").iterdir() if path.is_dir())
    copy = tmp_path_factory.mktemp("videos") / "ucf101"
    for part in ("ucfTrainTestlist", "UCF-101/Grow", "UCF-101/MoveLeft"):
        shutil.copytree(source / part, copy / part)
    return copy
