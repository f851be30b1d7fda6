"""Loaders that resume in mid-epoch with no worker state, because every batch is a function of (seed, epoch, number).

A sampler yields lists of keys (epoch, index); a data set turns such a list into a finished batch in one call. The key
says everything that a sample's draws depend on, so a batch is the same with any number of workers.
"""

from __future__ import annotations

import atexit
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kinoscope.contracts import DataSpec
from kinoscope.data import draws
from kinoscope.errors import KinoscopeError

if TYPE_CHECKING:
    from kinoscope.contracts import Batch

Key = tuple[int, int]  # (epoch, index)
Subset = Literal["train", "validation", "test"]
Position = dict[str, int]  # {"epoch", "batch"}: the next batch to train on


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

    def __iter__(self) -> Iterator[list[Key]]:
        # Not a generator itself: epoch and start must be those of the call, not of the first ``next``.
        return self._batches(self.epoch, self.start)

    def _batches(self, epoch: int, start: int) -> Iterator[list[Key]]:
        # Only now, since a DataLoader with workers calls iter() twice and takes from the second.
        if (self.epoch, self.start) == (epoch, start):
            self.start = 0
        order = draws.permutation(self.seed, epoch, self.n) if self.shuffle else np.arange(self.n)
        for low, high in zip(self.bounds[start:-1], self.bounds[start + 1 :], strict=True):
            yield [(epoch, index) for index in order[low + self.rank : high : self.world_size].tolist()]


class BatchSource(Protocol):
    """What a loader reads: a finished batch from a list of keys, in one call."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]: ...


class KeyedLoader(DataLoader):
    """A DataLoader whose position is two numbers, and which draws nothing from the global generator.

    Lightning saves and restores its ``state_dict`` with every checkpoint. The position is asked of whoever trains: the
    loader itself only knows what was prefetched.

    Args:
        dataset: gives a finished batch for a list of keys.
        batch_sampler: which keys.
        workers: processes that read ahead; 0 reads in the training process.
        position: where training stands; a loader without one cannot be saved.
        pin_memory: for a faster copy to a CUDA device.
    """

    batch_sampler: KeyedBatchSampler

    def __init__(
        self,
        dataset: BatchSource,
        batch_sampler: KeyedBatchSampler,
        workers: int = 0,
        position: Callable[[], Position] | None = None,
        pin_memory: bool = False,
    ) -> None:
        # iter() of any DataLoader draws a base seed; from its own generator, so that dropout's is left alone.
        super().__init__(
            # torch asks for its own base classes, but only ever calls these protocols' methods.
            dataset,  # type: ignore[arg-type]
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            collate_fn=_as_is,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker if workers else None,
            generator=torch.Generator().manual_seed(batch_sampler.seed % 2**63),
            # Forked workers start in milliseconds and share the parent's arrays and memory maps; decoders are opened
            # inside the worker only, and no worker touches CUDA. Where fork is unsafe (macOS), the default is kept.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        self.position = position
        _OPEN.add(self)

    def close(self) -> None:
        """Ends the workers, those that hang in a decoder too."""
        iterator, self._iterator = self._iterator, None
        if workers := getattr(iterator, "_workers", []):
            iterator._shutdown_workers()  # type: ignore[union-attr]
            for worker in workers:
                worker.kill()

    def state_dict(self) -> Position:
        if self.position is None:
            raise RuntimeError("this loader was not told where to ask for its position")
        return self.position()

    def load_state_dict(self, state: Position) -> None:
        self.batch_sampler.start_at(state["epoch"], state["batch"])


_OPEN: weakref.WeakSet[KeyedLoader] = weakref.WeakSet()


@atexit.register  # runs before multiprocessing's own exit, which would wait for workers that ignore its SIGTERM
def _close_all() -> None:
    for loader in list(_OPEN):
        loader.close()


def _as_is(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    # Ctrl-C and a cluster's SIGTERM reach the whole process group; the parent alone decides what they mean, finishes
    # its step, saves, and closes its workers. (torch has set the worker's thread count to one.)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def position_of(trainer: pl.Trainer) -> Position:
    """The next batch that ``trainer`` will train on, from its own progress counters."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if epoch.started <= epoch.processed:  # between two epochs
        return {"epoch": epoch.processed, "batch": 0}
    if batches.processed >= trainer.fit_loop.max_batches:  # the epoch's last batch is done, its end is not
        return {"epoch": epoch.processed + 1, "batch": 0}
    return {"epoch": epoch.processed, "batch": batches.processed}


