"""The command line up to the verb: what it is handed, and the exit code that comes back."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from kinoscope.cli import VERBS, main, verb_module
from kinoscope.config.help import EXAMPLES, USAGE
from kinoscope.config.schema import SCHEMAS
from kinoscope.errors import Interrupted, KinoscopeError, Refusal

Verb = Callable[[DictConfig, Sequence[str]], int]


@pytest.fixture
def train(conf: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``kinoscope train`` on the toy experiment with a function in the place of the verb."""

    def run(verb: Verb, *arguments: str) -> int:
        module: Any = ModuleType("kinoscope.verbs.train")
        module.run = verb
        monkeypatch.setitem(sys.modules, "kinoscope.verbs.train", module)
        return main(["train", "--config-dir", str(conf), "experiment=toy", *arguments])

    return run


def never(config: DictConfig, overrides: Sequence[str]) -> int:
    raise AssertionError("the verb was started")


def test_the_verb_gets_the_config_and_what_was_typed(train: Callable[..., int]) -> None:
    seen: dict[str, Any] = {}

    def verb(config: DictConfig, overrides: Sequence[str]) -> int:
        seen.update(config=OmegaConf.to_container(config, resolve=True), overrides=list(overrides), argv=list(sys.argv))
        return 0

    argv = list(sys.argv)
    assert train(verb, "model.optimizer.momentum=0.9", "data.frames=3", "hydra.verbose=false") == 0
    assert seen["config"]["name"] == "toy"
    assert seen["config"]["model"]["optimizer"]["momentum"] == 0.9
    assert seen["config"]["model"]["network"]["frames"] == 3
    assert "hydra" not in seen["config"]
    assert seen["overrides"] == ["experiment=toy", "model.optimizer.momentum=0.9", "data.frames=3"]
    assert seen["argv"] == argv, "Lightning starts the other ranks with sys.argv"
    assert list(Path.cwd().iterdir()) == [], "Hydra makes no folder and no log"


@pytest.mark.parametrize("code", [0, 1, 75])
def test_the_verbs_exit_code_goes_through(train: Callable[..., int], code: int) -> None:
    assert train(lambda config, overrides: code) == code


@pytest.mark.parametrize("error", [Refusal, KinoscopeError, Interrupted])
def test_a_kinoscope_error_is_its_sentence_and_its_code(
    train: Callable[..., int], error: type[KinoscopeError], capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(config: DictConfig, overrides: Sequence[str]) -> int:
        raise error("the disk is full")

    assert train(verb) == error.exit_code
    assert capsys.readouterr() == ("", "kinoscope: the disk is full\n")


def test_a_bug_shows_its_traceback(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def verb(config: DictConfig, overrides: Sequence[str]) -> int:
        return [][0]

    assert train(verb) == 1
    assert "IndexError" in capsys.readouterr().err


def test_interrupted_before_anything_could_be_saved(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(config: DictConfig, overrides: Sequence[str]) -> int:
        raise KeyboardInterrupt

    assert train(verb) == 75
    assert capsys.readouterr().err == "kinoscope: interrupted\n"


def test_cfg_job_shows_the_config(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert train(never, "--cfg", "job", "data.root=???") == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert OmegaConf.is_missing(shown.data, "root"), "a config may be shown before it is complete"
    assert train(never, "--cfg", "job", "--resolve", "model.optimizer.momentum=0.9") == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert shown.name == "toy"
    assert shown.model.network.frames == 4
    assert shown.model.optimizer.momentum == 0.9


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg", "job", "--resolve"], ["--info", "config"]])
def test_faults_are_found_whatever_is_shown(
    train: Callable[..., int], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(never, *flags, "seeed=3") == 2
    assert "did you mean 'seed'?" in capsys.readouterr().err


def test_info(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    try:
        assert train(never, "--info", "defaults-tree") == 0
    finally:  # Hydra prints through the root logger, and leaves its handler there
        root.setLevel(before[0])
        root.handlers[:] = before[1]
    assert "experiment: toy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
        (["dance"], "there is no verb 'dance'; the verbs are train, evaluate, sample, prepare"),
        (["train", "--multrun"], "unrecognized arguments: --multrun"),
        (["train", "--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["train", "--config-name", "mine"], "--config-dir"),
    ],
)
def test_wrong_verbs_and_flags(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_all_verbs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in VERBS)


def test_help_lists_groups_keys_values_and_meanings(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "--config-dir", str(conf), "experiment=bare"]) == 0
    lines = capsys.readouterr().out.splitlines()

    def line(start: str) -> str:
        (found,) = [line for line in lines if line.split()[:1] == [start]]
        return " ".join(found.split())

    assert "still, toy*" in " ".join(lines)
    assert line("data.root") == "data.root ??? str; the folder of videos"
    assert line("data.split") == "data.split 1 1 | 2 | 3"
    assert line("data.workers") == "data.workers (0) int"  # not in the yaml: an argument with its default
    assert line("model.network.frames") == "model.network.frames ${data.frames} int"
    assert line("mode").startswith("mode min min | max; ")
    assert line("trainer.gradient_clip_algorithm").endswith("norm | value | null")


def test_help_beside_a_fault_tells_the_fault(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help", "--config-dir", str(conf), "experiment=toyy"]) == 2
    assert "did you mean 'toy'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["evaluate", "sample"])
def test_the_other_verbs_have_pages_of_their_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"kinoscope {verb} run=<folder>" in out
    assert "best | last" in out
    assert "experiment" not in out.partition("Keys")[0], "a group that this verb does not have"


def test_every_verb_has_usage_examples_and_a_config() -> None:
    configs = Path(__file__).parents[2] / "configs"
    assert set(USAGE) == set(EXAMPLES) == set(SCHEMAS) == set(VERBS)
    assert all((configs / f"{verb}.yaml").is_file() for verb in VERBS)


@pytest.mark.parametrize("collecting", [True, False])
def test_importing_a_verb_leaves_the_garbage_collector_as_it_was(collecting: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        assert verb_module("prepare").run
        assert gc.isenabled() == collecting
        with pytest.raises(ModuleNotFoundError):
            verb_module("nothing")
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()
