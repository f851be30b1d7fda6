"""Loaders that resume in mid-epoch with no worker state, because every batch is a function of (seed, epoch, number).

A sampler yields lists of keys (epoch, index); a data set turns such a list into a finished batch in one call. The key
says everything that a sample's draws depend on, so a batch is the same with any number of workers. It is also the same
from workers that had to be started anew, because a sample ended one of them (`watchdog`).
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing.connection
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from kinoscope.data import draws, watchdog
from kinoscope.data.children import ending
from kinoscope.data.keys import Key, KeyedBatchSampler
from kinoscope.data.watchdog import Watchdog
from kinoscope.errors import KinoscopeError
from kinoscope.launch.processes import STOP_SIGNALS

log = logging.getLogger("kinoscope")

Subset = Literal["train", "validation", "test"]
START = 20.0  # seconds for a worker to begin; it takes milliseconds where the machine is not overloaded
STARTS = 3  # times that workers are started anew

Position = dict[str, int]  # {"epoch", "batch"}: the next batch to train on


class BatchSource(Protocol):
    """What a loader reads: a finished batch from a list of keys, in one call."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]: ...


class WatchedSource(BatchSource, Protocol):
    """A source whose samples may break a worker: files that have to be decoded."""

    watchdog: Watchdog

    def path(self, index: int) -> Any: ...


