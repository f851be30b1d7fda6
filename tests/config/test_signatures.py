"""Reading a signature from source text agrees with importing it and asking Python."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from kinoscope.config import signatures
from kinoscope.config.signatures import TargetNotFound

TARGETS = [
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.EarlyStopping",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.strategies.DDPStrategy",
    "torch.optim.SGD",
    "torch.optim.AdamW",
    "torch.optim.lr_scheduler.CosineAnnealingLR",
    "torch.nn.Conv3d",
    "torch.nn.ReLU",
    "torch.nn.functional.relu",
    "torch.utils.data.DataLoader",
    "sklearn.decomposition.PCA",
    "kinoscope.contracts.DataSpec",
    "kinoscope.config.compose.compose",
]


@pytest.mark.parametrize("target", TARGETS)
def test_reading_equals_importing(target: str) -> None:
    module, _, name = target.rpartition(".")
    truth = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
    named = {p.name: p for p in truth if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    read = signatures.find(target)
    assert list(read.parameters) == list(named)
    assert read.open == any(p.kind is p.VAR_KEYWORD for p in truth)
    for parameter in read.parameters.values():
        default = named[parameter.name].default
        assert parameter.required == (default is inspect.Parameter.empty)
        if isinstance(default, (bool, int, float)):
            assert parameter.default == default


def test_inheritance_forwarding_dataclasses_and_reexports(conf: Path) -> None:
    toy = signatures.find("toy.Toy")
    # seed is given by Toy itself, the rest of the base's arguments go through **kwargs.
    assert list(toy.parameters) == ["workers", "root", "batch_size", "split", "frames", "size", "classes"]
    assert not toy.open
    assert toy.parameters["root"].required
    assert toy.parameters["root"].help == "the folder of videos."
    network = signatures.find("toy.Net")  # renamed on its way through the package
    assert network.origin == "toy.parts.Network"
    assert [p.name for p in network.parameters.values() if p.required] == ["frames"]


@pytest.mark.parametrize(
    ("argument", "good", "bad"),
    [
        ("toy.Toy:split", [1, 3], [4, "1", True, None]),
        ("toy.Toy:size", [3, [1, 2]], ["a", [1], [1, "a"], 1.5]),
        ("toy.Toy:classes", [None, [], ["a"]], ["a", [1]]),
        ("toy.Net:width", [3], [3.0, "3", None]),
        ("toy.Net:norm", ["batch", None], ["bach", 1]),
        ("toy.Net:dropout", [0.5, 1, None], ["x", True]),
        ("toy.Net:colour", ["red", "blue"], ["RED", 3]),
        ("toy.System:scheduler", [None, 3, "a", {}], []),
        ("lightning.pytorch.Trainer:precision", [16, "bf16-mixed", None], ["bf17", 17]),
        ("lightning.pytorch.Trainer:devices", [1, "auto", [0, 1]], [1.5, ["a"], None]),
        ("lightning.pytorch.Trainer:deterministic", [True, "warn", None], ["warm", 1]),
        ("lightning.pytorch.Trainer:accelerator", ["gpu", {"_target_": "x"}], ["gpux", 3]),
        ("torch.optim.SGD:lr", [1, 0.1], ["a", None, [0.1]]),
        ("torch.optim.Adam:betas", [[0.5, 0.9]], [[0.5], 0.5]),
        ("torch.nn.Conv2d:kernel_size", [3, [3, 3], "anything that is not understood"], []),
    ],
)
def test_what_a_hint_accepts(conf: Path, argument: str, good: list[object], bad: list[object]) -> None:
    target, _, name = argument.partition(":")
    parameter = signatures.find(target).parameters[name]
    assert [value for value in good if not parameter.accepts(value)] == []
    assert [value for value in bad if parameter.accepts(value)] == []


def test_compiled_code_is_imported() -> None:
    assert signatures.find("math.sqrt").positional == ("x",)
    assert signatures.find("torch.relu").open, "no signature at all: anything goes"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere.Thing", "there is no module 'nowhere'"),
        ("torch.optim.SGDD", "torch.optim has no 'SGDD'"),
        ("kinoscope.contracts.DataSpecs", "kinoscope.contracts has no 'DataSpecs'"),
        ("json.decoder.JSONDecoders", "json.decoder has no 'JSONDecoders'"),
    ],
)
def test_what_is_not_there(target: str, sentence: str) -> None:
    with pytest.raises(TargetNotFound, match=sentence):
        signatures.find(target)
