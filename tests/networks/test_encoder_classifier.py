"""A classifier on an encoder: the encoder's names and code, one linear layer, and nothing of a decoder."""

from __future__ import annotations

import pytest
import torch
from counting import on_meta, parameters
from torch import nn

from kinoscope.networks.autoencoder.conv import ConvAutoencoder, ConvEncoder
from kinoscope.networks.autoencoder.encoder_classifier import EncoderClassifier


def test_parameters() -> None:
    encoder = sum(16 * before * after + after for before, after in ((3, 32), (32, 64), (64, 128), (128, 64)))
    net = on_meta(lambda: EncoderClassifier(ConvEncoder(), num_classes=10))
    assert parameters(net) == encoder + 256 * 10 + 10


def test_its_encoder_has_the_names_it_has_in_its_autoencoder() -> None:
    net = EncoderClassifier(ConvEncoder(1, 16, (4,), 2), num_classes=3)
    autoencoder = ConvAutoencoder(1, 16, (4,), 2)
    ours = {name for name in net.state_dict() if name.startswith("encoder.")}
    assert ours == {name for name in autoencoder.state_dict() if name.startswith("encoder.")}
    net.load_state_dict(autoencoder.state_dict(), strict=False)
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(net(x), net.head(autoencoder.encode(x)))
    assert net(x).shape == (2, 3)


def test_what_is_no_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no code_size"):
        EncoderClassifier(nn.Linear(2, 2), num_classes=3)
