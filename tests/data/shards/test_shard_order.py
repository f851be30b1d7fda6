"""The order of an epoch over shards: a permutation that is local, shared by all ranks, and resumable."""

from __future__ import annotations

import numpy as np
import pytest

from kinoscope.data.shards.order import AHEAD, ShardBatchSampler, shard_order


def places(shards: int, videos: int) -> np.ndarray:
    """In which shard each video of a data set lies: about ``videos`` to a shard, in no order."""
    return np.random.default_rng(shards).integers(0, shards, shards * videos)


def sampler(shards: np.ndarray, window: int = 4, batch_size: int = 6, **settings: object) -> ShardBatchSampler:
    return ShardBatchSampler(shards, window, None, batch_size, **{"seed": 3, "shuffle": True, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [1, 4, 5, 300])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_video_comes_once(window: int, shuffle: bool) -> None:
    shards = places(9, 23)
    order = shard_order(shards, window, seed=1, epoch=2, shuffle=shuffle)
    assert sorted(order.tolist()) == list(range(len(shards)))
    again = shard_order(shards, window, seed=1, epoch=2, shuffle=shuffle)
    np.testing.assert_array_equal(order, again)
    other = shard_order(shards, window, seed=1, epoch=3, shuffle=shuffle)
    assert (order.tolist() == other.tolist()) == (not shuffle)


def test_no_more_shards_are_open_than_the_window_says() -> None:
    shards = places(40, 25)
    visited = shards[shard_order(shards, window=4, seed=0, epoch=0)]
    first = {shard: np.flatnonzero(visited == shard)[0] for shard in range(40)}
    last = {shard: np.flatnonzero(visited == shard)[-1] for shard in range(40)}
    # A shard at the border of two pieces is used twice, and need not be kept in between: at most one per border.
    open_at = [sum(first[shard] <= now <= last[shard] for shard in range(40)) for now in range(len(visited))]
    assert np.median(open_at) <= 4 + 3
    recent = [len(set(visited[now : now + 24].tolist())) for now in range(0, len(visited), 24)]
    assert max(recent) <= 2 * 4  # a stretch of 24 videos meets at most one change of shard in each of four pieces
    anywhere = np.random.default_rng(0).permutation(visited)
    assert np.mean([len(set(anywhere[now : now + 24].tolist())) for now in range(0, len(visited), 24)]) > 15


def test_a_shard_s_videos_and_the_shards_are_shuffled() -> None:
    shards = np.repeat(np.arange(8), 50)
    firsts = [shards[shard_order(shards, 1, seed=0, epoch=epoch)[0]] for epoch in range(800)]
    # 800 draws of 8: 100 each, standard deviation 9.4; five of them.
    assert np.abs(np.bincount(firsts, minlength=8) - 100).max() < 47
    places_of_0 = [int(np.flatnonzero(shard_order(shards, 1, 0, epoch) == 0)[0]) % 50 for epoch in range(800)]
    # Uniform on 0 … 49: mean 24.5, standard deviation 14.4 / √800 = 0.51; five of them.
    assert abs(np.mean(places_of_0) - 24.5) < 2.6


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_one_order_and_read_shards_of_their_own(world_size: int) -> None:
    shards = places(32, 20)
    whole = [{index for _, index in batch} for batch in sampler(shards, batch_size=24)]
    ranks = [
        list(sampler(shards, batch_size=24 // world_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    for number, batch in enumerate(whole[:-1]):
        assert {index for rank in ranks for _, index in rank[number]} == batch
    read = [{int(shards[index]) for batch in batches for _, index in batch} for batches in ranks]
    # Besides its share, a rank reads the shards that a border between two of the four pieces has cut.
    assert sum(map(len, read)) <= 32 + 3
    assert set.union(*read) == set(range(32))


def test_it_resumes_in_mid_epoch() -> None:
    shards = places(5, 11)
    whole = list(sampler(shards))
    rest = sampler(shards)
    rest.start_at(0, 4)
    assert list(rest) == whole[4:]
    assert list(rest) == whole  # the next iteration begins at the beginning


@pytest.mark.parametrize("start", [0, 7, 12])
def test_shards_are_asked_for_before_they_are_due(start: int) -> None:
    shards = places(12, 10)
    told: list[int] = []
    ahead = ShardBatchSampler(shards, 2, told.append, 5, seed=1, shuffle=True, rank=1, world_size=2)
    ahead.start_at(0, start)
    due: list[int] = []
    for batch in ahead:
        assert {int(shards[index]) for _, index in batch} <= set(told)
        due = list(dict.fromkeys([*due, *(int(shards[index]) for _, index in batch)]))
        assert len(told) <= len(due) + AHEAD
    assert told == due  # in the order of their first use, each once


def test_of_no_videos_there_is_no_batch() -> None:
    assert list(sampler(np.zeros(0, np.int64))) == []
