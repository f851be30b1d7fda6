"""Clip starts and frame indices."""

import numpy as np
import pytest

from kinoscope.data import clips
from kinoscope.data.clips import Sampler
from kinoscope.errors import DecodeError

Chosen = tuple[np.ndarray, np.ndarray]


@pytest.mark.parametrize(("frames", "stride", "covered"), [(1, 1, 1), (16, 1, 16), (2, 15, 16), (10, 2, 19)])
def test_span_is_the_distance_from_the_first_frame_to_the_last(frames: int, stride: int, covered: int) -> None:
    clip = clips.indices(5, frames, stride)
    assert clips.span(frames, stride) == covered == clip[-1] - clip[0] + 1
    assert (np.diff(clip) == stride).all()


@pytest.mark.parametrize("stride", [1, 3])
def test_every_start_is_reached_and_no_other(stride: int) -> None:
    last = 20 - clips.span(5, stride)
    draws = np.linspace(0, 1, 1000, endpoint=False)
    starts = clips.random_starts(draws, 20, 5, stride)
    assert set(starts.tolist()) == set(range(last + 1))
    assert clips.random_starts(np.nextafter(1, 0), 20, 5, stride) == last
    assert clips.indices(starts, 5, stride).max() == 19
    # Equally spaced draws give each start the same share, up to one draw.
    counts = np.bincount(starts)
    assert counts.max() - counts.min() <= 1


def test_starts_broadcast_over_videos_and_clips() -> None:
    lengths = np.array([16, 40, 300])[:, None]
    draws = np.array([[0.0, 0.999]]).repeat(3, 0)
    starts = clips.random_starts(draws, lengths, 16)
    assert starts.tolist() == [[0, 0], [0, 24], [0, 284]]
    assert clips.indices(starts, 16).shape == (3, 2, 16)


@pytest.mark.parametrize(("n_frames", "views"), [(16, 3), (17, 3), (24, 2), (100, 10), (101, 7)])
def test_views_span_the_video_evenly(n_frames: int, views: int) -> None:
    starts = clips.view_starts(n_frames, 16, 1, views)
    assert len(starts) == views
    assert starts[0] == 0
    assert starts[-1] == n_frames - 16
    steps = np.diff(starts)
    assert steps.max() - steps.min() <= 1


def test_one_view_is_the_middle() -> None:
    assert clips.view_starts(116, 16, 1, 1).tolist() == [50]


def test_a_short_video_is_refused() -> None:
    with pytest.raises(
        DecodeError, match="7 frames is too short for a clip of 16 frames with stride 2, which spans 31"
    ):
        clips.random_starts([0.5, 0.5], [40, 7], 16, 2)
    with pytest.raises(DecodeError, match="too short"):
        clips.view_starts(15, 16, 1, 3)


def test_nonsense_is_refused() -> None:
    for frames, stride in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="needs frames >= 1 and stride >= 1"):
            clips.span(frames, stride)
    with pytest.raises(ValueError, match="at least one view"):
        clips.view_starts(20, 16, 1, 0)


def chosen(sampler: Sampler, n_frames: int, epochs: int, clips: int = 1, videos: int = 1, rate: float = 25.0) -> Chosen:
    """Numbers (epochs, videos, k, T) and lengths (epochs, videos, k)."""
    found = [
        sampler.training(7, np.full(videos, epoch), np.arange(videos), [n_frames] * videos, [rate] * videos, clips)
        for epoch in range(epochs)
    ]
    return np.stack([numbers for numbers, _ in found]), np.stack([lengths for _, lengths in found])


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_random_clips_have_the_stride_and_every_start_equally_often(stride: int, k: int) -> None:
    numbers, lengths = chosen(Sampler("random", 4, stride), 13 + 3 * stride, epochs=200, clips=k, videos=20)
    assert (np.diff(numbers, axis=-1) == stride).all()
    assert (lengths == 4).all()
    starts = numbers[..., 0]
    # 13 starts, 4,000·k draws, of which those of one clip are 4,000 from a k-th of the starts; chi-square with 12
    # degrees of freedom is above 40 once in 14,000 times. Stratified draws vary less.
    counts = np.bincount(starts.ravel(), minlength=13)
    expected = starts.size / 13
    assert len(counts) == 13
    assert ((counts - expected) ** 2 / expected).sum() < 40
    assert (starts[0] != starts[1]).any(), "a new epoch has new starts"
    assert (starts[:, 0] != starts[:, 1]).any(), "and another video others"
    assert (np.diff(starts, axis=2) >= 0).all(), "the k clips come from one k-th of the video each"


def test_several_clips_of_a_long_video_rarely_overlap() -> None:
    clips4 = chosen(Sampler("random", 16), 300, epochs=400, clips=4)[0][:, 0, :, 0]
    alone = np.stack([chosen(Sampler("random", 16), 300, epochs=400, videos=4)[0][..., 0, 0]])[0]
    together = [(np.diff(np.sort(starts, axis=1), axis=1) < 16).any(axis=1).mean() for starts in (clips4, alone)]
    assert together[0] < 0.65 * together[1]  # about 0.29 and 0.52; 400 draws, sd 0.025 each


