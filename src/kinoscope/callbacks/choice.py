"""Which few samples of a stream to show: spread over the classes, and the same in every run."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kinoscope.data.draws import uniform

Item = TypeVar("Item")


def keys_of(index: ArrayLike) -> NDArray[np.float64]:
    """Each sample's place in the queue, in [0, 1): a function of its index alone, so all runs show the same samples."""
    return uniform(seed=0, epoch=0, index=index, stream="pictures")


@dataclass(order=True)
class _Entry(Generic[Item]):
    key: float
    label: int
    item: Item = field(compare=False)


class Choice(Generic[Item]):
    """Keeps at most ``size`` items of a stream: the first of each class, then the second of each class, and so on.

    Within a class smaller keys come first. What is kept does not depend on the order or the batches in which items
    arrive: an item's turn can only move back as more arrive, so one that was dropped would never have returned.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: list[_Entry[Item]] = []  # sorted by key

    def __len__(self) -> int:
        return len(self._entries)

    def wants(self, label: int, key: float) -> bool:
        """Whether such an item would be kept, so that an unwanted one need not even be copied."""
        if len(self) < self.size:
            return True
        if self.size == 0:
            return False
        turn = sum(1 for entry in self._entries if entry.label == label and entry.key < key)
        last_turn, last = max(self._turns(), key=lambda pair: (pair[0], pair[1].key))
        return (turn, key) < (last_turn, last.key)

    def add(self, label: int, key: float, item: Item) -> None:
        """Takes an item in; where that is one too many, the last in turn is dropped."""
        insort(self._entries, _Entry(key, label, item))
        if len(self) > self.size:
            _, last = max(self._turns(), key=lambda pair: (pair[0], pair[1].key))
            self._entries.remove(last)

    @classmethod
    def of(cls, parts: Sequence[Choice[Item]]) -> Choice[Item]:
        """What one choice would keep of a stream of which each of the ``parts`` has seen a share."""
        whole = cls(parts[0].size)
        for part in parts:
            for entry in part._entries:
                whole.add(entry.label, entry.key, entry.item)
        return whole

    def first(self, n: int) -> list[Item]:
        """The first ``n`` items in turn, in that order."""
        turns = sorted(self._turns(), key=lambda pair: (pair[0], pair[1].key))
        return [entry.item for _, entry in turns[:n]]

    def _turns(self) -> list[tuple[int, _Entry[Item]]]:
        before: Counter[int] = Counter()
        turns = []
        for entry in self._entries:
            turns.append((before[entry.label], entry))
            before[entry.label] += 1
        return turns
