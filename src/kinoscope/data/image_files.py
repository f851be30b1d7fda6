"""Image data sets as they lie on disk, read into uint8 arrays: idx (MNIST and its kin), CIFAR-10 binary, digits.

Nothing here imports torch; ``class_names`` opens no file larger than a list of names.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import logging
import os
import struct
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kinoscope.errors import KinoscopeError, Refusal

log = logging.getLogger("kinoscope")

ImageSet = Literal["digits", "mnist", "fashion_mnist", "cifar10"]
Images = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (N, C, H, W) and (N,)

DIGITS_TEST = 360  # scikit-learn has no official split; its examples train on the first and test on the last images
DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR_META = "batches.meta.txt"
CIFAR_RECORD = 1 + 3 * 32 * 32  # one label byte, then the red, green and blue planes


@dataclass(frozen=True)
class Remote:
    """The four official files of an idx data set: their mirrors and their SHA-256."""

    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]


IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
REMOTES: Mapping[str, Remote] = {
    "mnist": Remote(
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion_mnist": Remote(
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        sha256={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def class_names(dataset: ImageSet, root: str | Path | None = None, download: bool = False) -> list[str]:
    """The classes in label order, after a look at the folder's listing: are the files there?

    Args:
        dataset: digits, mnist, fashion_mnist or cifar10.
        root: the folder of the files (digits lie in scikit-learn and need none).
        download: missing idx files are no fault, since ``fetch`` will get them.

    Raises:
        Refusal: the folder or a file is missing, or cifar10's list of names is not one.
    """
    if dataset not in get_args(ImageSet):
        raise Refusal(f"data set '{dataset}' is unknown; there are {', '.join(get_args(ImageSet))}")
    if dataset == "digits":
        return list(DIGITS)
    folder = _folder(dataset, root, must_exist=not (download and dataset in REMOTES))
    if dataset == "cifar10":
        return _cifar_names(folder)
    missing = _missing_idx(dataset, folder)
    if missing and not download:
        raise Refusal(
            f"{folder} lacks {_listed(missing)} of {dataset}; point data.root at the official .gz files, "
            "or set data.download=true"
        )
    return list(FASHION if dataset == "fashion_mnist" else DIGITS)


def read(dataset: ImageSet, root: str | Path | None, subset: Literal["train", "test"]) -> Images:
    """Images (N, C, H, W) uint8 and labels (N,) int64 of the official ``subset``.

    digits: the last 360 of scikit-learn's 1,797 images are the test set. Neighbours in the file are mostly of one
    writer, so this is harder than a random split, and more honest.

    Raises:
        KinoscopeError: a file is missing, cut short or not of this format.
    """
    if dataset == "digits":
        return _digits(subset)
    folder = _folder(dataset, root)
    if dataset == "cifar10":
        return _cifar(folder, subset)
    images_name, labels_name = IDX_FILES[subset]
    images, labels = read_idx(folder / images_name), read_idx(folder / labels_name)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise KinoscopeError(
            f"{folder}: {images_name} has shape {images.shape} and {labels_name} {labels.shape}; "
            "expected (N, rows, columns) and (N,)"
        )
    _check_labels(labels, 10, folder / labels_name)
    return images[:, None], labels.astype(np.int64)


def fingerprint(dataset: ImageSet, root: str | Path | None = None) -> str:
    """What identifies the data, whatever folder they lie in: SHA-256 over names and contents, 64 hex digits."""
    digest = hashlib.sha256(dataset.encode())
    if dataset == "digits":
        for subset in ("train", "test"):
            for array in _digits(subset):
                digest.update(array.tobytes())
        return digest.hexdigest()
    folder = _folder(dataset, root)
    names = [CIFAR_META, "test_batch.bin", *_cifar_batches(folder)] if dataset == "cifar10" else _idx_names()
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(_sha256(folder / name).encode())
    return digest.hexdigest()


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """One idx file of unsigned bytes, gzipped or not.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, each axis' length as a big-endian
    32-bit integer, then the values, last axis fastest.

    Raises:
        KinoscopeError: the file is missing, is not idx, or does not hold the values that its header promises.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise KinoscopeError(f"{path} is cut short or damaged ({error}); get it again") from None
    except OSError as error:
        raise KinoscopeError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise KinoscopeError(f"{path} is not an idx file of unsigned bytes: it starts with {raw[:4].hex(' ') or '—'}")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise KinoscopeError(f"{path} is cut short inside its idx header; get it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(raw) - start != expected:
        what = "is cut short" if len(raw) - start < expected else "is too long"
        raise KinoscopeError(
            f"{path} {what}: its header promises {expected:,} values {shape}, it holds {len(raw) - start:,}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def fetch(dataset: ImageSet, root: str | Path | None, mirrors: Sequence[str] | None = None) -> list[Path]:
    """Downloads what is missing of an idx data set, each file checked against its SHA-256 before it gets its name.

    Args:
        dataset: mnist or fashion_mnist.
        root: the folder to put the files in; made if need be.
        mirrors: base addresses, tried in turn; default: the known ones.

    Returns:
        The files that were fetched.

    Raises:
        KinoscopeError: no mirror gave the official bytes, or the folder cannot be written.
    """
    if dataset not in REMOTES:
        raise KinoscopeError(f"{dataset} cannot be downloaded from here; {_where_from(dataset)}")
    folder, remote, fetched = _folder(dataset, root, must_exist=False), REMOTES[dataset], []
    for name in _missing_idx(dataset, folder):
        faults = []
        for mirror in remote.mirrors if mirrors is None else mirrors:
            log.info("downloading %s%s", mirror, name)
            try:
                _download(mirror + name, folder / name, remote.sha256[name])
            except (urllib.error.URLError, TimeoutError, ConnectionError, _WrongBytes) as error:
                faults.append(f"{mirror}: {getattr(error, 'reason', None) or error}")
            except OSError as error:
                raise KinoscopeError(f"{folder} cannot be written: {error.strerror or error}") from None
            else:
                fetched.append(folder / name)
                break
        else:
            raise KinoscopeError(f"{name} could not be downloaded ({'; '.join(faults)}); put it into {folder} yourself")
    return fetched


class _WrongBytes(Exception):
    """A mirror answered with something else than the official file."""


def _download(url: str, destination: Path, sha256: str) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=60) as response:
            while block := response.read(1 << 20):
                out.write(block)
        found = _sha256(temporary)
        if found != sha256:
            raise _WrongBytes(f"its SHA-256 is {found[:12]}…, expected {sha256[:12]}…")
        temporary.chmod(0o644)  # mkstemp's files are private
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(dataset: str, root: str | Path | None, must_exist: bool = True) -> Path:
    if root is None:
        raise Refusal(f"data.root is not set: it names the folder of {dataset}'s files")
    folder = Path(root)
    if must_exist and not folder.is_dir():
        raise Refusal(f"data.root: {folder} is not a folder; {_where_from(dataset)}")
    return folder


def _where_from(dataset: str) -> str:
    if dataset in REMOTES:
        return f"it should hold the official .gz files of {dataset}; data.download=true gets them"
    return "it should hold CIFAR-10's binary version (data_batch_1.bin …, test_batch.bin, batches.meta.txt)"


def _idx_names() -> list[str]:
    return [name for pair in IDX_FILES.values() for name in pair]


def _missing_idx(dataset: str, folder: Path) -> list[str]:
    present = _listing(folder)
    return [name for name in REMOTES[dataset].sha256 if name not in present]


def _listing(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _digits(subset: str) -> Images:
    rows = slice(-DIGITS_TEST, None) if subset == "test" else slice(None, -DIGITS_TEST)
    table = _digits_table()[rows]
    # 0 … 16 strokes per cell become 0 … 255
    images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return images, table[:, -1].astype(np.int64)


@cache
def _digits_table() -> NDArray[np.uint8]:
    """scikit-learn's file of digits, a row of 64 pixels and a label each; its import would take longer than reading."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.submodule_search_locations, "a dependency of ours"
    folder = Path(package.submodule_search_locations[0])
    return np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.uint8)


def _cifar_batches(folder: Path) -> list[str]:
    return sorted(name for name in _listing(folder) if name.startswith("data_batch_") and name.endswith(".bin"))


def _cifar_names(folder: Path) -> list[str]:
    present = _listing(folder)
    missing = [name for name in (CIFAR_META, "test_batch.bin") if name not in present]
    if not _cifar_batches(folder):
        missing.insert(0, "data_batch_1.bin")
    if missing:
        raise Refusal(f"{folder} lacks {_listed(missing)}; {_where_from('cifar10')}")
    names = (folder / CIFAR_META).read_text(errors="replace").split()
    if len(names) != 10:
        raise Refusal(f"{folder / CIFAR_META} should hold 10 class names, it holds {len(names)}")
    return names


def _cifar(folder: Path, subset: str) -> Images:
    names = _cifar_batches(folder) if subset == "train" else ["test_batch.bin"]
    if subset == "train":
        if not names:
            raise KinoscopeError(f"{folder} lacks data_batch_1.bin; {_where_from('cifar10')}")
        if len(names) < 5:
            log.info("cifar10: %d of the 5 training batches are here (%s)", len(names), ", ".join(names))
    records = np.concatenate([_cifar_records(folder / name) for name in names])
    labels = records[:, 0].astype(np.int64)
    _check_labels(labels, 10, folder / names[0])
    return np.ascontiguousarray(records[:, 1:]).reshape(-1, 3, 32, 32), labels


def _cifar_records(path: Path) -> NDArray[np.uint8]:
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise KinoscopeError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) == 0 or len(raw) % CIFAR_RECORD:
        raise KinoscopeError(
            f"{path} is cut short or no CIFAR-10 batch: its {len(raw):,} bytes are no multiple of {CIFAR_RECORD:,}"
        )
    return raw.reshape(-1, CIFAR_RECORD)


def _check_labels(labels: NDArray[np.integer], classes: int, path: Path) -> None:
    if len(labels) and labels.max() >= classes:
        raise KinoscopeError(f"{path} holds the label {labels.max()}, but there are only {classes} classes")
