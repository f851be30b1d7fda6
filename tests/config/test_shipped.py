"""The configs that are shipped: every option composes without a fault, and the common mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinoscope.cli import main
from kinoscope.config.compose import config_folder
from kinoscope.config.preflight import preflight

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIONS = [
    f"{group}={file.stem}"
    for group in ("trainer", "logger", "debug", "callbacks")
    for file in sorted((CONFIGS / group).glob("*.yaml"))
]


def test_the_installed_configs_are_the_ones_here() -> None:
    """Editable install; a wheel holds copies of them."""
    assert config_folder().samefile(CONFIGS)


def test_bare_train_has_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checked = preflight("train")
    assert checked.faults == []
    assert checked.config is not None
    assert checked.config.name == "video/slow_fusion_small"


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_fits_the_default_experiment(option: str) -> None:
    assert preflight("train", [option]).faults == []


@pytest.mark.parametrize("value", ["online", "offline", "disabled"])
def test_wandb_mode_may_come_from_the_environment(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    checked = preflight("train")
    assert checked.config is not None
    assert checked.config.logger.mode == value
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    assert preflight("train").faults == ["logger.mode is 'sometimes', but must be offline | online | disabled"]


def test_the_mistakes_that_everybody_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mistakes = {
        "model.optimizer.lrr=0.1": "did you mean 'model.optimizer.lr'?",
        "+model.optimizer.lrr=0.2": "did you mean 'model.optimizer.lr'?",
        "seeed=3": "did you mean 'seed'?",
        "+seeed=4": "did you mean 'seed'?",
        "model=video/c3dd": "did you mean 'video/c3d'?",
        "data.batch_size=abc": "data.batch_size is 'abc', but must be int",
        "trainer.max_epoch=1": "did you mean 'trainer.max_epochs'",
        "trainer.accelerator=gpux": "did you mean 'gpu'?",
        "data.split=7": "data.split is 7, but must be 1 | 2 | 3",
        "data=ucf101": "data.root is not set: give data.root=…",
        "resume=nowhere": "'nowhere' is not a folder",
    }
    assert main(["train", *mistakes]) == 2
    out, err = capsys.readouterr()
    first, *lines = err.splitlines()
    assert first == f"kinoscope: {len(mistakes)} faults, nothing was started"
    assert len(lines) == len(mistakes)
    for typed, cure in mistakes.items():
        assert any(cure in line for line in lines), typed
    assert out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "sentences"),
    [
        (["trainer.strategy=ddp_spawn"], ["starts ranks in Lightning's way; choose ddp"]),
        (["trainer.num_nodes=2"], ["must be set on each node"]),
        (["model.optimizer.lr=-1"], ["Invalid learning rate: -1"]),
        (["trainer.max_epochs=-1", "trainer.max_steps=9"], ["scheduler.T_max is -1"]),
        (["output_dir=/proc/nowhere"], ["nothing can be written in '/proc'"]),
        (
            ["data.frames=-3", "data.batch_size=0", "data.validation=2", "model.network.fc=[8]"],
            ["data.frames must be at least 1", "data.batch_size must be at least 1", "data.validation is a share"],
        ),
    ],
)
def test_what_only_a_constructor_rejects_is_refused_before_any_work(
    typed: list[str],
    sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *typed]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    for sentence in sentences:
        assert sentence in err
    assert list(tmp_path.iterdir()) == [], "no folder, no data"


def test_missing_data_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (fault,) = preflight("train", ["data=ucf101", "data.root=nowhere"]).faults
    assert "'nowhere'" in fault
    (fault,) = preflight("train", ["experiment=autoencoder/conv_small", "data=mnist"]).faults
    assert "mnist" in fault


@pytest.mark.parametrize("verb", ["train", "evaluate", "sample", "prepare"])
def test_every_verb_has_a_page(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Keys, set with key=value" in out
    assert "Traceback" not in out
