"""``kinoscope train`` as its user sees it: the folder, the summary, Lightning's arguments, the guards, the loggers."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny import AUTOENCODER, GAN, ONE_EPOCH, VIDEO, Command

import kinoscope
from kinoscope.config.compose import compose
from kinoscope.errors import KinoscopeError
from kinoscope.runs.build import build_system
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder

QUICK = [*AUTOENCODER, *ONE_EPOCH, "callbacks.reconstructions=null", "trainer.limit_test_batches=1"]
STOP = "lightning.pytorch.callbacks.EarlyStopping"


def train(*overrides: str) -> RunFolder:
    return RunFolder.open(kinoscope.train([*QUICK, *overrides]))


def column(run: RunFolder, name: str) -> list[float]:
    """The values of one column of metrics.csv, without its empty cells."""
    with run.metrics_file.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def newest() -> RunFolder:
    return RunFolder.open(max(Path("outputs").glob("*/*/*"), key=lambda path: path.stat().st_mtime_ns))


# What a run leaves


def test_the_folder_holds_what_the_design_says_and_nothing_else(classifier: RunFolder, home: Path) -> None:
    files = {path.name for path in classifier.path.iterdir()}
    assert files - {".lock", "evaluation.json", "report.png"} == {  # which other tests of the same run leave
        "config.yaml", "provenance.json", "train.log", "metrics.csv", "summary.json", "checkpoints", "pictures",
    }  # fmt: skip
    assert {path.name for path in (classifier.path / "checkpoints").iterdir()} == {
        "best.ckpt", "last.ckpt", "previous.ckpt",
    }  # fmt: skip
    assert {"contact_sheet.png", "confusion_matrix.png", "learning_curves.png"} <= {
        path.name for path in classifier.pictures.iterdir()
    }
    assert {path.name for path in home.iterdir()} == {"data", "outputs"}
    assert re.fullmatch(
        r"outputs/video/single_frame_small/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(\.\d+)?-[0-9a-f]{8}",
        classifier.path.relative_to(home).as_posix(),
    )


def test_the_summary(classifier: RunFolder) -> None:
    summary = classifier.read_summary()
    measured = ["seconds", "steps", "monitor", "best", "last", "test", "time", "memory", "skipped"]
    assert list(summary) == ["status", "signature", "devices", *measured]
    assert summary["status"] == "finished"
    assert classifier.path.name.endswith(f"-{summary['signature']}")
    assert summary["seconds"] > 0
    assert summary["monitor"] == "val/video_accuracy"
    batches = 30 // 10  # training videos over the batch size
    assert summary["steps"] == summary["last"]["step"] == 2 * batches
    assert summary["best"]["step"] in (batches, 2 * batches)
    for part, stage in (("best", "val"), ("last", "val"), ("test", "test")):
        values = {name: value for name, value in summary[part].items() if name != "step"}
        assert values.keys() == {f"{stage}/{n}" for n in ("loss", "clip_accuracy", "video_accuracy", "video_hit5")}
        accuracies = [value for name, value in values.items() if not name.endswith("loss")]
        assert all(0 <= value <= 1 for value in accuracies)
    assert summary["best"]["val/video_accuracy"] >= summary["last"]["val/video_accuracy"]
    right = 12 * summary["test"]["test/video_accuracy"]  # of 12 test videos
    assert right == pytest.approx(round(right))


def test_config_provenance_and_log(classifier: RunFolder) -> None:
    config = OmegaConf.load(classifier.config_file)
    text = classifier.config_file.read_text()
    assert "${" not in text  # resolved
    assert "hydra" not in config
    assert config.data.spec.num_classes == 6
    assert config.name == "video/single_frame_small"
    provenance = json.loads(classifier.provenance_file.read_text())
    assert {"date", "command", "seed", "data_hash", "git", "versions", "host"} <= provenance.keys()
    assert provenance["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "test/video_accuracy" in classifier.log_file.read_text()


def test_metrics_agree_with_the_summary(classifier: RunFolder) -> None:
    summary = classifier.read_summary()
    validated = column(classifier, "val/video_accuracy")
    assert len(validated) == 2
    assert validated[-1] == summary["last"]["val/video_accuracy"]
    assert max(validated) == summary["best"]["val/video_accuracy"]
    assert column(classifier, "test/video_accuracy") == [summary["test"]["test/video_accuracy"]]
    assert len(column(classifier, "train/loss")) == summary["steps"]  # log_every=1


def test_checkpoints_load_safely_and_carry_their_run(classifier: RunFolder) -> None:
    for name in ("best", "last", "previous"):
        checkpoint = torch.load(classifier.path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["kinoscope"]["signature"] == classifier.read_summary()["signature"]
        assert checkpoint["kinoscope"]["config"] == OmegaConf.to_container(OmegaConf.load(classifier.config_file))


def test_stdout_is_the_run_folder_alone(here: Path) -> None:
    """A process, since its streams are the point; the bar and the log go to stderr."""
    overrides = [override for override in QUICK if override != "callbacks.progress=null"]
    command = [sys.executable, "-m", "train", *overrides]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = done.stdout.splitlines()
    assert not Path(folder).is_absolute()
    assert RunFolder.open(here / folder).read_summary()["status"] == "finished"
    assert "test/squared_error = " in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_without_a_progress_bar_stdout_still_holds_the_folder_alone(run: Command) -> None:
    outcome = run("train", *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{newest().path}\n"


# check and debug


def test_check_prints_the_layers_and_writes_nothing(run: Command, here: Path) -> None:
    outcome = run("train", *AUTOENCODER, "check=true")
    assert outcome.code == 0, outcome.err
    assert list(here.iterdir()) == []
    system = build_system(compose("train", AUTOENCODER))
    total = sum(parameter.numel() for parameter in system.parameters())
    assert outcome.out.splitlines()[-1].startswith(f"{total:,} trainable parameters")
    rows = re.findall(r"^network\.\S+ +\w+ +([\d,]+)  32(?: × \d+)+$", outcome.out, flags=re.MULTILINE)
    assert sum(int(row.replace(",", "")) for row in rows) == total


@pytest.mark.parametrize("kind", [VIDEO, GAN], ids=["video", "gan"])
def test_check_works_for_the_other_systems(kind: list[str], run: Command, data_dir: str, here: Path) -> None:
    data = [data_dir] if kind is VIDEO else []
    outcome = run("train", *kind, *data, "check=true")
    assert outcome.code == 0, outcome.err
    assert "Conv" in outcome.out
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("kind", ["fast", "overfit", "profile", "nan"])
def test_debug(kind: str, run: Command) -> None:
    outcome = run("train", *AUTOENCODER, f"debug={kind}", "trainer.max_epochs=2", "trainer.limit_test_batches=1")
    assert outcome.code == 0, outcome.err
    found = newest()
    assert found.read_summary()["status"] == "finished"
    assert found.read_summary()["test"]
    assert list(found.pictures.glob("*.png"))
    if kind == "profile":
        assert outcome.out == f"{found.path}\n"
        assert str(found.path / "profile.txt") in outcome.err
        table = (found.path / "profile.txt").read_text()
        assert "3 training steps" in table, "the eight of this training less the five before recording"
        assert "aten::convolution" in table
        trace = json.loads((found.path / "trace.json").read_text())
        assert {"ProfilerStep#5", "ProfilerStep#6", "ProfilerStep#7"} <= {
            event["name"] for event in trace["traceEvents"]
        }


# Lightning's arguments mean what its users know


def test_limits(here: Path) -> None:
    run = train("trainer.limit_train_batches=3", "trainer.max_epochs=2")
    assert run.read_summary()["steps"] == 6
    share = train("trainer.limit_train_batches=0.1")  # of 1293 digits in batches of 32
    assert share.read_summary()["steps"] == int(0.1 * (1293 // 32))


def test_max_steps_ends_inside_an_epoch(here: Path) -> None:
    run = train("trainer.max_epochs=-1", "trainer.max_steps=6", "trainer.limit_train_batches=4")
    assert run.read_summary()["steps"] == 6
    assert read_checkpoint(run.checkpoint("last"))["global_step"] == 6


def test_validation_inside_an_epoch(here: Path) -> None:
    run = train("trainer.limit_train_batches=6", "trainer.val_check_interval=2")
    monitor = run.read_summary()["monitor"]
    assert len(column(run, monitor)) == 3


def test_overfitting_sees_the_same_batches_again(here: Path) -> None:
    """Two batches, thirty times: their loss falls far below that of the first pass."""
    run = train("trainer.overfit_batches=2", "trainer.max_epochs=30", "trainer.check_val_every_n_epoch=30")
    losses = column(run, "train/loss")
    assert len(losses) == 60
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])


def test_early_stopping_stops_and_the_run_is_finished(here: Path) -> None:
    """A network that never moves (lr 0) never improves: patience 2 ends it after three validations."""
    stop = f"+callbacks.early_stopping={{_target_: {STOP}, monitor: '${{monitor}}', mode: '${{mode}}', patience: 2}}"
    run = train("trainer.max_epochs=20", "trainer.limit_train_batches=1", "model.optimizer.lr=0", stop)
    summary = run.read_summary()
    assert summary["status"] == "finished"
    assert summary["steps"] == 3
    assert summary["test"]


def test_max_time(here: Path) -> None:
    run = train("trainer.max_epochs=-1", "trainer.max_time='00:00:00:01'", "trainer.limit_train_batches=null")
    summary = run.read_summary()
    assert summary["status"] == "finished"
    assert 0 < summary["seconds"] < 300  # without end otherwise
    assert read_checkpoint(run.checkpoint("last"))["global_step"] == summary["steps"] > 0


def test_a_schedule_and_its_monitor(here: Path) -> None:
    """The learning rate of each step is a column; a cosine over 8 steps goes as its formula says."""
    run = train(
        "trainer.max_epochs=2",
        "+model.scheduler={_target_: torch.optim.lr_scheduler.CosineAnnealingLR, _partial_: true, T_max: 8}",
        "++model.scheduler_interval=step",
        "model.optimizer.lr=0.1",
    )
    rates = column(run, "lr-Adam")
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


def test_a_schedule_of_epochs(here: Path) -> None:
    step = "+model.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 1, gamma: 0.1}"
    run = train("trainer.max_epochs=3", "trainer.limit_train_batches=2", "model.optimizer.lr=0.1", step)
    assert column(run, "lr-Adam") == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


CRITIC = [*GAN, "callbacks.samples=null", "model.critic_steps=3", "model.log_every=5"]


@pytest.mark.parametrize(
    ("command", "full"),
    [([*QUICK, "model.log_every=2", "trainer.accumulate_grad_batches=4"], True), (CRITIC, True),
     ([*CRITIC, "trainer.accumulate_grad_batches=2"], False)],
    ids=["accumulated", "gan", "gan-accumulated"],
)  # fmt: skip
def test_there_is_one_clock(here: Path, command: list[str], full: bool) -> None:
    """And a window's means have the learning rates beside them, but for a last one that is not full."""
    batches = ["data.batch_size=16", "trainer.limit_train_batches=32", "trainer.val_check_interval=16"]
    run = RunFolder.open(kinoscope.train([*command, *ONE_EPOCH, *batches, "trainer.limit_test_batches=1"]))
    with run.metrics_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == run.read_summary()["steps"]
    windows = [any(value for name, value in row.items() if name.startswith("train/")) for row in rows]
    assert any(windows)
    rated = [bool(row["lr-Adam"]) for row in rows]
    assert rated[:-1] == windows[:-1]
    assert (windows[-1], rated[-1]) == (True, full)