class KeyedDataModule(pl.LightningDataModule):
    """What the DataModules of all modalities share: subsets, loaders, the position, checks.

    A subclass fills ``train``, ``validation_set`` and ``test`` in ``setup`` and turns a batch of uint8 into floats in
    ``preprocessed``.

    Args:
        batch_size: samples per device and step.
        workers: processes per loader.
        validation: share of the training data that is held out, 0 ≤ validation < 1.
        seed: of the order and of every augmentation.
        faults: what a subclass has found wrong with its own arguments; all are raised together.

    Attributes:
        spec: what the data are.
        preprocess: from uint8 to the network's input.
        subsets: what ``setup`` has read.
    """

    spec: DataSpec
    preprocess: Any  # a Preprocess; each modality has its own

    def __init__(self, batch_size: int, workers: int, validation: float, seed: int, faults: Sequence[str] = ()) -> None:
        super().__init__()
        found = list(faults)
        if batch_size < 1:
            found.append(f"data.batch_size must be at least 1, got {batch_size}")
        if workers < 0:
            found.append(f"data.workers must be at least 0, got {workers}")
        if not 0 <= validation < 1:
            found.append(f"data.validation is a share, 0 <= validation < 1, got {validation}")
        if found:
            raise ValueError("; ".join(found))
        self.batch_size, self.workers, self.validation, self.seed = batch_size, workers, validation, seed
        self.subsets: dict[Subset, BatchSource] = {}

    def fingerprint(self) -> str:
        """Identity of the data, whatever folder they lie in: hex digits."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Samples per subset, after ``setup``."""
        return {name: len(source) for name, source in self.subsets.items()}

    def preprocessed(self, batch: Batch) -> Batch:
        """The batch with float samples and without ``draws``; runs on the device."""
        raise NotImplementedError

    def train_dataloader(self) -> KeyedLoader:
        trainer = self.trainer
        # overfit_batches means the same few batches in every epoch
        shuffle = trainer is None or not trainer.overfit_batches  # pyright: ignore[reportAttributeAccessIssue]
        loader = self._loader("train", shuffle, trainer)
        if trainer is not None:
            # A checkpoint from an epoch's end makes Lightning start the next one without asking for our state.
            loader.load_state_dict(position_of(trainer))
        return loader

    def val_dataloader(self) -> KeyedLoader:
        return self._loader("validation")

    def test_dataloader(self) -> KeyedLoader:
        return self._loader("test")

    def _loader(self, subset: Subset, shuffle: bool = False, trainer: pl.Trainer | None = None) -> KeyedLoader:
        rank, world_size = 0, 1
        on_cuda = False
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            on_cuda = self.trainer.strategy.root_device.type == "cuda"
            if world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
                raise KinoscopeError(
                    "set trainer.use_distributed_sampler=false: these loaders share out the samples among the devices "
                    "themselves"
                )
        source = self.subsets[subset]
        size = self.samples_per_batch(subset)
        sampler = KeyedBatchSampler(
            len(source), size, self.seed, shuffle, drop_last=shuffle and len(source) >= size * world_size,
            rank=rank, world_size=world_size,
        )  # fmt: skip
        position = None if trainer is None else lambda: position_of(trainer)
        return KeyedLoader(source, sampler, self.workers, position, pin_memory=on_cuda)

    def samples_per_batch(self, subset: Subset) -> int:
        """Entries of the subset per batch: fewer than ``batch_size`` where one entry gives several samples."""
        return self.batch_size

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        sample = next(value for key, value in batch.items() if key in ("image", "video", "clips"))
        if self.preprocess.mean.device != sample.device:
            self.preprocess.to(sample.device)
        batch = self.preprocessed(batch)
        # Lightning has converted the batch to the trainer's precision before the transfer, while it was still uint8.
        return self.trainer.precision_plugin.convert_input(batch) if self.trainer is not None else batch

    def check_spec(self, shape: tuple[int, ...], classes: Sequence[str]) -> None:
        """Compares the first real sample, after preprocessing, with what the config promised the network."""
        if shape != self.spec.shape:
            raise KinoscopeError(f"data.spec promises samples of shape {self.spec.shape}, the first one is {shape}")
        if tuple(classes) != self.spec.classes:
            raise KinoscopeError(
                f"data.spec promises the classes {', '.join(self.spec.classes)}; the data have {', '.join(classes)}"
            )


def keyed_draws(seed: int, keys: list[Key], streams: list[str]) -> Tensor:
    """Draws for a batch, (B, len(streams)) float32 in [0, 1]: one column per stream."""
    epochs, indices = np.array(keys, dtype=np.int64).reshape(-1, 2).T
    columns = [draws.uniform(seed, epochs, indices, stream) for stream in streams]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
