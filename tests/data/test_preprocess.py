"""Preprocessing: every rule holds on pixels one can name."""

import pytest
import torch
from torch import Tensor

from kinoscope.data.decode import target_size
from kinoscope.data.preprocess import Crops, ImagePreprocess, VideoPreprocess, frame_size

GENERATOR = torch.Generator()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same draws in each test, whichever tests the process has run before."""
    GENERATOR.manual_seed(0)


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=GENERATOR)


def test_a_clip_gets_its_centre() -> None:
    x = pixels(2, 3, 4, 10, 14)
    preprocess = VideoPreprocess(6, resize=(10, 14), mean=0.0, std=1.0)
    torch.testing.assert_close(preprocess(x), x[..., 2:8, 4:10].float() / 255)
    torch.testing.assert_close(preprocess.crops(x, 1)[:, 0], preprocess(x))


def test_test_crops_are_where_they_should_be() -> None:
    x = pixels(2, 3, 2, 8, 12)
    preprocess = VideoPreprocess(6, resize=(8, 12), mean=0, std=1 / 255)
    three, five, ten = (preprocess.crops(x, n).round().to(torch.uint8) for n in (3, 5, 10))
    for n, (top, left) in enumerate([(1, 0), (1, 3), (1, 6)]):
        assert torch.equal(three[:, n], x[..., top : top + 6, left : left + 6])
    for n, (top, left) in enumerate([(0, 0), (0, 6), (2, 0), (2, 6), (1, 3)]):
        assert torch.equal(five[:, n], x[..., top : top + 6, left : left + 6])
    assert torch.equal(ten[:, :5], five)
    assert torch.equal(ten[:, 5:], five.flip(-1))
    upright = VideoPreprocess(6, resize=(12, 8), mean=0, std=1 / 255).crops(x.transpose(-1, -2), 3)
    assert torch.equal(upright.round().to(torch.uint8), three.transpose(-1, -2))
    with pytest.raises(ValueError, match="1, 3, 5 or 10"):
        preprocess.crops(x, 2)  # type: ignore[arg-type]


def test_channel_statistics_and_the_way_back() -> None:
    x = pixels(2, 3, 4, 6, 6)
    preprocess = VideoPreprocess(6, resize=6, mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0])
    out = preprocess(x)
    torch.testing.assert_close(out[:, 2], (x[:, 2] / 255 - 0.3) / 2)
    torch.testing.assert_close(preprocess.denormalise(out), x / 255)
    assert preprocess.denormalise(out * 100).min() >= 0
    assert preprocess.denormalise(out * 100).max() <= 1
    views = preprocess.crops(x, 5)
    assert preprocess.denormalise(views).shape == (2, 5, 3, 4, 6, 6)
    assert set(preprocess.state_dict()) == {"mean", "std"}


def test_videos_of_any_resolution_are_resized_first() -> None:
    flat = torch.full((1, 3, 2, 60, 80), 77, dtype=torch.uint8)
    preprocess = VideoPreprocess(24, resize=30, mean=0, std=1 / 255)
    assert torch.equal(preprocess(flat), torch.full((1, 3, 2, 24, 24), 77.0))
    # A horizontal ramp stays one, whatever the resolution: the centre is the mean.
    ramp = torch.linspace(0, 254, 128).to(torch.uint8).expand(1, 3, 2, 96, 128)
    out = VideoPreprocess(32, resize=(48, 64), mean=0, std=1 / 255)(ramp)
    assert abs(float(out.double().mean()) - 127) < 1
    assert (out[..., 1:] > out[..., :-1]).all()
    assert (out == out[:, :, :, :1]).all()


def test_at_the_decoded_size_nothing_is_resampled() -> None:
    x = pixels(1, 3, 2, 9, 12)
    for resize in (9, (9, 12), None):
        torch.testing.assert_close(VideoPreprocess(9, resize, 0.0, 1.0)(x), x[..., 1:10].float() / 255)


@pytest.mark.parametrize(
    ("height", "width", "resize", "expected"),
    [
        (240, 320, 128, (128, 171)),
        (320, 240, 128, (171, 128)),
        (240, 320, (128, 171), (128, 171)),
        (240, 320, None, (240, 320)),
        (64, 64, 64, (64, 64)),
    ],
)
def test_target_size(height: int, width: int, resize: int | tuple[int, int] | None, expected: tuple[int, int]) -> None:
    assert target_size(height, width, resize) == expected


def test_image_padding_resizing_and_channels() -> None:
    x = pixels(3, 1, 28, 28)
    padded = ImagePreprocess(32, 1, mean=0, std=1 / 255)(x).round()
    assert torch.equal(padded[..., 2:30, 2:30], x.float())
    assert padded.sum() == x.sum(dtype=torch.float32)
    same = ImagePreprocess(28, 1, 0, 1)(x)
    torch.testing.assert_close(same, x / 255)
    digit = torch.full((2, 1, 8, 8), 9, dtype=torch.uint8)
    assert torch.equal(ImagePreprocess(32, 1, 0, 1 / 255)(digit).round(), torch.full((2, 1, 32, 32), 9.0))
    colour = ImagePreprocess(28, 3, 0, 1)(x)
    assert colour.shape == (3, 3, 28, 28)
    assert torch.equal(colour[:, 0], colour[:, 2])
    rgb = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(ImagePreprocess(32, 1, 0, 1)(rgb), torch.full((1, 1, 32, 32), 0.299))


def test_images_are_mirrored_where_the_draw_says() -> None:
    x = pixels(4, 3, 8, 8)
    out = ImagePreprocess(8, 3, 0, 1 / 255)(x, torch.tensor([[0.1], [0.5], [0.49], [0.9]])).round().to(torch.uint8)
    assert torch.equal(out[[0, 2]], x[[0, 2]].flip(-1))
    assert torch.equal(out[[1, 3]], x[[1, 3]])


@pytest.mark.parametrize("n", [1, 3, 5, 10])
def test_crops_shapes(n: Crops) -> None:
    assert VideoPreprocess(6, 8).crops(pixels(2, 3, 4, 8, 9), n).shape == (2, n, 3, 4, 6, 6)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        VideoPreprocess(size=112, resize=100)
    with pytest.raises(ValueError, match="does not fit"):
        VideoPreprocess(size=112, resize=None)(pixels(1, 3, 2, 100, 200))
    with pytest.raises(ValueError, match="std must be positive"):
        VideoPreprocess(std=0)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        ImagePreprocess(channels=2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="height, width"):
        frame_size([1, 2, 3])
