"""From nodes to objects, and what a config from elsewhere may not name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from kinoscope.config.build import instantiate
from kinoscope.errors import Refusal

SAFE = ("kinoscope", "torch.nn", "torch.optim")


def test_builds_nested_nodes_with_plain_containers(conf: Path) -> None:
    root = OmegaConf.create(
        {
            "frames": 7,
            "model": {
                "_target_": "toy.System",
                "network": {"_target_": "toy.Net", "frames": "${frames}", "widths": [1, 2]},
                "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
            },
        }
    )
    system = instantiate(root.model, ("toy", *SAFE))
    assert system.network.frames == 7
    assert type(system.network.widths) is list


def test_extra_arguments_win() -> None:
    layer = instantiate({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, SAFE, out_features=5)
    assert layer.weight.shape == (5, 2)


@pytest.mark.parametrize(
    "target",
    [
        *("torch.load", "torch.hub.load", "torch.jit.load", "torch.serialization.load"),
        *("joblib.load", "pickle.loads", "os.system", "builtins.eval", "subprocess.run"),
        # Spelt inside an allowed package, defined elsewhere.
        *("torch.nn.functional.torch.load", "kinoscope.runs.folder.os.system", "kinoscope.data.draws.np.load"),
        # Ours, but they run other configs or commands, or decide whom to trust.
        *(
            "kinoscope.cli.main",
            "kinoscope.config.build.instantiate",
            "kinoscope.runs.load.load_run",
            "kinoscope.train",
        ),
        *("torchvision.models.resnet18", "torch.nnx.Linear", "kinoscopes.Thing", 3, None),
    ],
)
def test_refused_before_anything_is_built(target: object, tmp_path: Path) -> None:
    """Also where it is deep inside, behind nodes that are allowed: those must not have been built by then."""
    built = tmp_path / "built"
    with pytest.raises(Refusal, match="a stored config may build nothing else"):
        instantiate({"_target_": target}, SAFE)
    node = {
        "_target_": "torch.nn.Sequential",
        "_args_": [
            {"_target_": "torch.nn.Linear", "in_features": -1},
            {"a": [{"_target_": target, "path": str(built)}]},
        ],
    }
    with pytest.raises(Refusal, match=r"_args_\[1\]\.a\[0\]\._target_"):
        instantiate(node, SAFE)


def test_a_target_made_by_interpolation_is_seen() -> None:
    root = OmegaConf.create({"word": "system", "model": {"_target_": "os.${word}", "command": "true"}})
    with pytest.raises(Refusal, match=r"'os\.system'"):
        instantiate(root.model, SAFE)


def test_users_packages_are_allowed_by_name(conf: Path) -> None:
    node = {"_target_": "toy.Net", "frames": 3}
    with pytest.raises(Refusal, match=r"toy\.Net"):
        instantiate(node, SAFE)
    assert instantiate(node, (*SAFE, "toy")).frames == 3


def test_what_a_constructor_rejects_comes_out_as_it_said() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        instantiate(
            {
                "_target_": "kinoscope.contracts.DataSpec",
                "modality": "image",
                "shape": [1, 2, 2],
                "classes": [],
                "num_classes": 2,
            }
        )


def test_allowed_functions_and_partials() -> None:
    made = instantiate({"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.5}, SAFE)
    assert made([torch.zeros(1, requires_grad=True)]).param_groups[0]["lr"] == 0.5
    with pytest.raises(Refusal, match=r"there is no 'torch\.nn\.Lineal'"):
        instantiate({"_target_": "torch.nn.Lineal"}, SAFE)
