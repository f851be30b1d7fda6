"""Four ways to fuse time in a ConvNet: single frame, early, late and slow fusion.

Karpathy, Toderici, Shetty, Leung, Sukthankar, Fei-Fei, "Large-scale Video Classification with Convolutional Neural
Networks", CVPR 2014.

The single-frame network is C(96,11,3)-N-P-C(256,5,1)-N-P-C(384,3,1)-C(384,3,1)-C(256,3,1)-P-FC(4096)-FC(4096) [1, §3.1]
with C(d, f, s) d filters f×f of stride s, N local response normalisation, P max pooling 2×2. The fusions change nothing
but how the first three convolutions reach over time, here their (extent, stride) in frames:

    network        clip           conv1      conv2   conv3   frames left
    SingleFrame     1 frame       (1, 1)     (1, 1)  (1, 1)  1
    EarlyFusion    10 frames      (10, 1)    (1, 1)  (1, 1)  1    time is gone after the first layer
    LateFusion      2 frames      (1, T−1)   (1, 1)  (1, 1)  2    two towers of shared weights meet in fc6
    SlowFusion     10 frames      (4, 2)     (2, 2)  (2, 2)  1    time shrinks layer by layer

References:
    [1] the paper above. [2] Krizhevsky, Sutskever, Hinton, AlexNet, NIPS 2012.

Departs:
    - Padding is not printed. "Same" padding in conv2 to conv5 is what the paper's 7×7×256 forces; for conv1 it leaves a
      choice, here 5 with pooling that rounds down. The parameter count is the same for every choice.
    - Convolutions are not grouped. Dropout 0.5 and the initial weights are not printed either; they are AlexNet's
      [2, §5]: N(0, 0.01²), biases 1 in conv2, conv4, conv5 and the hidden fully connected layers, else 0.
    - The late fusion's two frames are the ends of the clip: 15 apart is ``data.frames=2 data.stride=15``.
    - The multiresolution (fovea and context) streams are not built.
    - The paper crops the centre before it resizes to 200×200; here the whole frame is resized. Its test draws clips at
      random (20 a video, 50 on UCF101); here they are spread evenly. Its Downpour SGD is plain SGD with momentum.

Shape legend: B batch, C channels, T frames, H height, W width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from kinoscope.networks.layers.fully_connected import fully_connected
from kinoscope.networks.layers.init import gaussian_, he_
from kinoscope.networks.layers.lrn import LocalResponseNorm
from kinoscope.networks.layers.pooling import MaxPool3d
from kinoscope.networks.layers.sizes import out_length

Reach = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (extent, stride) in time of conv1, conv2, conv3


class DeepVideo(nn.Module):
    """What the four networks share: (B, C, T, H, W) float → logits (B, K).

    Args:
        num_classes: K.
        frames: T, the clip's length; None: the paper's for this fusion.
        size: H = W.
        in_channels: C.
        channels: filters of conv1 … conv5.
        fc: widths of the hidden fully connected layers.
        dropout: probability of dropping a unit of them.
        conv1_kernel: f of conv1 in space; smaller for frames of 48 to 64 pixels.
        conv1_stride: its stride in space.
        conv1_padding: its padding in space.
        lrn_beta: exponent of the normalisation, whose other constants are AlexNet's (n 5, α 1e-4, k 2).
        init: AlexNet's weights, made for the paper's widths and for pixels of 0 … 255 less their mean; or He's, for
            narrow networks and inputs of unit scale.

    Raises:
        ValueError: if a clip of ``frames`` frames or a frame of ``size`` pixels does not fit the network.
    """

    paper_frames: ClassVar[int]

    def __init__(
        self,
        num_classes: int,
        frames: int | None = None,
        size: int = 170,
        in_channels: int = 3,
        channels: Sequence[int] = (96, 256, 384, 384, 256),
        fc: Sequence[int] = (4096, 4096),
        dropout: float = 0.5,
        conv1_kernel: int = 11,
        conv1_stride: int = 3,
        conv1_padding: int = 5,
        lrn_beta: float = 0.5,
        init: Literal["alexnet", "he"] = "alexnet",
    ) -> None:
        super().__init__()
        if len(channels) != 5:
            raise ValueError(f"{type(self).__name__}: channels lists conv1 to conv5, got {len(channels)} numbers")
        c1, c2, c3, c4, c5 = channels
        k, s, p = conv1_kernel, conv1_stride, conv1_padding
        length = self.paper_frames if frames is None else frames
        (t1, s1), (t2, s2), (t3, s3) = reach = self.reach(length)
        for extent, stride in reach:
            length = out_length(length, extent, stride)
        side = out_length(size, k, s, p) // 2 // 2 // 2
        if side < 1:
            raise ValueError(
                f"{type(self).__name__}: nothing is left of a frame of {size}×{size} after pool3; "
                "use larger frames or a smaller conv1_stride"
            )

        # Sizes on the right: slow fusion of 10 frames of 170×170.
        self.features = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv3d(in_channels, c1, (t1, k, k), (s1, s, s), (0, p, p)),  # (B, 96, 4, 57, 57)
                relu1=nn.ReLU(inplace=True),
                norm1=LocalResponseNorm(beta=lrn_beta),
                pool1=MaxPool3d((1, 2, 2)),  # (B, 96, 4, 28, 28)
                conv2=nn.Conv3d(c1, c2, (t2, 5, 5), (s2, 1, 1), (0, 2, 2)),  # (B, 256, 2, 28, 28)
                relu2=nn.ReLU(inplace=True),
                norm2=LocalResponseNorm(beta=lrn_beta),
                pool2=MaxPool3d((1, 2, 2)),  # (B, 256, 2, 14, 14)
                conv3=nn.Conv3d(c2, c3, (t3, 3, 3), (s3, 1, 1), (0, 1, 1)),  # (B, 384, 1, 14, 14)
                relu3=nn.ReLU(inplace=True),
                conv4=nn.Conv3d(c3, c4, (1, 3, 3), 1, (0, 1, 1)),  # (B, 384, 1, 14, 14)
                relu4=nn.ReLU(inplace=True),
                conv5=nn.Conv3d(c4, c5, (1, 3, 3), 1, (0, 1, 1)),  # (B, 256, 1, 14, 14)
                relu5=nn.ReLU(inplace=True),
                pool3=MaxPool3d((1, 2, 2)),  # (B, 256, 1, 7, 7)
            )
        )
        self.head = fully_connected(length * c5 * side * side, fc, num_classes, dropout)
        if init == "he":
            he_(self)
        else:
            self._alexnet_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(x.transpose(1, 2).flatten(1))  # time first: each tower's features are one block of fc6's input

    @staticmethod
    def reach(frames: int) -> Reach:
        """(extent, stride) in time of conv1, conv2, conv3 for a clip of ``frames`` frames, all of which are seen."""
        raise NotImplementedError

    def _alexnet_(self) -> None:
        """AlexNet's initial weights [2, §5]."""
        biased = {"conv2", "conv4", "conv5", *[name for name, _ in self.head.named_children()][:-1]}
        for part in (self.features, self.head):
            for name, layer in part.named_children():
                if isinstance(layer, (nn.Conv3d, nn.Linear)):
                    gaussian_(layer, std=0.01, bias=1.0 if name in biased else 0.0)


