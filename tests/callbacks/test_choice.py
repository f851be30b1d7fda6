from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kinoscope.callbacks.choice import Choice, keys_of


def in_turn(labels: np.ndarray, keys: np.ndarray) -> list[int]:
    """The slow path: all samples, sorted by their place within their class, then by key."""
    place = [int(((labels == labels[i]) & (keys < keys[i])).sum()) for i in range(len(labels))]
    return sorted(range(len(labels)), key=lambda i: (place[i], keys[i]))


@pytest.mark.parametrize("size", [0, 1, 7, 40, 300])
def test_a_stream_in_any_order_keeps_what_sorting_everything_would(size: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(5, size=200, p=[0.6, 0.2, 0.1, 0.08, 0.02])
    keys = keys_of(np.arange(200))
    wanted = in_turn(labels, keys)[:size]
    for _ in range(3):
        choice: Choice[int] = Choice(size)
        for i in rng.permutation(200).tolist():
            if choice.wants(int(labels[i]), float(keys[i])):
                choice.add(int(labels[i]), float(keys[i]), i)
        assert choice.first(size) == wanted
        assert len(choice) == min(size, 200)


def test_adding_without_asking_gives_the_same() -> None:
    keys = keys_of(np.arange(60))
    choice: Choice[int] = Choice(9)
    for i in range(60):
        choice.add(i % 3, float(keys[i]), i)
    assert Counter(i % 3 for i in choice.first(9)) == {0: 3, 1: 3, 2: 3}


def test_keys_depend_on_the_index_alone() -> None:
    assert (keys_of([5, 3]) == keys_of(np.arange(10))[[5, 3]]).all()
    assert len(set(keys_of(np.arange(1000)).tolist())) == 1000


def test_what_several_have_kept_of_their_shares_is_what_one_keeps_of_all() -> None:
    keys = keys_of(range(200)).tolist()
    for size in (1, 5, 24, 300):
        whole = Choice[int](size)
        shares = [Choice[int](size) for _ in range(3)]
        for index, key in enumerate(keys):
            label = index * index % 7
            whole.add(label, key, index)
            shares[index % 3].add(label, key, index)
        assert Choice.of(shares).first(size) == whole.first(size)
