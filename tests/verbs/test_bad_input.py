"""Bad files, foreign folders, full disks: one sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import gzip
import io
import json
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from tiny import AUTOENCODER, COMMON, ONE_EPOCH, VIDEO, Command, Outcome

import kinoscope
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder

MOTION_ONLY = ("data.groups", "data.clips_per_group")
UCF101 = [line for line in VIDEO if not line.startswith(MOTION_ONLY)] + ["data=ucf101", "trainer.max_epochs=1"]
QUICK = [*AUTOENCODER, *ONE_EPOCH, "callbacks.reconstructions=null", "trainer.limit_test_batches=1"]


def one_sentence(outcome: Outcome, code: int, *parts: str) -> str:
    """Checks that a command failed as it should; returns what it said last."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    said = [line for line in outcome.err.splitlines() if line.startswith("kinoscope: ")]
    assert len(said) == 1, outcome.err
    for part in parts:
        assert part in said[0]
    return said[0]


def leftovers(folder: Path) -> list[str]:
    """Temporary files that an atomic write would leave."""
    return [path.name for path in folder.rglob(".*") if path.is_file() and not path.name.endswith(".lock")]


# Videos

SPOILT = {
    "zero-byte": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 3],
    "non-video": lambda content: b"This is the text of a web page that says 404.\n" * 40,
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_video_is_named_before_training(kind: str, videos: Path, run: Command, here: Path) -> None:
    bad = sorted(videos.rglob("*.avi"))[3]
    bad.write_bytes(SPOILT[kind](bad.read_bytes()))
    one_sentence(run("train", *UCF101, f"data.root={videos}"), 1, bad.name, "data.on_error=skip")
    assert not (here / "outputs").exists()
    assert leftovers(here) == []


def test_spoilt_videos_are_skipped_and_reported_if_asked(videos: Path, run: Command) -> None:
    bad = sorted(videos.rglob("*.avi"))[3 : 3 + len(SPOILT)]
    for path, spoil in zip(bad, SPOILT.values(), strict=True):
        path.write_bytes(spoil(path.read_bytes()))
    outcome = run("train", *UCF101, f"data.root={videos}", "data.on_error=skip")
    assert outcome.code == 0, outcome.err
    assert all(path.name in outcome.err for path in bad)
    assert "3 of 16 videos are skipped" in outcome.err


def test_a_listed_video_that_is_not_there_is_counted(videos: Path, run: Command) -> None:
    sorted(videos.rglob("*_g08_*.avi"))[0].unlink()
    outcome = run("train", *UCF101, f"data.root={videos}")
    assert outcome.code == 0, outcome.err
    assert "split 1 names 16 videos of these classes, 15 are here" in outcome.err


def test_a_class_folder_that_the_list_does_not_know(videos: Path, run: Command, here: Path) -> None:
    (videos / "UCF-101" / "MoveLeft").rename(videos / "UCF-101" / "MoveLeftt")
    outcome = run("train", *UCF101, f"data.root={videos}")
    one_sentence(outcome, 2, "'MoveLeftt'", "classInd.txt", "did you mean 'MoveLeft'")
    assert list(here.iterdir()) == []


def test_a_video_shorter_than_the_clip(videos: Path, run: Command, here: Path) -> None:
    command = [*UCF101, "experiment=video/early_fusion_small", f"data.root={videos}", "data.stride=60"]
    one_sentence(run("train", *command), 1, "data.stride=60", "spans", "data.on_error=skip")
    assert not (here / "outputs").exists()


def test_missing_lists(videos: Path, run: Command, here: Path) -> None:
    (videos / "ucfTrainTestlist" / "testlist01.txt").unlink()
    one_sentence(run("train", *UCF101, f"data.root={videos}"), 2, "testlist01.txt is missing")
    assert not (here / "outputs").exists()