class SingleFrame(DeepVideo):
    """The baseline that sees no motion: a clip is one frame, T = 1."""

    paper_frames = 1

    @staticmethod
    def reach(frames: int) -> Reach:
        if frames != 1:
            raise ValueError(f"SingleFrame: the clip must be one frame, got {frames}; set data.frames=1")
        return (1, 1), (1, 1), (1, 1)


class EarlyFusion(DeepVideo):
    """Pixels of all T frames meet in conv1, whose filters span the clip."""

    paper_frames = 10

    @staticmethod
    def reach(frames: int) -> Reach:
        if frames < 1:
            raise ValueError(f"EarlyFusion: the clip must hold a frame, got {frames}; set data.frames=10")
        return (frames, 1), (1, 1), (1, 1)


class LateFusion(DeepVideo):
    """Two single-frame towers of shared weights on the clip's first and last frame, joined in fc6, T ≥ 2.

    The paper's frames are 15 apart: two frames at a stride of 15, or 16 frames of which the inner 14 are not used.
    """

    paper_frames = 2

    @staticmethod
    def reach(frames: int) -> Reach:
        if frames < 2:
            raise ValueError(f"LateFusion: the clip must hold two frames, got {frames}; set data.frames=2")
        return (1, frames - 1), (1, 1), (1, 1)  # a stride of T − 1 steps from the first frame to the last


class SlowFusion(DeepVideo):
    """Time shrinks from layer to layer, 10 → 4 → 2 → 1 frames; a longer clip (18, 26, …) leaves several to fc6."""

    paper_frames = 10

    @staticmethod
    def reach(frames: int) -> Reach:
        if frames < 10 or (frames - 10) % 8:  # one conv3 output sees 10 frames, the next one starts 8 later
            raise ValueError(
                f"SlowFusion: the strides in time fit clips of 10, 18, 26 … frames, of {frames} some would go unseen; "
                "set data.frames=10"
            )
        return (4, 2), (2, 2), (2, 2)