def test_a_run_of_few_steps_has_curves(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    quiet = [word for word in QUICK if not word.startswith(("callbacks.learning_curves", "trainer.limit_val"))]
    run = RunFolder.open(kinoscope.train([*quiet, "trainer.limit_val_batches=0", "model.log_every=1000"]))
    assert len(column(run, "train/loss")) == 1
    assert (run.path / "pictures" / "learning_curves.png").exists()
    assert "no learning curves" not in caplog.text


def test_a_step_is_logged_once(here: Path) -> None:
    """The fourth and the fifth update of a critic belong to the generator's first step, which a full one told."""
    few = [
        *GAN,
        *ONE_EPOCH,
        "callbacks.samples=null",
        "model.critic_steps=3",
        "model.log_every=2",
        "data.batch_size=16",
    ]
    runs = [RunFolder.open(kinoscope.train([*few, f"trainer.limit_train_batches={updates}"])) for updates in (4, 5)]
    four, five = (column(run, "train/critic_loss") for run in runs)
    assert len(four) == 1
    assert five == four


# The guard


@pytest.mark.parametrize("kind", [AUTOENCODER, GAN], ids=["autoencoder", "gan"])
def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(kind: list[str], run: Command) -> None:
    """The first epoch is sound; then the learning rate is absurd."""
    key = "model.optimizer" if kind is AUTOENCODER else "model.critic_optimizer"
    pictures = "callbacks.reconstructions=null" if kind is AUTOENCODER else "callbacks.samples=null"
    command = [*kind, pictures, "callbacks.learning_curves=null", "trainer.max_epochs=1"]
    assert run("train", *command).code == 0
    good = newest()
    outcome = run("train", *command, "seed=1", "trainer.max_epochs=40", f"{key}.lr=1e30")
    assert outcome.code == 1
    assert re.search(r"kinoscope: '\w+' became (nan|inf|-inf) at step \d+; the run was stopped", outcome.err) or (
        "became non-finite before step" in outcome.err
    )
    assert "Traceback" not in outcome.err
    found = newest()
    assert found.path != good.path
    assert found.read_summary()["status"] == "failed"
    for path in (found.path / "checkpoints").iterdir():
        state = read_checkpoint(path)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values())


