"""Compiled networks and channels-last memory: the same training, the same names of weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rank_scenarios as scenarios
import torch
from torch import Tensor, nn

import kinoscope
from kinoscope.config.compose import compose_checked
from kinoscope.contracts import DataSpec
from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.networks.autoencoder.pca import PCA
from kinoscope.runs.build import build_system, build_trainer, try_trainer
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.systems.classification import Classification
from kinoscope.systems.fitted import Fitted
from kinoscope.systems.tuning import require_tunable, tune

# Data without validation, few batches: Lightning has something to say about each.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    """Trainers set global ones."""
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # of torch, about itself
@pytest.mark.parametrize("make", [scenarios.classifier, scenarios.autoencoder, scenarios.gan])
def test_compiled_networks_train_the_same_weights_under_the_same_names(make: Any) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    system = make()
    tune(system, {"backend": backend}, channels_last=False)
    compiled, plain = scenarios.fit(system, 1), scenarios.fit(make(), 1)
    assert len(graphs) >= len([method for _, methods in system.entries for method in methods])
    assert compiled["weights"].keys() == plain["weights"].keys()
    for name, value in plain["weights"].items():
        torch.testing.assert_close(compiled["weights"][name], value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
def test_the_default_compiler_trains_the_same_weights() -> None:
    system = scenarios.gan()
    require_tunable(system, True, False, CPU)
    tune(system, True, channels_last=False)
    compiled, plain = scenarios.fit(system, 1), scenarios.fit(scenarios.gan(), 1)
    for name, value in plain["weights"].items():
        torch.testing.assert_close(compiled["weights"][name], value, rtol=1e-4, atol=1e-5)


class Convolutions(nn.Module):
    def __init__(self, frames: bool) -> None:
        super().__init__()
        kind = nn.Conv3d if frames else nn.Conv2d
        self.body = nn.Sequential(kind(3, 4, 3, padding=1), nn.ReLU(), kind(4, 4, 3, padding=1))
        self.answers: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.answers.append(self.body(x))
        return self.answers[-1].flatten(2).mean(dim=2)


@pytest.mark.parametrize(("shape", "order"), [((3, 5, 6), torch.channels_last), ((3, 4, 5, 6), torch.channels_last_3d)])
def test_channels_last_flows_through_the_network(shape: tuple[int, ...], order: torch.memory_format) -> None:
    torch.manual_seed(0)
    system = Classification(Convolutions(frames=len(shape) == 4), scenarios.sgd)
    system.spec = DataSpec("video" if len(shape) == 4 else "image", shape, ("a", "b", "c", "d"), 4)
    x = torch.randn(2, *shape)
    before = system.network(x)
    names = list(system.state_dict())
    tune(system, None, channels_last=True)
    after = system.network(x)
    assert system.network.answers[-1].is_contiguous(memory_format=order)  # type: ignore[union-attr, operator, index]
    torch.testing.assert_close(after, before)
    assert list(system.state_dict()) == names


def composed(folder: Path, *overrides: str) -> Any:
    common = ["experiment=autoencoder/conv_small", "trainer=cpu", "logger=csv", f"data_dir={folder}"]
    return compose_checked("train", [*common, *overrides])


@pytest.mark.parametrize(("asked", "benchmark"), [("true", "null"), ("warn", "null"), ("false", "null")])
def test_deterministic_sets_what_torch_offers(asked: str, benchmark: str, tmp_path: Path) -> None:
    config = composed(tmp_path, f"deterministic={asked}", f"trainer.benchmark={benchmark}")
    build_trainer(config, build_system(config), folder=None, callbacks=[], loggers=[])
    assert torch.are_deterministic_algorithms_enabled() == (asked != "false")
    assert torch.is_deterministic_algorithms_warn_only_enabled() == (asked == "warn")
    if asked != "false":
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


SHORT = [
    "experiment=autoencoder/conv_small", "data=digits", "trainer=cpu", "logger=csv", "callbacks.progress=null",
    "callbacks.learning_curves=null", "monitor=null", "trainer.max_epochs=1", "trainer.limit_train_batches=3",
    "trainer.limit_val_batches=0", "trainer.limit_test_batches=0",
]  # fmt: skip


def test_two_deterministic_runs_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [RunFolder.open(kinoscope.train([*SHORT, "deterministic=true"])) for _ in range(2)]
    first, second = (read_checkpoint(run.checkpoint("last"))["state_dict"] for run in runs)
    assert runs[0].path != runs[1].path
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_an_operation_without_a_deterministic_form_ends_the_run_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unordered = "+callbacks.unordered={_target_: rank_scenarios.Unordered}"
    with pytest.raises(KinoscopeError, match="deterministic=true: put_ has no deterministic form"):
        kinoscope.train([*SHORT, unordered, "deterministic=true"])
    kinoscope.train([*SHORT, unordered])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["compile={mod: max-autotune}"], "did you mean 'mode'"),
        (["compile={mode: fastest}"], "Unrecognized mode=fastest"),
        (["compile={backend: nothing}"], "nothing"),
        (["trainer.precision=16-mixed"], "16-mixed needs a GPU; on a CPU choose bf16-mixed"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], said: str, tmp_path: Path) -> None:
    config = composed(tmp_path, *overrides)
    with pytest.raises(Refusal, match=said):
        try_trainer(config, build_system(config))


@pytest.mark.filterwarnings("ignore")  # of torch, about itself
def test_the_default_compiler_needs_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(Refusal, match="needs a C\\+\\+ compiler on the CPU"):
        require_tunable(scenarios.classifier(), True, False, CPU)
    require_tunable(scenarios.classifier(), {"backend": "eager"}, False, CPU)


def test_what_trains_no_network_is_not_tuned() -> None:
    with pytest.raises(Refusal, match="compile and channels_last: Fitted trains no network"):
        require_tunable(Fitted(PCA(2)), True, True, CPU)