class KeyedLoader(DataLoader):
    """A DataLoader whose position is two numbers, and which draws nothing from the global generator.

    Lightning saves and restores its ``state_dict`` with every checkpoint. The position is asked of whoever trains: the
    loader itself only knows what was prefetched.

    A worker that dies at a sample, by the time limit of the source's ``watchdog`` or by a crash, costs that sample:
    it is lost for this loader, and new workers go on with the batch that was due. The time limit counts while a disk
    or the whole machine stands still, which is no fault of the sample, so one that exceeds it is read once more first.

    Args:
        dataset: gives a finished batch for a list of keys; may be a `WatchedSource`.
        batch_sampler: which keys.
        workers: processes that read ahead; 0 reads in the training process, or in one process where there is a time
            limit, since only a process can be ended.
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
        # Forked workers start in milliseconds and share the parent's arrays and memory maps; decoders are opened
        # inside the worker only, and no worker touches CUDA. Where fork is unsafe (macOS), the default is kept.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self.watchdog: Watchdog | None = getattr(dataset, "watchdog", None)
        timed = self.watchdog is not None and self.watchdog.limit is not None
        processes = workers or int(timed)
        self.reading = context.RawArray("q", [watchdog.STARTING] * processes)  # the sample that each worker is at
        # iter() of any DataLoader draws a base seed; from its own generator, so that dropout's is left alone.
        super().__init__(
            # torch asks for its own base classes, but only ever calls these protocols' methods.
            dataset,  # type: ignore[arg-type]
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            collate_fn=_as_is,
            num_workers=processes,
            prefetch_factor=(2 if workers else 1) if processes else None,
            pin_memory=pin_memory,
            persistent_workers=processes > 0,
            worker_init_fn=partial(_start_worker, self.reading) if processes else None,
            generator=torch.Generator().manual_seed(batch_sampler.seed % 2**63),
            multiprocessing_context=context if processes else None,
        )
        self.position = position
        _OPEN.add(self)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self.num_workers:
            return super().__iter__()
        epoch, start = self.batch_sampler.epoch, self.batch_sampler.start  # of this call, as in the sampler
        return self._unbroken(self._begin(epoch, start), epoch, start)

    def _unbroken(self, iterator: Iterator[Any], epoch: int, number: int) -> Iterator[Any]:
        """Batches from ``number`` on, whatever becomes of workers."""
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except Exception as error:
                self._bury(error)
                later = self.batch_sampler.epoch, self.batch_sampler.start
                iterator = self._begin(epoch, number)
                self.batch_sampler.start_at(*later)
            else:
                number += 1
                yield batch

    def _begin(self, epoch: int, batch: int) -> Iterator[Any]:
        """Workers, new ones or those of the last epoch, that read from this batch on."""
        stuck = 0
        while True:
            self.batch_sampler.start_at(epoch, batch)
            try:
                with _deaf():
                    iterator: Any = super().__iter__()
            except Exception as error:
                self._bury(error)
                continue
            if iterator._worker_pids_set:
                # When a worker dies, torch raises from a signal handler, wherever the training process is. A dead
                # worker is noticed in good time when its batch is due.
                signal_handling._remove_worker_pids(id(iterator))
                iterator._worker_pids_set = False
            if self._have_started(iterator._workers):
                return iterator
            self.close()
            if (stuck := stuck + 1) == STARTS:
                raise KinoscopeError(
                    f"the processes that read the data did not start within {START:g} s, {STARTS} times in a row; try "
                    "data.workers=0 and data.time_limit=null"
                )

    def _have_started(self, workers: Sequence[Any]) -> bool:
        """Waits until each worker has begun, or is dead, which is noticed when its batch is due; False if one hangs.

        A fork copies the locks that other threads hold, those of the network library between ranks for one, and a
        child can wait for one of these for ever before its first line. Seldom: once in some hundred starts.
        """
        deadline = time.monotonic() + START
        while late := [w for at, w in zip(self.reading, workers, strict=True) if at == watchdog.STARTING]:
            if not any(worker.is_alive() for worker in late):
                break
            if time.monotonic() > deadline:
                for worker in late:
                    worker.kill()
                return False
            time.sleep(0.001)
        return True

    def _bury(self, error: Exception) -> None:
        """Where workers have died, notes the samples they were at and ends all workers; else raises the error."""
        workers = getattr(self._iterator, "_workers", [])
        if workers and not isinstance(error, KinoscopeError):  # a pipe that broke: its holder may be about to die
            ending_now = multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=5.0)
            for worker in workers:
                worker.join(5.0 if worker.sentinel in ending_now else 0.0)
        dead = [number for number, worker in enumerate(workers) if not worker.is_alive()]
        if not dead:
            raise error
        for number in dead:
            index, code = self.reading[number], workers[number].exitcode
            if self.watchdog is None or index < 0 or code == -signal.SIGKILL:
                raise KinoscopeError(
                    f"a process that reads the data came to its end ({ending(code)}); where memory was short, take "
                    "fewer data.workers or a smaller data.batch_size"
                ) from error
            path = cast(WatchedSource, self.dataset).path(index)
            if code != -signal.SIGALRM:
                self.watchdog.lost[index] = f"{path}: decoding it ended the process that worked on it ({ending(code)})."
                continue
            fault = f"{path}: decoding it took more than data.time_limit={self.watchdog.limit:g} s"
            if index in self.watchdog.late:
                self.watchdog.lost[index] = f"{fault} and was stopped."
            else:
                self.watchdog.late.add(index)
                log.warning("%s; it is read once more", fault)
        self.close()

    def close(self) -> None:
        """Ends the workers, those that hang in a decoder too."""
        iterator, self._iterator = self._iterator, None
        if workers := getattr(iterator, "_workers", []):
            iterator._shutdown_workers()  # type: ignore[union-attr]
            for worker in workers:
                worker.kill()
        self.reading[:] = [watchdog.STARTING] * len(self.reading)

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
    for worker in multiprocessing.active_children():  # of a loader that failed while it started them
        if worker.daemon:
            worker.kill()


def _as_is(batch: Any) -> Any:
    return batch


@contextmanager
def _deaf() -> Iterator[None]:
    """A process started inside hears nothing of what asks to stop, from its first moment on; this one does later.

    torch's own handlers would let a signal to the whole group end a worker that has just begun.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(reading: Any, worker: int) -> None:
    # Ctrl-C and a cluster's signals reach the whole process group; the parent alone decides what they mean, finishes
    # its step, saves, and closes its workers. (torch has set the worker's thread count to one.)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # what it starts may hear them
    watchdog.start(reading, worker)


def position_of(trainer: pl.Trainer) -> Position:
    """The next batch that ``trainer`` will train on, from its own progress counters."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if epoch.started <= epoch.processed:  # between two epochs
        return {"epoch": epoch.processed, "batch": 0}
    if batches.processed >= trainer.fit_loop.max_batches:  # the epoch's last batch is done, its end is not
        return {"epoch": epoch.processed + 1, "batch": 0}
    return {"epoch": epoch.processed, "batch": batches.processed}


def keyed_draws(seed: int, keys: list[Key], streams: list[str]) -> Tensor:
    """Draws for a batch, (B, len(streams)) float32 in [0, 1]: one column per stream."""
    epochs, indices = np.array(keys, dtype=np.int64).reshape(-1, 2).T
    columns = [draws.uniform(seed, epochs, indices, stream) for stream in streams]
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