def test_the_last_good_checkpoint_stands(here: Path) -> None:
    """A run that goes astray after its first epoch keeps that epoch's checkpoint, which loads."""
    explode = "+model.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 1, gamma: 1e36}"
    with pytest.raises(KinoscopeError, match=r"became (nan|inf) at step \d+|non-finite before step"):
        train("trainer.max_epochs=4", "trainer.limit_train_batches=3", explode)
    found = newest()
    assert found.read_summary()["status"] == "failed"
    loaded = kinoscope.load_run(found.path, "last")
    assert loaded.steps == 3
    assert all(torch.isfinite(parameter).all() for parameter in loaded.system.parameters())


# Loggers


@pytest.mark.parametrize("name", ["none", "csv"])
def test_metrics_are_always_on_disk(name: str, here: Path) -> None:
    run = train(f"logger={name}")
    assert column(run, "train/loss")
    assert {path.name for path in here.iterdir()} == {"outputs"}


def test_wandb_offline_stays_in_the_run_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)  # offline without being told
    run = train("logger=wandb", "logger.tags=[tiny]")
    assert {path.name for path in here.iterdir()} == {"outputs"}
    (written,) = (run.path / "wandb").glob(f"offline-run-*-{run.read_summary()['signature']}-*/run-*.wandb")
    content = written.read_bytes()
    for expected in (b"train/loss", b"autoencoder/conv_small", b"tiny"):
        assert expected in content
    assert b"${" not in content  # the config is resolved


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_a_missing_tensorboard_is_one_sentence(run: Command) -> None:
    outcome = run("train", *QUICK, "logger=tensorboard")
    assert outcome.code == 2
    assert "kinoscope: logger=tensorboard needs the tensorboard package" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard(here: Path) -> None:
    run = train("logger=tensorboard")
    assert list((run.path / "tensorboard").glob("events.out.tfevents.*"))


def test_the_function_answers_like_the_command(here: Path) -> None:
    """From Python a fault is an exception, and the returned folder loads."""
    with pytest.raises(KinoscopeError, match="did you mean 'seed'"):
        kinoscope.train([*QUICK, "seeed=3"])
    assert os.listdir(here) == []  # noqa: PTH208 - names are enough
    assert kinoscope.load_run(kinoscope.train(QUICK)).spec.modality == "image"
