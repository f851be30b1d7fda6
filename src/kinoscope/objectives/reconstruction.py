"""How far a reconstruction is from its image.

Shape legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor

from kinoscope.objectives.precision import full


def squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """|x − x̂|² of each image, summed over channels and pixels: (B, C, H, W) twice → (B,)."""
    return (full(reconstruction) - full(target)).square().flatten(1).sum(1)


class SquaredError:
    """Squared error per image: summed over channels and pixels, mean over the batch, without a factor of ½.

    So it compares with the sum of the eigenvalues a PCA drops, and with the numbers of Hinton & Salakhutdinov 2006.
    """

    def __call__(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """(B, C, H, W) twice → scalar."""
        return squared_error(reconstruction, target).mean()
