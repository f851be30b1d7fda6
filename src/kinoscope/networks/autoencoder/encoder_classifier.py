"""A classifier on an encoder that was trained without labels.

Hinton, Salakhutdinov, "Reducing the Dimensionality of Data with Neural Networks", Science 2006, whose last experiment
puts a classifier on pretrained layers; in the form of the lecture (CS231n 2016, lecture 14): the decoder is thrown
away, the code is the feature vector, a softmax classifier reads it.

Departs:
    - The paper trains all layers on with labels. That is a choice of the run: all weights here are trained that are not
      frozen, and the shipped experiment freezes the encoder, which shows what the code itself holds.
    - The paper's encoder for this is 784-500-500-2000, pretrained as restricted Boltzmann machines; here it is a
      constructor argument.

Shape legend: B batch, C channels, H height, W width, k code length, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn


class EncoderClassifier(nn.Module):
    """Image (B, C, H, W) → logits (B, K).

    Args:
        encoder: image (B, C, H, W) → code (B, k), with k as its ``code_size``. It keeps the name it has in its
            autoencoder, ``encoder``, so that its weights can be taken from there.
        num_classes: K.

    Raises:
        ValueError: if the encoder does not say how long its code is.
    """

    def __init__(self, encoder: nn.Module, num_classes: int) -> None:
        super().__init__()
        if not isinstance(getattr(encoder, "code_size", None), int):
            raise ValueError(f"EncoderClassifier: {type(encoder).__name__} has no code_size, so it is no encoder")
        self.encoder = encoder
        self.head = nn.Linear(int(encoder.code_size), num_classes)  # pyright: ignore[reportArgumentType] - as checked

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))  # (B, k) → (B, K)
