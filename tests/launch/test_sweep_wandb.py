"""``sweep=wandb``: the file means to W&B what the command means to us, and its agent starts what we would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeping import lay_out
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.sdk.sweeps.scheduler.optuna import search_space_from_sweep_config, sweep_directions

from kinoscope.cli import main
from kinoscope.config.compose import composing
from kinoscope.config.preflight import preflight
from kinoscope.config.space import split
from kinoscope.launch.sweep_search import distribution

SPACE = [
    "model.lr=tag(log,interval(1e-4,1e-1))",
    "model.width=int(interval(4,64))",
    "seed=range(9,34,8)",
    "data=thing",
    "trainer.gradient_clip_val=0.5,1.0,null",
    "trainer.precision=32-true,bf16-mixed",
]
HEAD = ["--config-dir", "conf", "experiment=thing"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    return tmp_path


def written(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[Mapping[str, Any], str]:
    assert main(["train", *HEAD, "logger=wandb", *words]) == 0
    out, err = capfd.readouterr()
    return yaml.safe_load(Path(out.strip()).read_text()), err


def test_wandb_reads_the_same_search_space(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, err = written(capfd, "sweep=wandb", "sweep.trials=30", *SPACE)
    theirs = search_space_from_sweep_config(content["parameters"])
    with composing("train"):
        ours = {key: distribution(dimension) for key, dimension in split(SPACE)[1].items()}
    numbers = [key for key in ours if key.startswith("model")]
    assert {key: theirs[key] for key in numbers} == {key: ours[key] for key in numbers}
    assert content["parameters"]["seed"] == {"values": [9, 17, 25, 33]}
    assert content["parameters"]["trainer.gradient_clip_val"] == {"values": [0.5, 1.0, "null"]}
    assert content["parameters"]["trainer.precision"] == {"values": ["32-true", "bf16-mixed"]}
    assert sorted(theirs) == sorted(ours)
    assert (content["method"], content["run_cap"], content["project"]) == ("bayes", 30, "kinoscope")
    assert content["metric"] == {"name": "val/loss", "goal": "minimize"}
    assert sweep_directions(dict(content)) == ["minimize"]
    assert "wandb sweep --project kinoscope outputs/sweeps/" in err
    assert "wandb agent" in err


def test_an_agent_starts_a_command_without_fault(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """W&B's own agent code fills the command in; what comes out passes our checks and sets what W&B suggested."""
    content, _ = written(
        capfd, "sweep=wandb", "sweep.method=random", "++model.width=9", "model.lr=interval(0.1,1)", *SPACE[-2:]
    )
    suggested = {"model.lr": 0.25, "trainer.gradient_clip_val": "null", "trainer.precision": "bf16-mixed"}
    arguments = create_sweep_command_args({"args": {key: {"value": value} for key, value in suggested.items()}})
    command: list[str] = []
    for word in create_sweep_command(list(content["command"])):
        name = word.removeprefix("${").removesuffix("}")
        command += arguments.get(name, [word])
    start = command.index("python")
    assert command[start : start + 6] == ["python", "-m", "train", "--config-dir", "conf", "experiment=thing"]
    checked = preflight("train", command[start + 5 :], "conf")
    assert checked.faults == []
    assert checked.config is not None
    assert checked.config.model == {"_target_": "fake_model.Thing", "lr": 0.25, "width": 9}
    assert checked.config.trainer.gradient_clip_val is None
    assert checked.config.logger.mode == "online"


def test_a_grid_of_words(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content, _ = written(capfd, "sweep=wandb", "sweep.method=grid", "model.lr=range(0.1,0.35,0.1)", "mode=min,max")
    assert content["parameters"] == {"model.lr": {"values": [0.1, 0.2, 0.3]}, "mode": {"values": ["min", "max"]}}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["logger=csv", "seed=1,2"], "sweep=wandb needs logger=wandb"),
        (["sweep.method=grid", "model.lr=interval(0.1,1)"], "an interval has no end of values"),
        (["seed=range(0,1001)"], "seed: this range holds more than the 1000 values that W&B is given"),
        (["seed=1,2", "sweep.objectives={val/loss: min, val/size: min}"], "a W&B sweep has one"),
        (["seed=1,2", "monitor=null"], "has no monitor to search by"),
        (["sweep.method=tpe", "seed=1,2"], "sweep.method is 'tpe', but must be grid | random | bayes"),
        ([], "nothing varies"),
    ],
)
def test_a_fault_is_one_sentence(
    folder: Path, capfd: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["train", *HEAD, "logger=wandb", "sweep=wandb", *words]) == 2
    assert sentence in capfd.readouterr().err
    assert not (folder / "outputs").exists()
