"""Clip starts and frame indices."""

import numpy as np
import pytest

from kinoscope.data import clips
from kinoscope.errors import DecodeError


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


def test_a_short_video_is_refused_or_looped() -> None:
    with pytest.raises(
        DecodeError, match="7 frames is too short for a clip of 16 frames with stride 2, which spans 31"
    ):
        clips.random_starts([0.5, 0.5], [40, 7], 16, 2)
    with pytest.raises(DecodeError, match="too short"):
        clips.view_starts(15, 16, 1, 3)
    with pytest.raises(DecodeError, match="without a single frame"):
        clips.random_starts(0.5, 0, 16, short="loop")
    starts = clips.random_starts(np.linspace(0, 0.999, 50), 7, 16, short="loop")
    assert set(starts.tolist()) == set(range(7))
    assert clips.indices(6, 4, 2, n_frames=7).tolist() == [6, 1, 3, 5]


def test_nonsense_is_refused() -> None:
    for frames, stride in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="needs frames >= 1 and stride >= 1"):
            clips.span(frames, stride)
    with pytest.raises(ValueError, match="at least one view"):
        clips.view_starts(20, 16, 1, 0)