# Images


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def mnist(here: Path) -> Path:
    """Real digits in MNIST's files."""
    digits: Any = load_digits()
    pixels = np.kron(digits.images, np.ones((1, 3, 3))).astype(np.uint8) * 15
    images, labels = np.pad(pixels, ((0, 0), (2, 2), (2, 2))), digits.target.astype(np.uint8)
    root = here / "mnist"
    root.mkdir()
    for name, part in (("train", slice(0, 300)), ("t10k", slice(300, 360))):
        (root / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images[part])))
        (root / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[part])))
    return root


@pytest.mark.parametrize("inside", [False, True], ids=["archive", "content"])
def test_an_idx_file_cut_short(inside: bool, mnist: Path, run: Command, here: Path) -> None:
    command = ["train", *QUICK, "data=mnist", f"data.root={mnist}"]
    whole = run(*command)
    assert whole.code == 0, whole.err
    shutil.rmtree(here / "outputs")
    file = mnist / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    file.write_bytes(gzip.compress(gzip.decompress(content)[:-5000]) if inside else content[:-500])
    one_sentence(run(*command), 1, file.name)
    assert not (here / "outputs").exists()


# Run folders and checkpoints


@pytest.fixture
def copy(autoencoder: RunFolder, here: Path) -> RunFolder:
    """The autoencoder's run, to be spoilt, as it was before other tests evaluated it."""
    but = shutil.ignore_patterns("evaluation.json")
    return RunFolder(Path(shutil.copytree(autoencoder.path, here / "copy", ignore=but)))


VERBS = ["evaluate", "sample"]


