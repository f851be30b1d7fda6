"""Image DataModules: subsets, batches, mirroring, and training on them through a real Trainer's hooks."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from test_image_files import fake_cifar, fake_mnist

from kinoscope.contracts import DataSpec
from kinoscope.data import image_files
from kinoscope.data.image import CIFAR10, MNIST, Digits, FashionMNIST, ImageDataModule, hold_out
from kinoscope.data.preprocess import ImagePreprocess
from kinoscope.errors import KinoscopeError, Refusal

REAL = os.environ.get("KINOSCOPE_DATASETS")


def ready(data: ImageDataModule) -> ImageDataModule:
    data.prepare_data()
    data.setup()
    return data


def test_digits_need_no_files(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kinoscope"):
        data = ready(Digits(batch_size=100))
    assert "digits: 10 classes, 1,293 train, 144 validation, 360 test images" in caplog.text
    assert data.spec == DataSpec("image", (1, 32, 32), tuple("0123456789"), 10)
    loader = data.train_dataloader()
    batch = data.on_after_batch_transfer(next(iter(loader)), 0)
    assert batch["image"].shape == (100, 1, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].min() >= -1
    assert batch["image"].max() <= 1
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    assert set(batch) == {"image", "label", "index"}
    assert len(loader) == 12  # the 93 images of the incomplete batch are another lot in every epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_holds_the_rows_that_its_index_names(tmp_path: Path, workers: int) -> None:
    data = ready(MNIST(str(fake_mnist(tmp_path)), batch_size=5, size=28, validation=0.2, workers=workers))
    held_out, kept = hold_out(30, 0.2)
    seen = []
    for batch in data.train_dataloader():
        rows = kept[batch["index"].numpy()]
        np.testing.assert_array_equal(batch["image"][:, 0, 3, 3], rows)  # image i is filled with i
        np.testing.assert_array_equal(batch["label"], rows % 10)
        seen += rows.tolist()
    assert len(seen) == len(set(seen)) == 20
    validation = [int(value) for batch in data.val_dataloader() for value in batch["image"][:, 0, 0, 0]]
    assert validation == held_out.tolist()
    assert [int(i) for batch in data.test_dataloader() for i in batch["index"]] == list(range(10))


def test_the_held_out_part_is_the_same_for_every_seed_and_of_the_right_size() -> None:
    for share, expected in ((0.0, 0), (0.25, 250), (0.1, 100)):
        held_out, kept = hold_out(1000, share)
        assert len(held_out) == expected
        np.testing.assert_array_equal(np.sort(np.concatenate([held_out, kept])), np.arange(1000))
    one, other = (ready(Digits(seed=seed)).subsets["validation"].__getitems__([(0, 3)]) for seed in (0, 1))
    assert torch.equal(one["image"], other["image"])


def test_mirroring_is_keyed_and_only_in_training(tmp_path: Path) -> None:
    data = ready(CIFAR10(str(fake_cifar(tmp_path / "cifar", n=200)), flip=True, batch_size=360))
    loader = data.train_dataloader()
    sample: dict[int, torch.Tensor] = {}
    for epoch in (0, 1):
        loader.batch_sampler.set_epoch(epoch)
        batch = next(iter(loader))
        raw, mirrored = batch["image"], batch["draws"][:, 0] < 0.5
        # 360 fair coins: expectation 180, sd 9.5; five of them
        assert abs(int(mirrored.sum()) - 180) < 48
        out = data.preprocess.denormalise(data.on_after_batch_transfer(batch, 0)["image"]) * 255
        expected = torch.where(mirrored.view(-1, 1, 1, 1), raw.flip(-1), raw)
        assert torch.equal(out.round().to(torch.uint8), expected)
        sample[epoch] = mirrored[batch["index"].argsort()]
    assert not torch.equal(sample[0], sample[1])
    assert "draws" not in next(iter(data.val_dataloader()))
    assert "draws" not in next(iter(data.test_dataloader()))


def test_channels_and_size_are_the_config_s(tmp_path: Path) -> None:
    root = str(fake_mnist(tmp_path))
    data = ready(FashionMNIST(root, size=64, channels=3, batch_size=4))
    assert data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)["image"].shape == (4, 3, 64, 64)
    assert data.spec.classes[0] == "T-shirt/top"


def test_a_spec_or_preprocess_that_disagree_are_found_in_setup() -> None:
    spec = DataSpec("image", (1, 28, 28), tuple("0123456789"), 10)
    with pytest.raises(
        KinoscopeError, match=r"promises samples of shape \(1, 28, 28\), the first one is \(1, 32, 32\)"
    ):
        ready(Digits(spec=spec, preprocess=ImagePreprocess(32)))
    with pytest.raises(KinoscopeError, match="promises the classes a, b, c; the data have 0, 1, 2"):
        ready(Digits(spec=DataSpec("image", (1, 32, 32), ("a", "b", "c"), 3)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [({"size": 0}, "data.size"), ({"channels": 2}, "data.channels"), ({"batch_size": 0}, "data.batch_size")],
)
def test_nonsense_is_refused(arguments: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Digits(**arguments)  # type: ignore[arg-type]


def test_missing_files_are_refused_when_built() -> None:
    with pytest.raises(Refusal, match=r"data\.root is not set"):
        MNIST()


def test_download_happens_in_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = fake_mnist(tmp_path / "mirror")
    sums = {name: image_files._sha256(mirror / name) for name in image_files._idx_names()}
    monkeypatch.setattr(image_files, "REMOTES", {"mnist": image_files.Remote((mirror.as_uri() + "/",), sums)})
    data = ready(MNIST(str(tmp_path / "target"), download=True, batch_size=4))
    assert len(data.subsets["test"]) == 10
    assert data.fingerprint() == image_files.fingerprint("mnist", mirror)


class Centroids(pl.LightningModule):
    """Nearest class mean, counted in one pass: proof that images and labels belong together."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sums, self.counts = torch.zeros(10, 32 * 32), torch.zeros(10)
        self.right = self.total = 0

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self.sums.index_add_(0, batch["label"], batch["image"].flatten(1))
        self.counts += torch.bincount(batch["label"], minlength=10)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        assert batch["image"].shape[1:] == (1, 32, 32)

    def test_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        means = self.sums / self.counts[:, None]
        nearest = torch.cdist(batch["image"].flatten(1), means).argmin(dim=1)
        self.right += int((nearest == batch["label"]).sum())
        self.total += len(nearest)

    def configure_optimizers(self) -> None: ...


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned")
def test_a_nearest_mean_classifier_learns_the_digits() -> None:
    data, module = Digits(), Centroids()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    assert module.total == 360
    # Chance is 0.1; 0.75 lies 41 standard errors (0.016) above it.
    assert module.right / module.total > 0.75


@pytest.mark.skipif(not REAL, reason="KINOSCOPE_DATASETS is not set")
@pytest.mark.parametrize(
    ("kind", "folder", "shape", "test"),
    [(MNIST, "mnist", (1, 32, 32), 10_000), (CIFAR10, "cifar-10-batches-bin", (3, 32, 32), 4_000)],
)
def test_real_sets(kind: type[ImageDataModule], folder: str, shape: tuple[int, ...], test: int) -> None:
    data = ready(kind(f"{REAL}/{folder}", channels=shape[0]))  # type: ignore[arg-type]
    assert len(data.subsets["test"]) == test
    assert data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)["image"].shape == (128, *shape)
