"""A run that begins with the weights of another: ``init_from=<run>``, and ``fresh=[…]`` for what is not taken over.

What is taken are parameters and buffers of the same name, from the other run's best checkpoint. That file's hash, not
its place, is part of this run's identity (signature.py).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kinoscope.config.suggest import listed
from kinoscope.errors import Refusal
from kinoscope.runs.checkpoints import read_checkpoint
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.signature import file_hash
from kinoscope.systems.base import System

log = logging.getLogger("kinoscope")

GENERATOR = "generator."
AVERAGED = "ema."  # a generator's moving average, which is what it samples with


@dataclass(frozen=True)
class WarmStart:
    """What a run begins with.

    Attributes:
        taken: name → tensor, as the other run has it.
        fresh: names of this model that keep their initial values.
        origin: where it comes from, for ``provenance.json``: folder, checkpoint, signature, step and the file's hash.
    """

    taken: dict[str, Tensor]
    fresh: list[str]
    origin: dict[str, Any]

    @torch.no_grad()
    def apply(self, system: System) -> None:
        """Copies what is taken into ``system``, and says so."""
        ours = system.state_dict()
        for name, value in self.taken.items():
            ours[name].copy_(value)
        where, step = self.origin["folder"], self.origin["step"]
        rest = f"; fresh: {', '.join(groups(self.fresh))}" if self.fresh else ""
        log.info("%d of %d tensors taken from '%s' at step %d%s", len(self.taken), len(ours), where, step, rest)


def read(source: str | Path, system: System, fresh: Sequence[str] = ()) -> WarmStart:
    """Finds what ``system`` can take from the best checkpoint of the run ``source``; changes nothing yet.

    Args:
        source: a run folder.
        system: the model that is to be started.
        fresh: patterns (``network.head.*``) of names that are not taken.

    Raises:
        Refusal: no run or no checkpoint there, nothing of the same name, a tensor of another shape, or a pattern that
            no name matches.
        KinoscopeError: the checkpoint is torn.
    """
    run = RunFolder.open(source)
    path = run.trained()
    if (status := run.read_summary()["status"]) != "finished":
        log.warning("'%s' is %s: its best checkpoint so far is taken", run.path, status)
    checkpoint = read_checkpoint(path)
    theirs = weights(checkpoint["state_dict"])
    taken, left = match(theirs, weights(system.state_dict()), fresh, str(run.path))
    origin = {
        "folder": str(run.path),
        "checkpoint": path.name,
        "signature": checkpoint["kinoscope"]["signature"],
        "step": int(checkpoint["global_step"]),
        "sha256": file_hash(path),
    }
    return WarmStart(taken, left, origin)


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a system's parts; what has no dot in its name is its own bookkeeping, such as a counter.

    An averaged generator stands in for the generator as well: it is what the run has come to.
    """
    parts = {name: value for name, value in state.items() if "." in name}
    averaged = {name.removeprefix(AVERAGED): value for name, value in parts.items() if name.startswith(AVERAGED)}
    if not averaged:  # an average that begins here begins with the generator
        own = {name: value for name, value in parts.items() if name.startswith(GENERATOR)}
        return {**parts, **{AVERAGED + name.removeprefix(GENERATOR): value for name, value in own.items()}}
    return {**parts, **{GENERATOR + name: value for name, value in averaged.items()}}


def match(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], fresh: Sequence[str], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """What of ``theirs`` is taken for ``ours``, and the names of ours that stay fresh. Shapes are all it looks at.

    Raises:
        Refusal: as `read`.
    """
    idle = [pattern for pattern in fresh if not any(fnmatchcase(name, pattern) for name in ours)]
    if idle:
        raise Refusal(f"fresh: {listed(idle)} matches nothing of this model, which has {listed(groups(ours))}")
    wanted = [name for name in ours if not any(fnmatchcase(name, pattern) for pattern in fresh)]
    taken = {name: theirs[name] for name in wanted if name in theirs}
    if not taken:
        raise Refusal(
            f"init_from: nothing in '{where}' has a name of this model: there are {listed(groups(theirs))}, here are "
            f"{listed(groups(wanted))}"
        )
    other = [name for name, value in taken.items() if value.shape != ours[name].shape]
    if other:
        first = other[0]
        raise Refusal(
            f"init_from: '{first}' is {_shape(theirs[first])} in '{where}' and {_shape(ours[first])} here"
            + (f", and so with {len(other) - 1} more" if len(other) > 1 else "")
            + f"; make them alike, or leave it out with 'fresh=[{groups([first])[0]}.*]'"
        )
    return taken, [name for name in ours if name not in taken]


def groups(names: Iterable[str]) -> list[str]:
    """The modules that hold these tensors, each once: ``network.encoder.0.weight`` → ``network.encoder.0``."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"
