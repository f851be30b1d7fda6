"""The real data sets, where KINOSCOPE_DATASETS names their folder: what they hold, and one quick run on each."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import kinoscope
from kinoscope.data import image_files
from kinoscope.data.datasets import UCF101
from kinoscope.data.image import CIFAR10, MNIST, FashionMNIST
from kinoscope.data.lists import ucf101
from kinoscope.data.lists.listing import counts, listing
from kinoscope.runs.folder import RunFolder

TEST_GROUPS = {1: range(1, 8), 2: range(8, 15), 3: range(15, 22)}  # of UCF101's three splits
QUICK = [
    "debug=fast", "logger=csv", "callbacks.progress=null", "trainer.accelerator=cpu", "trainer.max_epochs=1",
    "data.workers=0", "data.batch_size=4", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
]  # fmt: skip
TINY_NETWORK = ["model.network.channels=[4,4,4,4,4]", "model.network.fc=[8]", "data.test_views=1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def there(datasets: Path, name: str) -> Path:
    """The folder of one data set; the test is skipped where it is not among them."""
    if not (datasets / name).is_dir():
        pytest.skip(f"{name} is not in KINOSCOPE_DATASETS")
    return datasets / name


@pytest.mark.parametrize("name", ["ucf101", "ucf101-mp4"])
@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_official_splits(name: str, split: int, datasets: Path) -> None:
    """Seven groups are tested, no group is divided, and every listed video of these classes is found."""
    root = there(datasets, name)
    entries = ucf101.read_split(root, split)  # type: ignore[arg-type]
    groups: dict[str, set[str]] = {}
    for entry in entries:
        groups.setdefault(entry.subset, set()).add(entry.group)
        assert (root / entry.path).is_file()
    assert groups.keys() == {"train", "validation", "test"}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    assert not groups["validation"] & groups["test"]
    numbers = {int(re.search(r"_g(\d+)$", group)[1]) for group in groups["test"]}  # type: ignore[index]
    assert numbers <= set(TEST_GROUPS[split])  # the folder may hold a part of the videos
    others = {int(group[-2:]) for subset in ("train", "validation") for group in groups[subset]}
    assert not others & set(TEST_GROUPS[split])
    assert len({entry.path for entry in entries}) == len(entries)


def test_three_classes_in_the_lists_order(datasets: Path) -> None:
    root = there(datasets, "ucf101")
    names = ucf101.class_names(root)
    listed = [line.split()[1] for line in (root / "ucfTrainTestlist" / "classInd.txt").read_text().splitlines() if line]
    assert names == [name for name in listed if name in names]
    assert len(names) == 3
    entries = ucf101.read_split(root, 1)
    assert counts(listing(entries))["test"] == 35
    tested = {int(entry.group[-2:]) for entry in entries if entry.subset == "test"}
    assert tested == set(TEST_GROUPS[1])
    chosen = ucf101.class_names(root, [names[2], names[0]])
    assert chosen == [names[0], names[2]]


def test_mp4_files_are_found_by_lists_that_say_avi(datasets: Path) -> None:
    entries = ucf101.read_split(there(datasets, "ucf101-mp4"), 1)
    assert entries
    assert all(entry.path.endswith(".mp4") for entry in entries)
    lists = datasets / "ucf101-mp4" / "ucfTrainTestlist" / "trainlist01.txt"
    assert ".avi" in lists.read_text()


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
@pytest.mark.parametrize("name", ["ucf101", "ucf101-mp4"])
def test_videos_arrive_as_promised(name: str, decoder: Any, datasets: Path) -> None:
    root = there(datasets, name)
    classes = ucf101.class_names(root)[:1]
    data = UCF101(
        str(root), classes=classes, batch_size=2, workers=0, frames=4, resize=(32, 43), size=28, test_views=2,
        decoder=decoder,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    batch = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert batch["video"].shape == (2, 3, 4, 28, 28)
    assert batch["video"].dtype == torch.uint8
    assert batch["video"].float().std() > 5  # pictures, not a blank screen
    batch = data.on_after_batch_transfer(batch, 0)
    assert batch["video"].shape == (2, 3, 4, 28, 28)
    assert batch["label"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        (MNIST, "mnist", (1, 28, 28)),
        (FashionMNIST, "fashion-mnist", (1, 28, 28)),
        (CIFAR10, "cifar-10-batches-bin", (3, 32, 32)),
    ],
    ids=["mnist", "fashion_mnist", "cifar10"],
)
def test_images(kind: Any, name: str, shape: tuple[int, ...], datasets: Path) -> None:
    root = there(datasets, name)
    records = {"train": 60000, "test": 10000}
    if kind is CIFAR10:  # whose folder may hold a part: a record is a label and the pixels
        sizes = {file.name: file.stat().st_size // 3073 for file in root.glob("*.bin")}
        records["test"] = sizes.pop("test_batch.bin")
        records["train"] = sum(sizes.values())
    images, labels = image_files.read(kind.dataset, root, "train")
    test, test_labels = image_files.read(kind.dataset, root, "test")
    assert images.shape == (records["train"], *shape)
    assert test.shape == (records["test"], *shape)
    assert images.dtype == "uint8"
    for found in (labels, test_labels):
        assert sorted(set(found.tolist())) == list(range(10))
    if kind is FashionMNIST:  # the only one here whose classes are equally frequent in both parts
        assert {int((labels == label).sum()) for label in range(10)} == {6000}

    data = kind(str(root), validation=0.1, batch_size=8)
    data.prepare_data()
    data.setup()
    assert data.counts() == {
        "train": len(images) * 9 // 10, "validation": len(images) // 10, "test": len(test),
    }  # fmt: skip
    batch = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    assert batch["image"].shape == (8, shape[0], 32, 32)
    assert -1 <= batch["image"].min() < 0 < batch["image"].max() <= 1


RUNS = {
    "ucf101": ["experiment=video/c3d_small", "data=ucf101", "data.size=32", "data.resize=[36,48]", "data.test_views=1"],
    "ucf101-mp4": ["experiment=video/slow_fusion_small", "data=ucf101", *TINY_NETWORK],
    "mnist": ["experiment=autoencoder/conv_small", "data=mnist"],
    "fashion-mnist": ["experiment=gan/dcgan_small", "data=fashion_mnist"],
    "cifar-10-batches-bin": ["experiment=autoencoder/conv_small", "data=cifar10", "data.channels=3"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_quick_run(name: str, datasets: Path, here: Path) -> None:
    root = there(datasets, name)
    before = sorted(path.name for path in root.iterdir())
    run = RunFolder.open(kinoscope.train([*RUNS[name], *QUICK, f"data.root={root}"]))
    summary = run.read_summary()
    assert summary["status"] == "finished"
    assert summary["steps"] == 2
    assert summary["test"]
    with run.metrics_file.open(newline="") as file:
        assert list(csv.DictReader(file))
    assert sorted(path.name for path in root.iterdir()) == before  # the root is only read
    spec = kinoscope.load_run(run.path).spec
    if spec.modality == "video":
        assert list(spec.classes) == ucf101.class_names(root)
    else:
        assert spec.num_classes == 10
