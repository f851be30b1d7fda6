"""Every experiment in configs/experiment, found by existing.

At paper size: composed, without fault, built without memory, counted. The small ones: the whole loop on a few batches,
through the public command's own code, with safe reload, prediction or samples, and resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from kinoscope.config.compose import compose, config_folder
from kinoscope.config.preflight import preflight
from kinoscope.runs.build import build_system
from kinoscope.runs.folder import RunFolder
from kinoscope.testing import check_experiment

FOLDER = config_folder() / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
PAPERS = [name for name in EXPERIMENTS if not name.endswith("_small")]
SMALL = [name for name in EXPERIMENTS if name.endswith("_small")]

# Trainable parameters at the paper's size, from the papers' layer tables (101 classes of UCF101; CIFAR-10's 3×32×32).
PARAMETERS = {
    "video/single_frame": 72_326_629,
    "video/early_fusion": 72_640_261,
    "video/late_fusion": 123_706_853,
    "video/slow_fusion": 73_930_309,
    "video/c3d": 78_409_573,
    "autoencoder/conv": 593_411,
    "autoencoder/conv_classifier": 296_736 + 2_570,  # the encoder's, and 10 classes on a code of 256
    "autoencoder/pca": 0,
    "gan/dcgan": 18_885_760 + 17_232_768,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("experiments")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def ucf101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UCF101 folder with all 101 classes in its list and on disk, and no videos: enough to compose for."""
    root = tmp_path_factory.mktemp("ucf101")
    names = [f"Class{number:03}" for number in range(1, 102)]
    (root / "ucfTrainTestlist").mkdir()
    (root / "ucfTrainTestlist" / "classInd.txt").write_text("".join(f"{i} {n}\r\n" for i, n in enumerate(names, 1)))
    for kind in ("train", "test"):
        for split in (1, 2, 3):
            (root / "ucfTrainTestlist" / f"{kind}list0{split}.txt").write_text("")
    for name in names:
        (root / "UCF-101" / name).mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CIFAR-10 folder of one record per file."""
    root = tmp_path_factory.mktemp("cifar10")
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (root / "batches.meta.txt").write_text("\n".join(names) + "\n")
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (root / name).write_bytes(bytes(3073))
    return root


def test_every_paper_has_its_small_sibling_and_the_other_way_round() -> None:
    assert sorted(f"{name}_small" for name in PAPERS) == SMALL
    assert sorted(PARAMETERS) == PAPERS


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_is_built_at_its_size(name: str, ucf101: Path, cifar10: Path) -> None:
    root = ucf101 if name.startswith("video/") else cifar10
    overrides = [f"experiment={name}", f"data.root={root}"]
    assert preflight("train", overrides).faults == []
    config = compose("train", overrides)
    with torch.device("meta"):
        system = build_system(config)
        trainable = sum(parameter.numel() for parameter in system.parameters() if parameter.requires_grad)
        assert trainable == PARAMETERS[name]
        if hasattr(system, "predict"):
            assert system.spec is not None
            logits = system.network(torch.empty(2, *system.spec.shape))  # type: ignore[operator]
            assert logits.shape == (2, system.spec.num_classes)
            assert system.spec.num_classes == (101 if name.startswith("video/") else 10)


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_has_a_card(name: str, ucf101: Path, cifar10: Path) -> None:
    root = ucf101 if name.startswith("video/") else cifar10
    card: dict[str, Any] = OmegaConf.to_container(compose("train", [f"experiment={name}", f"data.root={root}"]).card)  # type: ignore[assignment]
    assert {"title", "authors", "year", "arxiv", "lecture", "equations", "paper_result"} <= card.keys()
    assert {"value", "protocol", "verified"} == card["paper_result"].keys()


@pytest.mark.parametrize("name", SMALL)
def test_a_small_sibling_only_shrinks_its_paper(name: str, ucf101: Path, cifar10: Path) -> None:
    """The same system, networks and objective. Optimizer and schedule may differ: minutes are not weeks."""
    root = ucf101 if name.startswith("video/") else cifar10
    small = OmegaConf.to_container(compose("train", [f"experiment={name}"]).model)
    paper = OmegaConf.to_container(
        compose("train", [f"experiment={name.removesuffix('_small')}", f"data.root={root}"]).model
    )

    def classes(node: Any) -> dict[str, str]:
        if not isinstance(node, dict):
            return {}
        inner = {f"{key}.{path}": kind for key, child in node.items() for path, kind in classes(child).items()}
        return ({"": node["_target_"]} if "_target_" in node else {}) | inner

    ours, theirs = classes(small), classes(paper)
    schedule = {path for path in ours | theirs if path.endswith(("optimizer.", "scheduler."))}
    assert {p: kind for p, kind in ours.items() if p not in schedule} == {
        p: kind for p, kind in theirs.items() if p not in schedule
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_data_can_be_exchanged(name: str, ucf101: Path, cifar10: Path) -> None:
    """An experiment sets only those keys of its data that every data set of the modality has."""
    others = {"motion": "", "ucf101": f"data.root={ucf101}"}
    if not name.startswith("video/"):
        others = {"digits": "", "cifar10": f"data.root={cifar10}"}
    for data, root in others.items():
        assert preflight("train", [f"experiment={name}", f"data={data}", *([root] if root else [])]).faults == []


@pytest.mark.parametrize("name", SMALL)
def test_the_whole_loop(name: str, home: Path) -> None:
    video = ["data.groups=8", "data.clips_per_group=1"] if name.startswith("video/") else []
    folder = check_experiment(name, "outputs", ["data.workers=0", "data.batch_size=16", *video])
    assert list(RunFolder.open(folder).pictures.glob("*.png"))
