"""The order of an epoch over shards: few of them at a time, the same on all ranks, and a function of (seed, epoch).

The shards are put in a keyed random order, and so are the videos within each. The long row of videos that results is
cut into ``window`` pieces of equal length, and these are dealt out in turn: one video of the first piece, one of the
second, … So about ``window`` shards are in use at any time. With R ranks that divide ``window``, each rank reads
window / R pieces and no others, as a global batch is dealt to the ranks in the same turns: what a node fetches in an
epoch is its share of the data, and nobody has to agree on anything.

What is given up for that: a batch holds videos of ``window`` shards, of an epoch's stretch, instead of any videos at
all. Since videos are written to the shards in a random order, each shard is a random sample of the data; but which
videos share a shard stays the same from epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from kinoscope.data import draws
from kinoscope.data.keys import Key, KeyedBatchSampler

AHEAD = 4  # shards that are asked for before they are needed


def shard_order(
    shards: NDArray[np.int64], window: int, seed: int = 0, epoch: int = 0, shuffle: bool = True
) -> NDArray[np.int64]:
    """The samples 0 … n−1 in the order of an epoch, (n,).

    Args:
        shards: (n,) in which shard each sample lies.
        window: pieces that are dealt out in turn.
        seed: of the order.
        epoch: likewise.
        shuffle: otherwise shards, and samples within each, are in the order of their numbers.
    """
    n = len(shards)
    if n == 0:
        return np.arange(0)
    if shuffle:
        rank = draws.permutation(seed, epoch, int(shards.max()) + 1, "shards")[shards]
        within = draws.uniform(seed, epoch, np.arange(n), "order within shards")
    else:
        rank, within = shards, np.arange(n)
    row = np.lexsort((within, rank))
    pieces = np.array_split(np.arange(n), window)  # the first ones are longer by one where it does not come out even
    turn = np.concatenate([np.arange(len(piece)) * window + number for number, piece in enumerate(pieces)])
    return row[np.argsort(turn, kind="stable")]


class ShardBatchSampler(KeyedBatchSampler):
    """Keys in the order of shards, which are asked for a little before they are due.

    Args:
        shards: (n,) in which shard each sample lies.
        window: about how many shards are in use at a time.
        expect: is told the number of each shard that this rank will need, in good time; None: nobody is.
        batch_size: as in `KeyedBatchSampler`, like all that follows.
        seed: of the order.
        shuffle: a new order each epoch.
        drop_last: leave out the last batch of an epoch where it is not full.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        shards: NDArray[np.int64],
        window: int,
        expect: Callable[[int], None] | None,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(shards), batch_size, seed, shuffle, drop_last, rank, world_size)
        self.shards, self.window, self.expect = shards, window, expect
        self._last: tuple[int, NDArray[np.int64]] | None = None  # of a million videos an order takes a second

    def order(self, epoch: int) -> NDArray[np.int64]:
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, shard_order(self.shards, self.window, self.seed, epoch, self.shuffle)
        return self._last[1]

    def _batches(self, epoch: int, start: int) -> Iterator[list[Key]]:
        batches = super()._batches(epoch, start)
        if self.expect is None or start >= len(self):
            yield from batches
            return
        order = self.order(epoch)[: self.bounds[-1]]
        ours = self.shards[order[self.bounds[start] + self.rank :: self.world_size]]
        shards, first = np.unique(ours, return_index=True)
        turn = np.argsort(first)
        shards, first = shards[turn], first[turn]  # in the order of their first use
        given = told = 0
        for batch in batches:
            given += len(batch)
            due = min(len(shards), int(np.searchsorted(first, given)) + AHEAD)
            for shard in shards[told:due].tolist():
                self.expect(shard)
            told = max(told, due)
            yield batch
