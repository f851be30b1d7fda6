"""Which samples a batch has: keys (epoch, index), in an order that is a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kinoscope.data import draws

Key = tuple[int, int]  # (epoch, index)


class KeyedBatchSampler:
    """Batches of keys (epoch, index).

    With several ranks, a *global* batch is ``world_size`` × ``batch_size`` neighbours of one order that all ranks
    share; rank r takes every ``world_size``-th of them from r on. Every rank has the same number of batches, and no
    sample is repeated: a last batch with fewer samples than ranks joins the one before it.

    Args:
        n: samples in the data set.
        batch_size: samples per rank and batch.
        seed: of the order.
        shuffle: a new order each epoch, keyed by (seed, epoch); otherwise 0 … n−1.
        drop_last: leave out the last batch of an epoch where it is not full.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if n < 0 or batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"no batches of {batch_size} from {n} samples for rank {rank} of {world_size}")
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch, self.start = 0, 0
        stride = batch_size * world_size
        rest = n % stride
        self.bounds = [*range(0, n - rest + 1, stride)]  # of the global batches
        if drop_last or rest == 0:
            pass
        elif rest >= world_size or len(self.bounds) == 1:
            self.bounds.append(n)
        else:
            self.bounds[-1] = n

    @property
    def sampler(self) -> KeyedBatchSampler:
        """Lightning looks for ``set_epoch`` at ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next ``iter``; one that has begun is not disturbed."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def start_at(self, epoch: int, batch: int) -> None:
        """The next ``iter`` starts at this batch of this epoch; later ones at the beginning again."""
        self.epoch, self.start = epoch, batch

    def __len__(self) -> int:
        return len(self.bounds) - 1  # a whole epoch's, also while resuming: Lightning counts on it

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The indices of all samples, (n,), in the order of an epoch."""
        return draws.permutation(self.seed, epoch, self.n) if self.shuffle else np.arange(self.n)

    def __iter__(self) -> Iterator[list[Key]]:
        # Not a generator itself: epoch and start must be those of the call, not of the first ``next``.
        return self._batches(self.epoch, self.start)

    def _batches(self, epoch: int, start: int) -> Iterator[list[Key]]:
        # Only now, since a DataLoader with workers calls iter() twice and takes from the second.
        if (self.epoch, self.start) == (epoch, start):
            self.start = 0
        order = self.order(epoch)
        for low, high in zip(self.bounds[start:-1], self.bounds[start + 1 :], strict=True):
            yield [(epoch, index) for index in order[low + self.rank : high : self.world_size].tolist()]
