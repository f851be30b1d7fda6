"""Radford et al. 2016: both tables, layer by layer, and the rules of where normalisation goes."""

from __future__ import annotations

import pytest
import torch
from counting import on_meta, parameters, shapes
from torch import nn

from kinoscope.contracts import Critic as CriticProtocol
from kinoscope.contracts import Generator as GeneratorProtocol
from kinoscope.networks.gan.dcgan import Critic, Generator, Layout

LAYOUTS: tuple[Layout, ...] = ("paper", "torch")


@pytest.mark.parametrize(
    ("layout", "width", "generator", "critic"),
    [
        ("paper", 128, 18_885_760, 17_232_768),
        ("torch", 64, 3_576_704, 2_765_568),
        ("torch", 128, 12_658_432, 11_036_160),
    ],
)
def test_parameters_at_64_pixels(layout: Layout, width: int, generator: int, critic: int) -> None:
    assert parameters(on_meta(lambda: Generator(width=width, layout=layout))) == generator
    assert parameters(on_meta(lambda: Critic(width=width, layout=layout))) == critic


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes_at_64_pixels(layout: Layout) -> None:
    generator, critic = on_meta(lambda: Generator(layout=layout)), on_meta(lambda: Critic(layout=layout))
    assert isinstance(generator, Generator) and isinstance(critic, Critic)
    maps = [
        s for s in dict.fromkeys(shapes(generator, generator.layers, *generator.latent_shape).values()) if len(s) == 3
    ]
    assert maps == [(1024, 4, 4), (512, 8, 8), (256, 16, 16), (128, 32, 32), (3, 64, 64)]
    maps = [s for s in dict.fromkeys(shapes(critic, critic.layers, 3, 64, 64).values()) if len(s) == 3 and s[0] > 1]
    assert maps == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "channels"), [(64, 3), (32, 1), (16, 3), (8, 1)])
def test_images_in_range_and_one_logit_each(layout: Layout, size: int, channels: int) -> None:
    torch.manual_seed(0)
    generator = Generator(channels, size, width=16, latent=20, layout=layout)
    critic = Critic(channels, size, width=16, layout=layout)
    assert isinstance(generator, GeneratorProtocol) and isinstance(critic, CriticProtocol)
    assert generator.latent_prior == {"paper": "uniform", "torch": "normal"}[layout]
    images = generator(torch.randn(5, *generator.latent_shape))
    assert images.shape == (5, channels, size, size)
    assert images.abs().max() <= 1
    assert critic(images).shape == (5,)


def test_a_logit_is_not_a_probability() -> None:
    torch.manual_seed(0)
    logits = Critic(1, 32, width=8)(torch.randn(64, 1, 32, 32))
    assert logits.min() < 0 < logits.max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_biases_and_normalisation_where_the_paper_has_it(layout: Layout) -> None:
    generator, critic = Generator(width=8, layout=layout), Critic(width=8, layout=layout)
    for network in (generator, critic):
        weighted = [
            layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
        ]
        assert len(weighted) == 5
        assert all(layer.bias is None for layer in weighted)
    kinds = [type(layer).__name__.removesuffix("1d").removesuffix("2d") for layer in generator.layers]
    assert kinds.count("BatchNorm") == 4 and kinds[-2:] == ["ConvTranspose", "Tanh"]
    kinds = [type(layer).__name__.removesuffix("2d") for layer in critic.layers]
    assert kinds.count("BatchNorm") == 3 and kinds[:3] == ["Conv", "LeakyReLU", "Conv"]


def test_the_leak_is_a_fifth() -> None:
    leaks = [layer for layer in Critic(width=8).modules() if isinstance(layer, nn.LeakyReLU)]
    assert len(leaks) == 4
    assert all(leak(torch.tensor(-1.0)).item() == pytest.approx(-0.2) for leak in leaks)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    for network in (Generator(width=16), Critic(width=16)):
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                # The sample deviation of n normal draws has standard error σ / √(2n); five of them.
                assert abs(layer.weight.std().item() / 0.02 - 1) < 5 / (2 * layer.weight.numel()) ** 0.5
            elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                n = layer.weight.numel()
                assert abs(layer.weight.mean().item() - 1) < 5 * 0.02 / n**0.5
                assert abs(layer.weight.std().item() / 0.02 - 1) < 5 / (2 * n) ** 0.5
                assert (layer.bias == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_evaluation_every_sample_stands_alone(layout: Layout) -> None:
    torch.manual_seed(0)
    critic, generator = Critic(1, 32, 8, layout), Generator(1, 32, 8, 20, layout)
    images, noise = torch.randn(8, 1, 32, 32), torch.randn(8, *generator.latent_shape)
    together = critic(images)  # training: a batch of its own statistics
    critic.eval()
    generator.eval()
    assert not torch.allclose(together, critic(images))
    torch.testing.assert_close(critic(images), torch.cat([critic(image[None]) for image in images]))
    torch.testing.assert_close(generator(noise), torch.cat([generator(z[None]) for z in noise]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [28, 4, 0, -8, 48])
def test_a_size_that_doubling_cannot_reach_is_refused(size: int) -> None:
    for network in (Generator, Critic):
        with pytest.raises(ValueError, match=f"size={size} cannot be drawn"):
            network(1, size)
