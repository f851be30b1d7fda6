"""The convolutional autoencoder: the sheet's table, tied weights as adjoints, and the optimum it must not beat."""

from __future__ import annotations

import pytest
import torch
from counting import on_meta, parameters, shapes

from kinoscope.contracts import Autoencoder
from kinoscope.networks.autoencoder.conv import ConvAutoencoder


def test_parameters() -> None:
    assert parameters(on_meta(ConvAutoencoder)) == 593_411
    # Tied, each weight counts once; the biases of both sides remain.
    weights = 16 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 64)
    assert parameters(on_meta(lambda: ConvAutoencoder(tied=True))) == 593_411 - weights


def test_shapes() -> None:
    net = on_meta(ConvAutoencoder)
    assert isinstance(net, ConvAutoencoder) and isinstance(net, Autoencoder)
    encoder = [*shapes(net, net.encoder, 3, 32, 32).values()]
    assert encoder[::2] == [(32, 16, 16), (64, 8, 8), (128, 4, 4), (64, 2, 2)]
    assert encoder[-1] == (256,) and net.code_size == 256
    decoder = [*shapes(net, net.decoder, 3, 32, 32).values()]
    assert decoder[1::2] == [(128, 4, 4), (64, 8, 8), (32, 16, 16), (3, 32, 32)]


@pytest.mark.parametrize(
    ("channels", "size", "widths", "code"), [(1, 32, (8, 8, 8), 4), (3, 24, (8, 8), 5), (1, 8, (), 2)]
)
def test_code_and_image_have_the_promised_shapes(channels: int, size: int, widths: tuple[int, ...], code: int) -> None:
    net = ConvAutoencoder(channels, size, widths, code)
    x = torch.randn(2, channels, size, size)
    assert net.encode(x).shape == (2, net.code_size)
    assert net.decode(net.encode(x)).shape == x.shape


def test_the_code_is_linear() -> None:
    torch.manual_seed(0)
    code = ConvAutoencoder(1, 16, (8,), 4).encode(torch.randn(8, 1, 16, 16))
    assert (code < 0).any() and (code > 0).any()


def test_sigmoid_output_stays_inside_the_pixel_range() -> None:
    image = ConvAutoencoder(1, 16, (8,), 4, output="sigmoid").decode(100 * torch.randn(4, 64))
    assert image.min() >= 0 and image.max() <= 1


def test_tied_layers_are_adjoint() -> None:
    """⟨conv(x), y⟩ = ⟨x, convᵀ(y)⟩ for one layer of shared weights, biases put aside."""
    torch.manual_seed(0)
    net = ConvAutoencoder(3, 16, (), 5, tied=True)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    x, code = torch.randn(4, 3, 16, 16), torch.randn(4, net.code_size)
    torch.testing.assert_close((net.encode(x) * code).sum(), (x * net.decode(code)).sum(), rtol=1e-5, atol=1e-4)


def test_tied_weights_stay_tied_after_a_step_and_a_reload() -> None:
    net = ConvAutoencoder(1, 16, (4,), 2, tied=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.randn(2, 1, 16, 16)).square().sum().backward()
    optimizer.step()
    assert net.encoder.get_parameter("0.weight") is net.decoder.get_parameter("3.weight")
    other = ConvAutoencoder(1, 16, (4,), 2, tied=True)
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(other(x), net(x))


def test_a_size_the_strides_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16, got 28"):
        ConvAutoencoder(1, 28)
