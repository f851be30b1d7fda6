"""Readers of image data sets: the real files where there are any, and every way a file can be wrong."""

import gzip
import os
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from kinoscope.data import image_files
from kinoscope.errors import KinoscopeError, Refusal

REAL = os.environ.get("KINOSCOPE_DATASETS")
needs_real = pytest.mark.skipif(not REAL, reason="KINOSCOPE_DATASETS is not set")


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fake_mnist(folder: Path, train: int = 30, test: int = 10) -> Path:
    """A folder with the official names; image i is filled with the value i, its label is i mod 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for (images, labels), n in zip(image_files.IDX_FILES.values(), (train, test), strict=True):
        values = np.arange(n, dtype=np.uint8)
        (folder / images).write_bytes(gzip.compress(idx(np.broadcast_to(values[:, None, None], (n, 28, 28)).copy())))
        (folder / labels).write_bytes(gzip.compress(idx(values % 10)))
    return folder


def fake_cifar(folder: Path, batches: int = 2, n: int = 20) -> Path:
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    for name in [*(f"data_batch_{i + 1}.bin" for i in range(batches)), "test_batch.bin"]:
        records = np.zeros((n, 3073), np.uint8)
        records[:, 0] = np.arange(n) % 10
        records[:, 1:1025], records[:, 1025:2049], records[:, 2049:] = 1, 2, 3
        records[:, 33] = 9  # second row, first column of the red plane
        (folder / name).write_bytes(records.tobytes())
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_read_idx_returns_what_was_written(tmp_path: Path, zipped: bool) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    np.testing.assert_array_equal(image_files.read_idx(path), array)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (gzip.compress(idx(np.zeros((9, 9), np.uint8)))[:-12], "is cut short or damaged"),
        (gzip.compress(idx(np.zeros((9, 9), np.uint8))[:-5]), "is cut short: its header promises 81 values"),
        (gzip.compress(idx(np.zeros((9, 9), np.uint8)) + b"x"), "is too long"),
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00"), "cut short inside its idx header"),
        (gzip.compress(b"\x00\x00\x0d\x01" + bytes(8)), "not an idx file of unsigned bytes"),
        (b"<html>404</html>", "not an idx file of unsigned bytes"),
        (b"", "not an idx file of unsigned bytes"),
        (gzip.compress(bytes(500))[:5] + b"\xff" * 40, "cut short or damaged"),
    ],
    # Named, since gzip writes the time of day, and pytest's workers must agree on what a test is called.
    ids=["cut", "short", "long", "header", "floats", "page", "empty", "damaged"],
)
def test_a_bad_idx_file_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.gz"
    path.write_bytes(content)
    with pytest.raises(KinoscopeError, match=sentence) as caught:
        image_files.read_idx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_idx_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(KinoscopeError, match="cannot be read: No such file"):
        image_files.read_idx(tmp_path / "none.gz")


def test_digits_are_split_and_scaled() -> None:
    train, train_labels = image_files.read("digits", None, "train")
    test, test_labels = image_files.read("digits", None, "test")
    assert train.shape == (1437, 1, 8, 8)
    assert test.shape == (360, 1, 8, 8)
    assert train.dtype == np.uint8
    assert train.min() == 0
    assert train.max() == 255
    assert set(train_labels) == set(test_labels) == set(range(10))
    assert image_files.class_names("digits") == list("0123456789")
    theirs: Any = load_digits()
    assert (np.concatenate([train, test])[:, 0] == np.rint(theirs.images * (255 / 16))).all()
    assert (np.concatenate([train_labels, test_labels]) == theirs.target).all()


def test_idx_set_reads_both_subsets(tmp_path: Path) -> None:
    folder = fake_mnist(tmp_path / "mnist")
    for subset, n in (("train", 30), ("test", 10)):
        images, labels = image_files.read("mnist", folder, subset)  # type: ignore[arg-type]
        assert images.shape == (n, 1, 28, 28)
        np.testing.assert_array_equal(images[:, 0, 5, 7], np.arange(n))
        np.testing.assert_array_equal(labels, np.arange(n) % 10)
    assert image_files.class_names("fashion_mnist", folder)[9] == "Ankle boot"


def test_images_and_labels_must_agree(tmp_path: Path) -> None:
    folder = fake_mnist(tmp_path)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(9, np.uint8))))
    with pytest.raises(KinoscopeError, match=r"\(10, 28, 28\).*\(9,\)"):
        image_files.read("mnist", folder, "test")
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.full(10, 10, np.uint8))))
    with pytest.raises(KinoscopeError, match="label 10"):
        image_files.read("mnist", folder, "test")


def test_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"data\.root is not set"):
        image_files.class_names("mnist")
    with pytest.raises(Refusal, match=r"nowhere is not a folder.*data\.download=true"):
        image_files.class_names("mnist", tmp_path / "nowhere")
    folder = fake_mnist(tmp_path / "mnist")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(Refusal, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        image_files.class_names("mnist", folder)
    assert len(image_files.class_names("mnist", tmp_path / "nowhere", download=True)) == 10
    with pytest.raises(Refusal, match="is not a folder"):
        image_files.class_names("cifar10", tmp_path / "nowhere", download=True)
    with pytest.raises(Refusal, match="unknown; there are digits, mnist"):
        image_files.class_names("mnsit")  # type: ignore[arg-type]


def test_cifar_planes_and_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fake_cifar(tmp_path / "cifar")
    assert image_files.class_names("cifar10", folder) == list("abcdefghij")
    with caplog.at_level("INFO", "kinoscope"):
        images, labels = image_files.read("cifar10", folder, "train")
    assert "2 of the 5 training batches" in caplog.text
    assert images.shape == (40, 3, 32, 32)
    assert images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert images[0, 0, 1, 0] == 9
    assert labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(image_files.read("cifar10", folder, "test")[0]) == 20


def test_a_bad_cifar_folder_is_one_sentence(tmp_path: Path) -> None:
    folder = fake_cifar(tmp_path / "cifar")
    with (folder / "test_batch.bin").open("r+b") as file:
        file.truncate(3073 * 3 + 100)
    with pytest.raises(KinoscopeError, match=r"test_batch\.bin is cut short"):
        image_files.read("cifar10", folder, "test")
    (folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(Refusal, match="should hold 10 class names, it holds 2"):
        image_files.class_names("cifar10", folder)
    for path in folder.glob("data_batch_*"):
        path.unlink()
    with pytest.raises(Refusal, match=r"lacks data_batch_1\.bin"):
        image_files.class_names("cifar10", folder)


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    first, second = fake_mnist(tmp_path / "a"), fake_mnist(tmp_path / "b")
    assert image_files.fingerprint("mnist", first) == image_files.fingerprint("mnist", second)
    assert image_files.fingerprint("mnist", first) != image_files.fingerprint("fashion_mnist", first)
    fake_mnist(second, test=11)
    assert image_files.fingerprint("mnist", first) != image_files.fingerprint("mnist", second)
    assert len(image_files.fingerprint("digits")) == 64


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = fake_mnist(tmp_path / "mirror")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", folder
        server.shutdown()
        thread.join()


def test_fetch_checks_before_it_names(
    tmp_path: Path, mirror: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = mirror
    target = tmp_path / "target"
    with pytest.raises(KinoscopeError, match=r"train-images.*SHA-256 is"):
        image_files.fetch("mnist", target, mirrors=[url])
    assert list(target.iterdir()) == []

    sums = {name: image_files._sha256(folder / name) for name in image_files._idx_names()}
    monkeypatch.setattr(image_files, "REMOTES", {"mnist": image_files.Remote((url + "gone/", url), sums)})
    assert len(image_files.fetch("mnist", target)) == 4  # the first mirror answers 404, the second has them
    assert sorted(path.name for path in target.iterdir()) == sorted(sums)
    assert image_files.fetch("mnist", target) == []
    assert len(image_files.read("mnist", target, "train")[0]) == 30


def test_fetch_without_a_network_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(KinoscopeError, match=r"could not be downloaded.*put it into") as caught:
        image_files.fetch("mnist", tmp_path / "x", mirrors=["http://127.0.0.1:9/"])
    assert "\n" not in str(caught.value)
    with pytest.raises(KinoscopeError, match="cannot be downloaded from here"):
        image_files.fetch("cifar10", tmp_path)


@needs_real
@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_the_official_checksums_are_those_of_the_official_files(dataset: str) -> None:
    folder = Path(str(REAL)) / dataset.replace("_", "-")
    for name, sha256 in image_files.REMOTES[dataset].sha256.items():
        assert image_files._sha256(folder / name) == sha256


@needs_real
def test_real_sets() -> None:
    root = Path(str(REAL))
    images, labels = image_files.read("mnist", root / "mnist", "test")
    assert images.shape == (10_000, 1, 28, 28)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]  # the known first test digits
    assert np.bincount(image_files.read("fashion_mnist", root / "fashion-mnist", "train")[1]).tolist() == [6000] * 10
    folder = root / "cifar-10-batches-bin"
    assert image_files.class_names("cifar10", folder)[:2] == ["airplane", "automobile"]
    assert image_files.read("cifar10", folder, "test")[0].shape[1:] == (3, 32, 32)