def test_dense_clips_lie_back_to_back_and_take_turns() -> None:
    for n_frames, k in ((64, 1), (61, 1), (61, 2), (16, 1), (17, 3)):
        sampler = Sampler("dense", 4, 5)  # spans 16
        tiles = -(-n_frames // 16)
        epochs = -(-tiles // k)
        numbers = chosen(sampler, n_frames, epochs, k, videos=5)[0]
        for video in range(5):
            starts = set(numbers[:, video, :, 0].ravel().tolist())
            assert len(starts) == tiles
            assert {0, n_frames - 16} <= starts
            assert (np.diff(sorted(starts)) <= 16).all(), "no frame lies between two clips"
        assert (np.diff(numbers, axis=-1) == 5).all()


@pytest.mark.parametrize("n_frames", [16, 17, 48, 84, 96, 130, 200])
@pytest.mark.parametrize("k", [1, 2, 4, 5])
def test_dense_clips_of_one_video_are_different_ones_and_every_tile_comes_equally_often(n_frames: int, k: int) -> None:
    tiles = -(-n_frames // 16)
    starts = chosen(Sampler("dense", 16), n_frames, 2 * tiles, k, videos=3)[0][..., 0]  # (epochs, videos, k)
    for video in range(3):
        for together in starts[:, video]:
            _, counts = np.unique(together, return_counts=True)
            assert len(counts) == min(tiles, k)
            assert np.ptp(counts) <= 1, "more clips than tiles repeat some once before any twice"
        _, counts = np.unique(starts[:, video], return_counts=True)
        assert (counts == 2 * k).all()
        assert len(counts) == tiles


def test_uniform_takes_one_frame_of_each_part() -> None:
    numbers = chosen(Sampler("uniform", 5), 50, epochs=300, videos=3)[0]
    assert (numbers // 10 == np.arange(5)).all()
    for part in range(5):  # 900 draws of 10 frames: 90 each, sd 9
        counts = np.bincount(numbers[..., part].ravel() - 10 * part, minlength=10)
        assert np.abs(counts - 90).max() < 5 * 9
    assert not np.array_equal(numbers[0], numbers[1])
    centre, lengths = Sampler("uniform", 5).views(50)
    assert centre.tolist() == [[5, 15, 25, 35, 45]]
    assert lengths.tolist() == [5]
    assert Sampler("uniform", 5).views(50, views=2)[0].tolist() == [[2, 12, 22, 32, 42], [7, 17, 27, 37, 47]]
    short = chosen(Sampler("uniform", 5), 3, epochs=20)[0]
    assert (np.diff(short, axis=-1) >= 0).all()
    assert set(short.ravel().tolist()) == {0, 1, 2}


def test_a_sequence_holds_every_frame_and_repeats_the_last_as_padding() -> None:
    numbers, lengths = chosen(Sampler("all", 8), 5, epochs=1)
    assert numbers[0, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert lengths.tolist() == [[[5]]]
    long = chosen(Sampler("all", 8), 11, epochs=200)[0][:, 0, 0]
    assert (np.diff(long, axis=-1) == 1).all()
    assert set(long[:, 0].tolist()) == {0, 1, 2, 3}
    view, length = Sampler("all", 8).views(11)
    assert (view[0, 0], view[0, -1], length[0]) == (2, 9, 8)


@pytest.mark.parametrize(
    ("fps", "rate", "n_frames", "expected"),
    [
        (1.0, 25.0, 60, [0, 25, 50]),
        (5.0, 25.0, 21, [0, 5, 10, 15, 20]),
        (10.0, 25.0, 11, [0, 2, 5, 7, 10]),
        (1.0, 30000 / 1001, 61, [0, 29, 59]),
        (50.0, 25.0, 4, [0, 1, 2, 3]),  # a video has no more than all its frames
    ],
)
def test_a_sequence_has_the_frame_rate_that_was_asked_for(
    fps: float, rate: float, n_frames: int, expected: list[int]
) -> None:
    stored = float(np.float32(rate))
    for numbers, lengths in (
        Sampler("all", 6, fps=fps).views(n_frames, stored),
        [found[0, 0] for found in chosen(Sampler("all", 6, fps=fps), n_frames, 1, rate=stored)],
    ):
        length = int(lengths.ravel()[0])
        assert numbers.reshape(-1, 6)[0, :length].tolist() == expected
        assert (numbers.reshape(-1, 6)[0, length:] == expected[-1]).all()


def test_the_fewest_frames_that_each_way_needs() -> None:
    assert [Sampler(mode, 16, 2).needed for mode in ("random", "dense")] == [31, 31]
    assert [Sampler(mode, 16).needed for mode in ("uniform", "all")] == [1, 1]
    with pytest.raises(DecodeError, match="too short"):
        chosen(Sampler("dense", 16), 15, 1)
