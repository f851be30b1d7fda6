"""The seams of the house on one page: what data hand to systems, and what systems expect of networks.

Shape legend: B batch, V views of one video, C channels, T frames, H height, W width, K classes.

A batch is a plain dict of tensors. It leaves the loader's workers as uint8 and becomes float on the device, in the
DataModule's ``on_after_batch_transfer``:

    video   (B, C, T, H, W)     one clip per sample
    clips   (B, V, C, T, H, W)  V test views of each video
    image   (B, C, H, W)
    flow    (B, 2L, H, W)       L fields of optical flow, x and y in turn, in pixels; (B, V, 2L, H, W) for V views
    label   (B,) int64, or (B, K) multi-hot
    length  (B,) int64, of whole videos as sequences: frames from there on are zero
    index   (B,) int64, the sample's position in its subset
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Batch: TypeAlias = "dict[str, Tensor]"
Modality = Literal["video", "image", "flow"]


@dataclass(frozen=True)
class DataSpec:
    """What is known of a data set before a single file is opened.

    Args:
        modality: which key of the batch carries the sample.
        shape: one sample as the network sees it: (C, T, H, W) for video, (C, H, W) for images, (2L, H, W) for flow.
        classes: the class names, in label order.
        num_classes: their number, so that a config can interpolate it.
        multi_label: labels are multi-hot (B, K) instead of (B,) int64.
    """

    modality: Modality
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    num_classes: int
    multi_label: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "classes", tuple(self.classes))
        if len(self.classes) != self.num_classes:
            raise ValueError(f"spec: {len(self.classes)} class names but num_classes={self.num_classes}")
        expected = {"video": 4, "image": 3, "flow": 3}[self.modality]
        if len(self.shape) != expected:
            raise ValueError(f"spec: a {self.modality} has {expected} axes, got shape {self.shape}")


@runtime_checkable
class Classifier(Protocol):
    """(B, *spec.shape) float → logits (B, K)."""

    def __call__(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class SequenceClassifier(Protocol):
    """(B, *spec.shape) float and ``length`` (B,) int64 → logits (B, K); nothing behind a video's length may count."""

    def __call__(self, x: Tensor, length: Tensor) -> Tensor: ...


@runtime_checkable
class Autoencoder(Protocol):
    """``encode``: (B, C, H, W) → code (B, k). ``decode``: code (B, k) → (B, C, H, W)."""

    def encode(self, x: Tensor) -> Tensor: ...

    def decode(self, code: Tensor) -> Tensor: ...


@runtime_checkable
class Generator(Protocol):
    """Latent (B, *latent_shape) → (B, C, H, W). The system draws them from ``latent_prior``."""

    latent_shape: tuple[int, ...]
    latent_prior: Literal["uniform", "normal"]

    def __call__(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Critic(Protocol):
    """(B, C, H, W) → one logit (or score) per sample, (B,). Never a probability."""

    def __call__(self, x: Tensor) -> Tensor: ...


class AdversarialObjective(Protocol):
    """A GAN's game. It is handed the *callable* critic, so that penalties, clipping and pairs need no special case.

    Both losses return named scalar terms; the key ``loss`` is what is minimised, the rest is logged.
    """

    def critic_loss(
        self, critic: Critic, real: Tensor, fake: Tensor, condition: Tensor | None = None
    ) -> dict[str, Tensor]: ...

    def generator_loss(
        self, critic: Critic, fake: Tensor, real: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]: ...

    def after_critic_step(self, critic: Critic) -> None: ...
