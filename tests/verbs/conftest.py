"""One tiny data set and one tiny trained run of each kind, shared by the tests of all commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

import kinoscope
from kinoscope.cli import main
from kinoscope.runs.folder import RunFolder

COMMON = ["logger=csv", "callbacks.progress=null", "trainer.accelerator=cpu", "data.workers=0"]
VIDEO = [
    "experiment=video/single_frame_small", *COMMON, "data.groups=8", "data.clips_per_group=1", "data.batch_size=10",
    "model.network.channels=[4,4,4,4,4]", "model.network.fc=[8]",
]  # fmt: skip
IMAGES = ["data.batch_size=32", "trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "model.log_every=1"]
AUTOENCODER = ["experiment=autoencoder/conv_small", *COMMON, *IMAGES, "model.network.widths=[4,4,4]"]
GAN = ["experiment=gan/dcgan_small", *COMMON, *IMAGES, "model.generator.width=4"]
ONE_EPOCH = ["trainer.max_epochs=1", "callbacks.learning_curves=null"]


class Outcome(NamedTuple):
    """What a command leaves: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``kinoscope <arguments>`` in this process. File descriptors are captured, so that nothing slips past."""

    def command(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

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
def classifier(home: Path, data_dir: str) -> Iterator[RunFolder]:
    """Two epochs of a single-frame network, with pictures; 30 videos to train on, 6 to validate, 12 to test."""
    yield trained(home, [*VIDEO, data_dir, "trainer.max_epochs=2", "model.log_every=1", "data.validation=0.2"])


@pytest.fixture(scope="session")
def autoencoder(home: Path) -> Iterator[RunFolder]:
    yield trained(home, [*AUTOENCODER, *ONE_EPOCH])


@pytest.fixture(scope="session")
def gan(home: Path) -> Iterator[RunFolder]:
    yield trained(home, [*GAN, *ONE_EPOCH])
