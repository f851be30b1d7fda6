"""Principal component analysis, the linear autoencoder's optimum, as the baseline every autoencoder has to beat.

Pearson, "On Lines and Planes of Closest Fit to Systems of Points in Space", 1901; Baldi, Hornik, "Neural Networks and
Principal Component Analysis: Learning from Examples without Local Minima", Neural Networks 1989, for the optimum.

With mean m and the k leading eigenvectors U of the covariance, code = U (x − m) and x̂ = Uᵀ code + m. On the data it was
fitted to, the mean of |x − x̂|² is the sum of the dropped eigenvalues.

Departs:
    - Nothing: the optimum is computed by scikit-learn, from the covariance's eigenvectors, rather than descended to.

Shape legend: N images, B batch, C channels, H height, W width, D = C·H·W, k components.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PCA(nn.Module):
    """``encode``: image (B, C, H, W) → code (B, k). ``decode``: code (B, k) → image (B, C, H, W).

    Its buffers are all there is to save: ``mean`` (D,), ``components`` (k, D), rows orthonormal, and
    ``explained_variance`` (k,), the leading eigenvalues of the covariance. They are NaN until ``fit`` was called, so
    that an unfitted PCA cannot pass for a bad one.

    Args:
        components: k.
        channels: C.
        size: H = W.

    Raises:
        ValueError: if k exceeds D.
    """

    mean: Tensor
    components: Tensor
    explained_variance: Tensor

    def __init__(self, components: int = 256, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        dimensions = channels * size * size
        if not 1 <= components <= dimensions:
            raise ValueError(f"PCA: components must lie in 1 … {dimensions} (channels · size²), got {components}")
        self.image_shape = (channels, size, size)
        self.code_size = components
        self.register_buffer("mean", torch.full((dimensions,), torch.nan))
        self.register_buffer("components", torch.full((components, dimensions), torch.nan))
        self.register_buffer("explained_variance", torch.full((components,), torch.nan))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Fit to all images x (N, C, H, W) at once, N ≥ k; holds them in float64 (8·N·D bytes) while it works.

        Raises:
            ValueError: if there are fewer images than components.
        """
        from sklearn.decomposition import PCA as ScikitPCA

        if len(x) < self.code_size:
            raise ValueError(f"PCA: {self.code_size} components need as many images to fit to, got {len(x)}")
        # The solver forms XᵀX before it subtracts the mean, which cancels in float32.
        fitted = ScikitPCA(self.code_size, svd_solver="covariance_eigh").fit(x.flatten(1).double().cpu().numpy())
        self.mean.copy_(torch.from_numpy(fitted.mean_))
        self.components.copy_(torch.from_numpy(fitted.components_))
        self.explained_variance.copy_(torch.from_numpy(fitted.explained_variance_))

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) @ self.components.T

    def decode(self, code: Tensor) -> Tensor:
        return (code @ self.components + self.mean).unflatten(1, self.image_shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
