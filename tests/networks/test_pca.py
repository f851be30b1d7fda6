"""PCA: the residual is the sum of the dropped eigenvalues, the projector is idempotent, the optimum is the optimum."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kinoscope.contracts import Autoencoder
from kinoscope.networks.autoencoder.pca import PCA
from kinoscope.objectives.reconstruction import SquaredError


@pytest.fixture
def images() -> Tensor:
    """400 images (2, 4, 4) whose 32 values are correlated and far from centred."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(32, 32, generator=generator) * torch.logspace(0, -2, 32)
    return (torch.randn(400, 32, generator=generator) @ mixing.T + 3).unflatten(1, (2, 4, 4))


def fitted(images: Tensor, components: int) -> PCA:
    net = PCA(components, channels=2, size=4)
    net.fit(images)
    return net


def test_is_an_autoencoder(images: Tensor) -> None:
    net = fitted(images, 5)
    assert isinstance(net, Autoencoder)
    assert net.encode(images).shape == (400, 5)
    assert net.decode(net.encode(images)).shape == images.shape


@pytest.mark.parametrize("components", [1, 5, 31])
def test_the_residual_is_the_sum_of_the_dropped_eigenvalues(images: Tensor, components: int) -> None:
    net = fitted(images, components)
    covariance = torch.cov(images.flatten(1).double().T, correction=0)  # over N, as the mean over images is
    dropped = torch.linalg.eigvalsh(covariance)[: 32 - components].sum()
    residual = SquaredError()(net(images), images)
    torch.testing.assert_close(residual.double(), dropped, rtol=1e-3, atol=1e-6)
    kept = torch.linalg.eigvalsh(covariance)[32 - components :].flip(0)
    torch.testing.assert_close(net.explained_variance.double() * 399 / 400, kept, rtol=1e-4, atol=1e-6)


def test_the_projector_is_idempotent_and_orthonormal(images: Tensor) -> None:
    net = fitted(images, 5)
    torch.testing.assert_close(net(net(images)), net(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.components @ net.components.T, torch.eye(5), rtol=0, atol=1e-5)


def test_all_components_lose_nothing(images: Tensor) -> None:
    net = fitted(images, 32)
    torch.testing.assert_close(net(images), images, rtol=1e-4, atol=1e-4)


def test_no_linear_code_of_the_same_length_is_better(images: Tensor) -> None:
    best = SquaredError()(fitted(images, 5)(images), images).item()
    generator = torch.Generator().manual_seed(1)
    centred = images.flatten(1) - images.flatten(1).mean(0)
    for _ in range(20):
        basis, _ = torch.linalg.qr(torch.randn(32, 5, generator=generator))
        assert SquaredError()(centred @ basis @ basis.T, centred).item() > best


def test_a_trained_linear_autoencoder_reaches_it() -> None:
    """Baldi & Hornik 1989: full-batch, the same loss and the same projector (never the same weights)."""
    torch.manual_seed(0)
    x = torch.randn(500, 10) * torch.linspace(2, 0.5, 10)
    net = PCA(3, channels=10, size=1)
    net.fit(x.view(-1, 10, 1, 1))
    x = x - net.mean
    encoder, decoder = nn.Linear(10, 3, bias=False), nn.Linear(3, 10, bias=False)
    for lr in (1e-2, 1e-3):
        optimizer = torch.optim.Adam([encoder.weight, decoder.weight], lr=lr)
        for _ in range(1000):
            optimizer.zero_grad()
            SquaredError()(decoder(encoder(x)), x).backward()
            optimizer.step()
    projector = net.components.T @ net.components
    torch.testing.assert_close(
        SquaredError()(decoder(encoder(x)), x), SquaredError()(x @ projector, x), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(decoder.weight @ encoder.weight, projector, rtol=0, atol=1e-2)


def test_its_buffers_are_its_checkpoint(images: Tensor, tmp_path: Path) -> None:
    net = fitted(images, 5)
    torch.save(net.state_dict(), tmp_path / "pca.pt")
    other = PCA(5, channels=2, size=4)
    assert other(images).isnan().all()  # unfitted, it says so
    other.load_state_dict(torch.load(tmp_path / "pca.pt", weights_only=True))
    torch.testing.assert_close(other(images), net(images))


def test_impossible_sizes_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="1 … 32"):
        PCA(33, channels=2, size=4)
    with pytest.raises(ValueError, match="need as many images to fit to, got 4"):
        fitted(images[:4], 5)


def test_thirty_components_on_mnist_have_the_published_error(datasets: Path) -> None:
    """Hinton & Salakhutdinov 2006 print 13.87 for the test images; fitted here to the first 10,000 training images."""
    folder = datasets / "mnist"

    def read(name: str) -> Tensor:
        pixels = np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=16)
        return torch.from_numpy(pixels.reshape(-1, 1, 28, 28)[:10_000] / np.float32(255))

    net = PCA(30, channels=1, size=28)
    net.fit(read("train-images-idx3-ubyte.gz"))
    test = read("t10k-images-idx3-ubyte.gz")
    assert SquaredError()(net(test), test).item() == pytest.approx(13.87, rel=0.02)