@pytest.mark.parametrize("verb", [*VERBS, "train"])
def test_a_folder_that_is_not_a_run(verb: str, run: Command, here: Path) -> None:
    (here / "empty").mkdir()
    key = "resume" if verb == "train" else "run"
    one_sentence(run(verb, f"{key}=empty"), 2, "'empty' is not a run folder")
    one_sentence(run(verb, f"{key}=nowhere"), 2, "'nowhere' is not a folder")
    assert [path.name for path in here.iterdir()] == ["empty"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("damage", ["summary.json {", "config.yaml a: [1", "config.yaml a: 1"])
def test_a_damaged_run_folder(verb: str, damage: str, copy: RunFolder, run: Command) -> None:
    file, _, content = damage.partition(" ")
    (copy.path / file).write_text(content)
    one_sentence(run(verb, f"run={copy.path}"), 2, file)
    with pytest.raises(Refusal, match=file):
        kinoscope.train([f"resume={copy.path}"])


@pytest.mark.parametrize("verb", VERBS)
def test_a_run_without_a_checkpoint_yet(verb: str, copy: RunFolder, run: Command) -> None:
    shutil.rmtree(copy.path / "checkpoints")
    one_sentence(run(verb, f"run={copy.path}"), 2, "holds no checkpoint yet")


@pytest.mark.parametrize("verb", VERBS)
def test_a_torn_checkpoint(verb: str, copy: RunFolder, run: Command) -> None:
    path = copy.checkpoint("best")
    path.write_bytes(path.read_bytes()[:-500])
    one_sentence(run(verb, f"run={copy.path}"), 1, "best.ckpt", "not a whole, safe checkpoint")
    assert run(verb, f"run={copy.path}", "checkpoint=last").code == 0


def test_a_checkpoint_of_another_experiment(copy: RunFolder, gan: RunFolder, run: Command) -> None:
    shutil.copy(gan.checkpoint("last"), copy.checkpoint("best"))
    one_sentence(run("evaluate", f"run={copy.path}"), 1, "belongs to another experiment")
    one_sentence(run("sample", f"run={copy.path}"), 1, "belongs to another experiment")
    shutil.copy(gan.checkpoint("last"), copy.checkpoint("last"))
    copy.write_summary(status="interrupted")
    one_sentence(run("train", f"resume={copy.path}"), 2, "belongs to another experiment")


def test_a_checkpoint_that_holds_code_is_not_run(copy: RunFolder, run: Command, here: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (here / "pwned",)

    state = {**torch.load(copy.checkpoint("best"), weights_only=True), "extra": Payload()}
    torch.save(state, copy.checkpoint("best"))
    one_sentence(run("evaluate", f"run={copy.path}"), 1, "not a whole, safe checkpoint")
    assert not (here / "pwned").exists()


BUILT = [("evaluate", key) for key in ("model.network", "data", "data.preprocess", "callbacks.mine", "trainer")]


@pytest.mark.parametrize("target", ["os.system", "torch.load"])
@pytest.mark.parametrize(("verb", "key"), [*BUILT, ("sample", "model"), ("sample", "data")])
def test_a_config_from_elsewhere_is_data(verb: str, key: str, target: str, copy: RunFolder, run: Command) -> None:
    """No command that reads a run builds what its config should not name, wherever that stands."""
    config = OmegaConf.load(copy.config_file)
    OmegaConf.update(config, f"{key}._target_", target, force_add=True)
    OmegaConf.save(config, copy.config_file)
    outcome = run(verb, f"run={copy.path}")
    if key in ("callbacks.mine", "trainer"):  # these commands have no use for them
        assert outcome.code == 0, outcome.err
    else:
        one_sentence(outcome, 2, f"'{target}' is not in kinoscope, torch.nn, torch.optim")


OWN = '''
"""A network of the user's own."""

from torch import Tensor, nn


class Flat(nn.Module):
    """One linear layer there and back."""

    def __init__(self, shape: list[int], code: int = 4) -> None:
        super().__init__()
        self.shape = tuple(shape)
        pixels = shape[0] * shape[1] * shape[2]
        self.there, self.back = nn.Linear(pixels, code), nn.Linear(code, pixels)

    def encode(self, x: Tensor) -> Tensor:
        return self.there(x.flatten(1))

    def decode(self, code: Tensor) -> Tensor:
        return self.back(code).unflatten(1, self.shape)
'''


def test_a_package_of_ones_own_is_trusted_by_name(here: Path, monkeypatch: pytest.MonkeyPatch, run: Command) -> None:
    files = {
        "mine/__init__.py": "",
        "mine/nets.py": OWN,
        "conf/model/autoencoder/flat.yaml": FLAT_MODEL,
        "conf/experiment/mine.yaml": "# @package _global_\ndefaults: [autoencoder/conv, override /data: digits, "
        "override /model: autoencoder/flat, _self_]\ndata: {size: 16, channels: 1}\n",
    }
    for name, text in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    monkeypatch.syspath_prepend(str(here))
    quick = [line for line in QUICK if not line.startswith(("experiment=", "model.network"))]
    outcome = run("train", "--config-dir", "conf", "experiment=mine", *quick)
    assert outcome.code == 0, outcome.err
    folder = outcome.out.strip()
    with pytest.raises(Refusal, match=r"network._target_: 'mine.nets.Flat' is not in kinoscope"):
        kinoscope.load_run(folder)
    loaded = kinoscope.load_run(folder, trust=["mine"])
    assert loaded.encode(np.zeros((2, 16, 16, 1), np.uint8)).shape == (2, 3)
    one_sentence(run("sample", f"run={folder}"), 2, "trust=[")
    assert run("sample", f"run={folder}", "trust=[mine]").code == 0


FLAT_MODEL = """
defaults:
  - optimizer: adam
  - _self_
_target_: kinoscope.systems.autoencoder.Autoencoder
network: {_target_: mine.nets.Flat, shape: "${data.spec.shape}", code: 3}
objective: {_target_: kinoscope.objectives.reconstruction.SquaredError}
log_every: 1
"""


# Output folders


def test_a_file_in_place_of_the_output_folder(run: Command, here: Path) -> None:
    (here / "outputs").write_text("a file")
    one_sentence(run("train", *QUICK), 2, "output_dir: nothing can be written in", "Not a directory")
    assert [path.name for path in here.iterdir()] == ["outputs"]
    assert (here / "outputs").read_text() == "a file"


def test_an_evaluation_that_cannot_be_written(copy: RunFolder, run: Command) -> None:
    (copy.path / "evaluation.json").mkdir()
    one_sentence(run("evaluate", f"run={copy.path}"), 1, "evaluation.json", "cannot be written")
    assert leftovers(copy.path) == []


@contextmanager
def disk_that_takes(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: the system refuses the write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_the_last_good_checkpoint(here: Path) -> None:
    """Prolonged onto a disk that is full, the run fails in one sentence, loads, and goes on when there is room."""
    found = RunFolder.open(kinoscope.train(QUICK))
    before = {path.name: path.read_bytes() for path in (found.path / "checkpoints").iterdir()}
    longer = [f"resume={found.path}", "trainer.max_epochs=2"]
    with disk_that_takes(len(before["last.ckpt"]) // 2), pytest.raises(KinoscopeError) as caught:
        kinoscope.train(longer)
    assert "cannot be written (File too large); the last good checkpoint stands" in str(caught.value)
    assert {path.name: path.read_bytes() for path in (found.path / "checkpoints").iterdir()} == before
    assert leftovers(here) == []
    assert found.read_summary()["status"] == "failed"
    assert kinoscope.load_run(found.path, "last").steps == 4
    kinoscope.train(longer)
    assert found.read_summary()["status"] == "finished"
    assert read_checkpoint(found.checkpoint("last"))["global_step"] == 8


def test_a_disk_that_is_full_from_the_start(run: Command, here: Path) -> None:
    """Not even the config fits: no folder is left that is no run."""
    with disk_that_takes(200):
        outcome = run("train", *QUICK)
    one_sentence(outcome, 2, "output_dir: ", "cannot be written")
    assert [path for path in here.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("moment", ["metrics.csv", "summary.json"])
def test_any_other_file_that_cannot_be_written(moment: str, run: Command, here: Path, monkeypatch: Any) -> None:
    """A write that the system refuses in mid-run, whichever file it is."""
    rename, opened = Path.replace, Path.open

    def is_it(path: Path) -> bool:
        return path.name == moment and (path.parent / "checkpoints" / "last.ckpt").exists()

    def replace(self: Path, target: Any) -> Path:
        if is_it(Path(target)):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    def open_(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> io.IOBase:
        if "a" in mode and is_it(self):
            raise OSError(28, "No space left on device")
        return opened(self, mode, *args, **kwargs)  # type: ignore[return-value]

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "open", open_)
    outcome = run("train", *QUICK, "trainer.max_epochs=3")
    (folder,) = (here / "outputs").glob("*/*/*")
    assert outcome.out == f"{folder.relative_to(here)}\n", "the folder of a failed run is said too"
    one_sentence(outcome._replace(out=""), 1, moment, "No space left on device")


# A killed run


def test_the_folder_of_a_killed_run_is_evaluated_and_resumed(run: Command, here: Path) -> None:
    """Nothing more than what a kill -9 leaves: status running, no lock, a checkpoint of the first epoch."""
    found = RunFolder.open(kinoscope.train(QUICK))
    config = found.config_file.read_text().replace("max_epochs: 1", "max_epochs: 2")
    found.config_file.write_text(config)
    found.write_summary(status="running", test={})
    assert run("evaluate", f"run={found.path}").code == 0
    outcome = run("train", f"resume={found.path}", *COMMON)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{found.path}\n"
    summary = json.loads(found.summary_file.read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 8
    assert summary["test"]


@pytest.mark.parametrize("override", ["callbacks.checkpoint=null", "trainer.enable_checkpointing=false"])
def test_no_run_is_without_checkpoints(override: str, run: Command, here: Path) -> None:
    one_sentence(run("train", *QUICK, override), 2, override)
    assert not (here / "outputs").exists()


def test_a_run_without_any_other_callback_is_saved_and_tested(run: Command, here: Path) -> None:
    bare = [
        "experiment=autoencoder/conv_small",
        "callbacks=none",
        "debug=fast",
        "logger=csv",
        "trainer.accelerator=cpu",
    ]
    outcome = run("train", *bare)
    assert outcome.code == 0, outcome.err
    folder = RunFolder.open(Path(outcome.out.splitlines()[-1]))
    assert read_checkpoint(folder.checkpoint("last"))["global_step"] == folder.read_summary()["steps"] > 0
    assert folder.read_summary()["test"]
