"""Image data sets small enough for memory: one uint8 array per subset, gathered a batch at a time.

Shape legend: N images in a subset, B batch, C channels, H height, W width, S ``size``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from kinoscope.contracts import DataSpec
from kinoscope.data import draws, image_files
from kinoscope.data.datamodule import KeyedDataModule
from kinoscope.data.loading import Key, keyed_draws
from kinoscope.data.preprocess import ImagePreprocess

if TYPE_CHECKING:
    from kinoscope.contracts import Batch

log = logging.getLogger("kinoscope")


class ImageDataset:
    """N images in one array; a batch is one gather, so reading in the training process is fastest.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        flip_seed: draws for mirroring are added to every batch, keyed by this seed; None adds none.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], flip_seed: int | None = None) -> None:
        self.images, self.labels = images, labels
        self.flip_seed = flip_seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: list[Key]) -> Batch:
        rows = np.array([index for _, index in keys], dtype=np.int64)
        batch = {
            "image": torch.from_numpy(self.images[rows]),
            "label": torch.from_numpy(self.labels[rows]),
            "index": torch.from_numpy(rows),
        }
        if self.flip_seed is not None:
            batch["draws"] = keyed_draws(self.flip_seed, keys, ["flip"])
        return batch


class ImageDataModule(KeyedDataModule):
    """Images with labels, from files that ``image_files`` knows.

    The validation set is a random part of the training set, the same for every ``seed``, so that runs can be compared.

    Args:
        root: folder of the files; None where there are none.
        download: fetch missing files, checked by SHA-256.
        batch_size: images per device and step.
        workers: processes per loader; the images are in memory, so 0 is fastest.
        size: side of the image that the network sees; images are padded or resized to it.
        channels: 1 or 3; default: those of the files.
        flip: mirror training images at random. Off where a mirror image is another thing, as with digits.
        validation: share of the training images that is held out.
        seed: of order and mirroring.
        spec: what the config promised the network; default: what the data are.
        preprocess: mean and scale; default: pixels from −1 to 1.
    """

    dataset: ClassVar[image_files.ImageSet]
    channels_on_disk: ClassVar[Literal[1, 3]] = 1
    preprocess: ImagePreprocess

    def __init__(
        self,
        root: str | None = None,
        download: bool = False,
        batch_size: int = 128,
        workers: int = 0,
        size: int = 32,
        channels: Literal[1, 3] | None = None,
        flip: bool = False,
        validation: float = 0.1,
        seed: int = 0,
        spec: DataSpec | None = None,
        preprocess: ImagePreprocess | None = None,
    ) -> None:
        channels = self.channels_on_disk if channels is None else channels
        faults = [] if size >= 1 else [f"data.size must be at least 1 pixel, got {size}"]
        if channels not in (1, 3):
            faults.append(f"data.channels is 1 or 3, got {channels}")
        super().__init__(batch_size, workers, validation, seed, faults)
        self.root, self.download, self.flip = root, download, flip
        self.preprocess = preprocess or ImagePreprocess(size, channels)
        self._names = image_files.class_names(self.dataset, root, download)
        self.spec = spec or DataSpec("image", (channels, size, size), tuple(self._names), len(self._names))

    def prepare_data(self) -> None:
        if self.download:
            image_files.fetch(self.dataset, self.root)

    def setup(self, stage: str | None = None) -> None:
        if self.subsets:
            return
        images, labels = image_files.read(self.dataset, self.root, "train")
        test_images, test_labels = image_files.read(self.dataset, self.root, "test")
        held_out, kept = hold_out(len(images), self.validation)
        self.subsets = {
            "train": ImageDataset(images[kept], labels[kept], self.seed if self.flip else None),
            "validation": ImageDataset(images[held_out], labels[held_out]),
            "test": ImageDataset(test_images, test_labels),
        }
        counts = ", ".join(f"{len(subset):,} {name}" for name, subset in self.subsets.items())
        log.info("%s: %d classes, %s images", self.dataset, len(self._names), counts)
        first = self.preprocess(self.subsets["train"].__getitems__([(0, 0)])["image"])
        self.check_spec(tuple(first.shape[1:]), self._names)

    def preprocessed(self, batch: Batch) -> Batch:
        batch = dict(batch)
        batch["image"] = self.preprocess(batch["image"], batch.pop("draws", None))
        return batch

    def fingerprint(self) -> str:
        return image_files.fingerprint(self.dataset, self.root)


def hold_out(n: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows (held out, kept), each in order: ``share`` of n rows at random, the same in every run."""
    order = draws.permutation(0, 0, n, stream="validation")
    count = round(share * n)
    return np.sort(order[:count]), np.sort(order[count:])


class Digits(ImageDataModule):
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels, which need no files (Alpaydin, Kaynak 1998)."""

    dataset = "digits"


class MNIST(ImageDataModule):
    """70,000 handwritten digits of 28 × 28 pixels (LeCun, Bottou, Bengio, Haffner 1998)."""

    dataset = "mnist"


class FashionMNIST(ImageDataModule):
    """70,000 pieces of clothing, 28 × 28 grey pixels (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747)."""

    dataset = "fashion_mnist"


class CIFAR10(ImageDataModule):
    """Small colour photographs of ten classes, 32 × 32 pixels (Krizhevsky 2009), in the binary version."""

    dataset = "cifar10"
    channels_on_disk = 3
