"""Every fault of a command, found before work, together, each with a cure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig

from kinoscope.cli import main
from kinoscope.config.compose import compose, compose_checked, composing
from kinoscope.config.preflight import preflight
from kinoscope.config.resolvers import choice
from kinoscope.errors import Refusal


def faults(conf: Path, *overrides: str, experiment: str = "toy", **options: bool) -> list[str]:
    return preflight("train", [f"experiment={experiment}", *overrides], conf, **options).faults


# What is typed, and what the one sentence about it must hold.
FAULTS = {
    "model.optimizer.lrr=0.1": "did you mean 'model.optimizer.lr'?",
    "+model.optimizer.lrr=0.1": "did you mean 'model.optimizer.lr'?",
    "++model.optimizer.lrr=0.1": "did you mean 'model.optimizer.lr'?",
    "seeed=3": "did you mean 'seed'?",
    "+seeed=3": "did you mean 'seed'?",
    "lr=1": "did you mean 'model.optimizer.lr'?",
    "weight_decay=1": "did you mean 'model.optimizer.weight_decay'?",  # not in the yaml, an argument of SGD
    "experimnt=toy": "did you mean 'experiment'?",
    "model=toyy": "did you mean 'toy'?",
    "data=nothing_like_it": "data has no option 'nothing_like_it'; there are: ",
    "model/objectiv=minimax": "there is no group 'model/objectiv'",
    "experiment/toy": "did you mean 'experiment=toy'?",
    "data.batch_size=abc": "data.batch_size is 'abc', but must be int",
    "data.batch_size=2.5": "data.batch_size is 2.5, but must be int",
    "data.batch_size=true": "data.batch_size is true, but must be int",
    "data.batch_size=null": "data.batch_size is null, but must be int",
    "data.batch_sise=3": "did you mean 'data.batch_size'?",  # an argument of the base class
    "data.split=7": "data.split is 7, but must be 1 | 2 | 3",
    "data.size=[1,2,3]": "data.size is [1, 2, 3], but must be int | [int, int]",
    "data.classes=[1]": "data.classes is [1], but must be list of str | null",
    "model.network.norm=bacth": "did you mean 'batch'?",
    "model.network.widths=[1,a]": "must be list of int",
    "model.network.colour=green": "must be red | blue",
    "model.optimizer.lr=fast": "model.optimizer.lr is 'fast', but must be float",
    "model.optimizer._target_=torch.optim.SDG": "did you mean 'torch.optim.SGD'?",
    "model.network._target_=toyy.Net": "there is no module 'toyy'",
    "trainer.max_epoch=1": "did you mean 'trainer.max_epochs'",
    "trainer.accelerator=gpux": "did you mean 'gpu'?",
    "trainer.strategy=ddpp": "did you mean 'ddp'",
    "trainer.precision=17-true": "trainer.precision is '17-true', but must be ",
    "trainer.gradient_clip_algorithm=values": "did you mean 'value'?",
    "seed=x": "seed is 'x', but must be int",
    "mode=maxx": "mode is 'maxx', but must be min | max",
    "check=maybe": "check is 'maybe', but must be true | false",
    "resume=nowhere": "'nowhere' is not a folder",
    "model.network.frames=${data.nix}": "takes its value from 'data.nix', which data=toy does not have",
    "model.network.frames=${nix:3}": "cannot be resolved",
    "seed=1,2": "several values need -m",
    "name=a b,": "cannot be read",
    "~data.nix": "there is no 'data.nix' to take away",
    "hydra.searchpath=[x]": "--config-dir",
    "model/objective=minimax": "this experiment has no model/objective to choose",
    "card.note=x": "to add it, give +card.note=…",
    "data=broken": "conf/data/broken.yaml' is not yaml: line 2, ",
    "+data=toy": "data appears more than once",
    "~seed": "Train also needs 'seed'; give seed=…",
    "data.root=${oc.env:KINOSCOPE_NOT_SET}": "Environment variable 'KINOSCOPE_NOT_SET' not found",
    "model.network=null": "model.network is null, but must be Network",
    "data.frames.x=1": "'data.frames' is a value and holds no 'x'",
}


@pytest.mark.parametrize("override", FAULTS)
def test_a_fault_is_one_sentence_with_its_cure(conf: Path, override: str) -> None:
    (fault,) = faults(conf, override)
    assert FAULTS[override] in fault
    assert "\n" not in fault


def test_all_faults_of_a_command_are_reported_together(conf: Path) -> None:
    together = [
        "seeed=3",
        "model=toyy",
        "data.batch_size=abc",
        "trainer.accelerator=gpux",
        "data.split=7",
        "resume=nowhere",
    ]
    found = faults(conf, *together)
    assert len(found) == len(together)
    for override in together:
        assert any(FAULTS[override] in fault for fault in found), override


def test_a_misspelt_choice_does_not_make_the_rest_look_wrong(conf: Path) -> None:
    """The keys of the option that was meant are judged, not those of the default that would stand in for it."""
    (fault,) = faults(conf, "model.network.width=3", experiment="toyy")
    assert "did you mean 'toy'" in fault


def test_an_option_that_is_read_as_a_number(conf: Path) -> None:
    """``debug=nan``: Hydra alone takes it for a float and refuses."""
    checked = preflight("train", ["experiment=toy", "debug=nan"], conf)
    assert checked.config is not None
    assert checked.config.trainer.detect_anomaly
    assert compose("train", checked.overrides, conf).trainer.detect_anomaly


def test_what_is_not_set_is_named_with_its_meaning(conf: Path) -> None:
    assert faults(conf, experiment="bare") == ["data.root is not set: give data.root=… (the folder of videos)"]


def test_a_missing_argument(conf: Path) -> None:
    (fault,) = faults(conf, "~model.network.frames")
    assert fault == "model.network: Network also needs 'frames'; give model.network.frames=…"


def test_a_value_that_the_chosen_data_do_not_have(conf: Path) -> None:
    (fault,) = faults(conf, "data=still")
    assert fault == "model.network.frames takes its value from 'data.frames', which data=still does not have"


def test_faults_in_yaml_are_found_like_typed_ones(conf: Path) -> None:
    found = " ".join(faults(conf, "data.frames=3", experiment="faulty"))
    assert "sed: Train has no argument 'sed'; did you mean 'seed'?" in found
    assert "model.network.width is 'wide', but must be int" in found
    assert "did you mean 'torch.optim.SGD'?" in found


GOOD = [
    "model.optimizer.momentum=0.9",  # an argument of SGD that is not in the yaml needs no '+'
    "+model.optimizer.momentum=0.9",
    "++seed=4",
    "+seed=4",  # Hydra would refuse it
    "model.optimizer.lr=1",  # an int is a float
    "model.optimizer.lr=1e-3",
    "data.size=[4,5]",
    "data.classes=[a,b]",
    "model.network.norm=null",
    "model.network.colour=blue",
    "model.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 3}",
    "+callbacks.mine={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, mode: min}",
    "trainer.devices=[0,1]",
    "trainer.max_time={hours: 1}",
    "trainer.strategy={_target_: lightning.pytorch.strategies.DDPStrategy, find_unused_parameters: true}",
    "trainer.precision=16",
    "trainer=gpu",
    "logger=csv",
    "debug=fast",
    "resume=auto",
    "experiment=null",
    "logger=null",  # the option none
    "+card.note=x",  # a plain dict takes any key, if told so
]


@pytest.mark.parametrize("override", GOOD)
def test_what_is_right_passes(conf: Path, override: str) -> None:
    chosen = ["data=toy", "data.root=videos", "model=toy", "callbacks=none"]
    checked = preflight("train", ["experiment=toy", *chosen, override], conf)
    assert checked.faults == []
    assert checked.config is not None


def test_keys_below_a_target_that_was_just_named(conf: Path) -> None:
    begin = ["model.scheduler._target_=torch.optim.lr_scheduler.StepLR", "model.scheduler._partial_=true"]
    assert faults(conf, *begin, "model.scheduler.step_size=10") == []
    (fault,) = faults(conf, *begin, "model.scheduler.step_sise=10")
    assert "did you mean 'model.scheduler.step_size'?" in fault


def test_normalised_overrides_compose_to_what_was_meant(conf: Path) -> None:
    config = compose_checked("train", ["experiment=toy", "model.optimizer.momentum=0.9", "data.size=4"], conf)
    assert config.model.optimizer.momentum == 0.9
    assert config.data["size"] == 4
    assert config.name == "toy"


def test_without_an_experiment_the_model_names_the_run(conf: Path) -> None:
    config = compose("train", ["~experiment", "data=toy", "model=toy"], conf)
    assert config.name == "toy"


def test_refusing_in_python(conf: Path) -> None:
    with pytest.raises(Refusal, match=r"did you mean 'seed'.*data\.split is 7"):
        compose_checked("train", ["experiment=toy", "seeed=1", "data.split=7"], conf)


def test_each_value_of_a_sweep_is_checked(conf: Path) -> None:
    found = faults(conf, "model.optimizer.lr=0.1,fast", "data.split=1,2,7,9", "seed=range(0,3)", sweep=True)
    assert found == [
        "model.optimizer.lr is 'fast', but must be float",
        "data.split is 7, but must be 1 | 2 | 3",
        "data.split is 9, but must be 1 | 2 | 3",
    ]
    (fault,) = faults(conf, "model=toy,toyy", sweep=True)
    assert "did you mean 'toy'?" in fault


def test_a_sweep_goes_on_as_typed_but_for_the_plus(conf: Path) -> None:
    checked = preflight(
        "train",
        ["experiment=toy", "model.optimizer.momentum=0.8,0.9", "logger=null", "debug=nan", "seed=1,2", "~card"],
        conf,
        sweep=True,
    )
    assert checked.overrides == [
        "experiment=toy",
        "++model.optimizer.momentum=0.8,0.9",
        "logger=none",
        "debug='nan'",
        "seed=1,2",
        "~card",
    ]


def test_resolvers_refuse_in_their_own_words(conf: Path) -> None:
    (fault,) = faults(conf, "data.classes=${ucf101_classes:/nowhere/at/all,null}")
    assert "/nowhere/at/all" in fault
    assert "Refusal" not in fault


def test_choice_is_only_known_to_a_composed_config(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with composing("train", conf) as composer:
        assert composer(["experiment=toy"]).name == "toy"
    with pytest.raises(Refusal, match="only known"):
        choice("experiment")


@pytest.mark.parametrize("verb", ["evaluate", "sample"])
def test_run_must_be_a_run_folder(verb: str, tmp_path: Path) -> None:
    assert "run is not set" in preflight(verb).faults[0]
    (fault,) = preflight(verb, [f"run={tmp_path}"]).faults
    assert "is not a run folder" in fault


# --- at the command line -------------------------------------------------------------------------------------------


def test_exit_code_2_no_traceback_no_folder(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(Path.cwd().iterdir())
    code = main(["train", "--config-dir", str(conf), "experiment=toy", "seeed=3", "data.split=7"])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.splitlines()[0] == "kinoscope: 2 faults, nothing was started"
    assert len(err.splitlines()) == 3
    assert list(Path.cwd().iterdir()) == before


def test_one_fault_is_one_line(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config-dir", str(conf), "experiment=toy", "data.split=7"]) == 2
    assert capsys.readouterr().err == "kinoscope: data.split is 7, but must be 1 | 2 | 3\n"


def test_preflight_and_help_import_neither_torch_nor_lightning(conf: Path, project: Path) -> None:
    """In a process of its own: the faults of a command whose targets are torch's and Lightning's, and its help."""
    program = """
import sys
from kinoscope.cli import main
arguments = ["train", "--config-dir", sys.argv[1], "experiment=toy"]
assert main([*arguments, "trainer.accelerator=gpux", "model.optimizer._target_=torch.optim.SGDD"]) == 2
assert main([*arguments, "--help"]) == 0
heavy = {"torch", "lightning", "wandb", "matplotlib", "sklearn", "toy"} & set(sys.modules)
assert not heavy, heavy
"""
    path = os.pathsep.join([str(project), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program, str(conf)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
