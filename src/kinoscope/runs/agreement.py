"""What the ranks of a run do together: begin in one folder, fail alike, stop after one batch, end with equal weights.

Everything here travels through a gloo group of its own, beside the one that averages gradients: small messages between
CPUs, which make no device wait. In a run of one process nothing is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed, nn

from kinoscope.errors import KinoscopeError, Refusal
from kinoscope.runs.interrupt import StopRequest
from kinoscope.runs.quiet import quiet

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # rank 0 may download data while the others wait; a rank that died is noticed otherwise

_group: distributed.ProcessGroup | None = None


@contextmanager
def joined(trainer: pl.Trainer, system: pl.LightningModule) -> Iterator[None]:
    """Connects the ranks as ``trainer`` says, before anything is written; what its like do later finds them connected.

    After an exception the ranks are left as they are: some may wait for others, and all are about to end.
    """
    global _group  # as the process group itself, which torch keeps in a global
    if trainer.world_size == 1 or _group is not None:
        yield
        return
    trainer.strategy.connect(system)
    with quiet():
        trainer.strategy.setup_environment()
    _group = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=PATIENCE))
    if rank() > 0:
        logging.getLogger("kinoscope").setLevel(logging.WARNING)  # rank 0 speaks for all
    yield
    gather(None)  # nobody leaves while another still needs it
    _group = None
    distributed.destroy_process_group()


def is_joined() -> bool:
    """Whether this process is one of several."""
    return _group is not None


def rank() -> int:
    """This process's number among those that are joined; 0 where it is alone."""
    return 0 if _group is None else distributed.get_rank()


def gather(item: T) -> list[T]:
    """Every rank's ``item``, in the order of the ranks."""
    if _group is None:
        return [item]
    items: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(items, item, group=_group)
    return items


def left_out(datamodule: Any) -> dict[str, int]:
    """What bad files have cost all ranks: bad videos are the same for all, and each leaves out samples of its own.

    Rank 0, which alone writes ``train.log``, says why of those that it has not met itself.
    """
    ranks = gather((datamodule.left_out(), datamodule.reasons))
    for reason in sorted(set().union(*(reasons for _, reasons in ranks)) - ranks[0][1]) if rank() == 0 else ():
        logging.getLogger("kinoscope").warning("skipped on another rank: %s", reason)
    return {**ranks[0][0], "samples": sum(costs["samples"] for costs, _ in ranks)}


def together(work: Callable[[], T]) -> T:
    """Does ``work`` on every rank. A `KinoscopeError` on any is raised on all, so that none waits for another."""
    if _group is None:
        return work()
    result: T | None = None
    failure: KinoscopeError | None = None
    try:
        result = work()
    except KinoscopeError as error:
        failure = error
    for error in gather(failure):
        if error is not None:
            raise error
    return cast(T, result)


def from_zero(work: Callable[[], T]) -> T:
    """Does ``work`` on rank 0 alone; what it returns, and a `KinoscopeError` that it raises, is every rank's."""
    if _group is None:
        return work()
    told: list[Any] = [together(lambda: work() if rank() == 0 else None)]
    distributed.broadcast_object_list(told, src=0, group=_group)
    return told[0]


class AgreedStop:
    """A request to stop that all ranks take up after the same batch, whichever of them the signal reached.

    Asking costs a batch nothing: each sends its answer off and reads those of the batch before, which have arrived.

    Args:
        request: this process's own.
    """

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._sent: tuple[distributed.Work, Tensor] | None = None
        self._reason: str | None = None

    def __bool__(self) -> bool:
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """The signal's name, on all ranks alike; None as long as none has come, or not all know of it."""
        return self._request.reason if _group is None else self._reason

    def arm(self) -> None:
        """See `StopRequest.arm`."""
        self._request.arm()

    def vote(self) -> None:
        """Reads what the ranks said when they last called this, and sends off what this one says now."""
        self._read()
        if _group is not None and self._reason is None:
            said = torch.tensor(bool(self._request), dtype=torch.uint8)
            work = distributed.all_reduce(said, distributed.ReduceOp.MAX, group=_group, async_op=True)
            self._sent = cast(distributed.Work, work), said

    def settle(self) -> None:
        """As `vote`, but waits for the answers: for the moments after which nothing comes for a while."""
        self.vote()
        self._read()

    def _read(self) -> None:
        if self._sent is None:
            return
        work, said = self._sent
        self._sent = None
        work.wait()
        if said.item():
            self._reason = next(reason for reason in gather(self._request.reason) if reason is not None)


class OneOfSeveral(pl.Callback):
    """What a training of several ranks needs beside Lightning: different dropout on each, and proof of equal weights.

    Args:
        seed: of the run. Rank 0 draws as a run of one process does.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has seeded all ranks alike when it connected them. What shapes a sample is keyed, not drawn here.
        if trainer.global_rank > 0:
            own = np.random.SeedSequence([self.seed, trainer.global_rank]).generate_state(1)
            pl.seed_everything(int(own[0]), workers=False, verbose=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(trainer.strategy, DDPStrategy):  # a strategy that shards gives each rank weights of its own
            require_equal_weights(pl_module)


def require_equal_weights(module: nn.Module) -> None:
    """Raises `KinoscopeError` on all ranks if a parameter is not equal on all of them, to the last bit."""
    parameters = dict(module.named_parameters())
    ours = torch.stack([_bits(parameter) for parameter in parameters.values()]).cpu()
    sums = torch.stack(gather(ours))  # (ranks, parameters)
    apart = (sums != sums[0]).any(dim=0)
    names = [name for name, differs in zip(parameters, apart.tolist(), strict=True) if differs]
    if names:
        others = (sums != sums[0]).any(dim=1).nonzero().flatten().tolist()
        raise KinoscopeError(
            f"{len(names)} of {len(parameters)} weights, '{names[0]}' first, are not those of rank 0 on "
            f"rank {', '.join(map(str, others))}: the ranks have trained apart, and checkpoints hold rank 0's weights"
        )


def _bits(tensor: Tensor) -> Tensor:
    """The sum of a tensor's numbers, taken as integers of their size: equal for equal bits."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integers).sum(dtype=torch.int64)


def require_same(contents: Mapping[str, Any]) -> None:
    """Raises `Refusal` on all ranks if ``contents`` is not the same on all of them; names the keys that differ."""
    first, *others = gather(dict(contents))
    keys = sorted({key for content in (first, *others) for key in content})
    absent = object()
    differing = [key for key in keys if any(other.get(key, absent) != first.get(key, absent) for other in others)]
    if differing:
        raise Refusal(
            f"the ranks were started with different values of {', '.join(differing)}: give all of them the same "
            "command without anything random in it, or let 'python -m train' start the ranks of a node"
        )
