"""C3D: 3×3×3 convolutions throughout.

Tran, Bourdev, Fergus, Torresani, Paluri, "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV 2015,
arXiv 1412.0767.

Eight convolutions in five stages, each stage ending in a max pooling (the first one in space only, so that time is not
merged too early [1, §3.2]), then fc6, fc7 and the classifier. ``widths`` of one convolution per stage give the smaller
network of the paper's search for a kernel size [1, §3.1].

References:
    [1] the paper above. [2] the authors' released Caffe model, for what the paper does not print.

Departs:
    - The authors' solver gives biases twice the learning rate and no weight decay; here all parameters are alike.
    - The authors subtract a mean clip; here the data subtract one mean per channel.
    - On UCF101 from scratch the paper trains a smaller network (convolutions 64 to 256, fc 2048); this is the full one.

Shape legend: B batch, C channels, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from kinoscope.networks.layers.fully_connected import fully_connected
from kinoscope.networks.layers.init import gaussian_, he_
from kinoscope.networks.layers.pooling import MaxPool3d
from kinoscope.networks.layers.sizes import out_length


class C3D(nn.Module):
    """(B, C, T, H, W) float → logits (B, K).

    Args:
        num_classes: K.
        frames: T, the clip's length.
        size: H = W.
        in_channels: C.
        widths: filters of the convolutions, one list per stage.
        fc: widths of the hidden fully connected layers.
        dropout: probability of dropping a unit of them.
        pool_ceil: pool as Caffe does, keeping a partly covered last window. At the paper's size only pool5 notices
            (7×7 → 4×4); rounding down leaves 3×3.
        init: the released weights' initialisation [2], made for the paper's widths and for pixels of 0 … 255 less
            their mean; or He's, for narrow networks and inputs of unit scale.

    Raises:
        ValueError: if a pooling leaves nothing of a clip of ``frames`` frames of ``size`` pixels.
    """

    def __init__(
        self,
        num_classes: int,
        frames: int = 16,
        size: int = 112,
        in_channels: int = 3,
        widths: Sequence[Sequence[int]] = ((64,), (128,), (256, 256), (512, 512), (512, 512)),
        fc: Sequence[int] = (4096, 4096),
        dropout: float = 0.5,
        pool_ceil: bool = True,
        init: Literal["released", "he"] = "released",
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        previous, length, side = in_channels, frames, size
        for stage, stage_widths in enumerate(widths, start=1):
            for letter, width in enumerate(stage_widths, start=ord("a")):
                layers[f"conv{stage}{letter:c}"] = nn.Conv3d(previous, width, kernel_size=3, padding=1)
                layers[f"relu{stage}{letter:c}"] = nn.ReLU(inplace=True)
                previous = width
            span = 1 if stage == 1 else 2  # pool1 leaves time alone
            layers[f"pool{stage}"] = MaxPool3d((span, 2, 2), ceil_mode=pool_ceil)
            length = out_length(length, span, span, ceil=pool_ceil)
            side = out_length(side, 2, 2, ceil=pool_ceil)
            if length < 1 or side < 1:
                raise ValueError(
                    f"C3D: nothing is left after pool{stage} of a clip of {frames} frames of {size}×{size}; "
                    "use a longer clip or larger frames"
                )
        # Paper size:  conv1a  (B,  64, 16, 112, 112)   pool1 (B,  64, 16, 56, 56)
        #              conv2a  (B, 128, 16,  56,  56)   pool2 (B, 128,  8, 28, 28)
        #              conv3ab (B, 256,  8,  28,  28)   pool3 (B, 256,  4, 14, 14)
        #              conv4ab (B, 512,  4,  14,  14)   pool4 (B, 512,  2,  7,  7)
        #              conv5ab (B, 512,  2,   7,   7)   pool5 (B, 512,  1,  4,  4) = 8,192 → fc6
        self.features = nn.Sequential(layers)
        self.head = fully_connected(previous * length * side * side, fc, num_classes, dropout, first=len(widths) + 1)
        if init == "he":
            he_(self)
        else:
            self._released_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))

    def _released_(self) -> None:
        """The released model's initial weights [2]: biases are 1 but in the first and the last layer."""
        convolutions = [layer for layer in self.features if isinstance(layer, nn.Conv3d)]
        *hidden, classifier = [layer for layer in self.head if isinstance(layer, nn.Linear)]
        for layer in convolutions:
            gaussian_(layer, std=0.01, bias=1.0)
        for layer in hidden:
            gaussian_(layer, std=0.005, bias=1.0)
        gaussian_(convolutions[0], std=0.01)
        gaussian_(classifier, std=0.01)
