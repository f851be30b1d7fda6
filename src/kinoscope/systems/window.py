"""Window means of logged terms, with one device synchronisation per window.

``self.log`` does its work at every metric and step, whatever ``log_every_n_steps`` says. Here a step is one stack into
a device buffer; the buffer is read when the window is full. Since every value of the window is kept, the first
non-finite one can be named with its step. The ranks of a training read together: what is read is the mean over all of
them, so all log the same, and all stop where one has become non-finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kinoscope.errors import KinoscopeError
from kinoscope.systems import ranks


class NonFinite(KinoscopeError):
    """A logged term became NaN or infinite."""


class Window:
    """The last (at most ``every``) steps' scalar terms, on the device they were made on.

    Args:
        every: steps per window.
    """

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"log_every must be at least 1, got {every}")
        self.every = every
        self.names: tuple[str, ...] = ()
        self.steps: list[int] = []
        self.ended = 0  # the last step of the window before
        self._counts: list[int] = []  # samples behind each row
        self._open = False  # whether more batches of the newest step follow
        self._buffer = torch.empty(0)
        self._rows: tuple[Tensor, ...] = ()  # of the buffer

    @property
    def full(self) -> bool:
        return len(self.steps) >= self.every and not self._open

    def add(self, step: int, terms: Mapping[str, Tensor], count: int = 1, more: bool = False) -> None:
        """Keeps the scalar ``terms`` of one ``step``; never synchronises.

        Args:
            step: which one.
            terms: scalars, means over the samples of a batch.
            count: of these samples, on this rank.
            more: whether further batches of the same step follow, whose terms are to be averaged with these.
        """
        values = list(terms.values())
        if not self.steps:
            self.names = tuple(terms)
            if self._buffer.shape != (self.every, len(values)) or self._buffer.device != values[0].device:
                self._use(torch.empty(self.every, len(values), device=values[0].device))
        elif tuple(terms) != self.names:
            raise ValueError(f"terms changed within a window: {self.names} became {tuple(terms)}")
        elif self._buffer.device != values[0].device:  # a window resumed from a checkpoint
            self._use(self._buffer.to(values[0].device))
        with torch.no_grad():
            if self._open:
                row, before = self._rows[len(self.steps) - 1], self._counts[-1]
                row.lerp_(torch.stack(values).to(row.dtype), count / (before + count))
                self._counts[-1] += count
            else:
                torch.stack(values, out=self._rows[len(self.steps)])
                self.steps.append(step)
                self._counts.append(count)
        self._open = more

    def _use(self, buffer: Tensor) -> None:
        self._buffer, self._rows = buffer, buffer.unbind()

    def check(self) -> None:
        """Raises `NonFinite` naming the first bad step and term since the window began."""
        self._check(self._read())

    def take(self) -> dict[str, float]:
        """Means over the window, which then starts anew. Raises `NonFinite` like `check`."""
        rows = self._read()
        self._check(rows)
        self.ended = self.steps[-1] if self.steps else self.ended
        self.steps, self._counts, self._open = [], [], False
        return dict(zip(self.names, rows.double().mean(dim=0).tolist(), strict=True)) if len(rows) else {}

    def _read(self) -> Tensor:
        """The rows as means over all ranks, weighted by their samples. All ranks have to read.

        What has been read once gives the same when it is read again, which a window that comes from a checkpoint is:
        the mean of equal numbers of float32, taken in float64, is that number.
        """
        rows = self._buffer[: len(self.steps)]
        if self.steps and ranks.count() > 1:
            counts = torch.tensor(self._counts, dtype=torch.float64, device=rows.device)[:, None]
            sums = ranks.total(torch.cat([rows.double() * counts, counts], dim=1))
            rows = (sums[:, :-1] / sums[:, -1:]).float()
        return rows.cpu()

    def _check(self, rows: Tensor) -> None:
        bad = (~torch.isfinite(rows)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise NonFinite(
                f"'{self.names[column]}' became {rows[row, column].item()} at step {self.steps[row]}; the run was "
                "stopped and the last good checkpoint stands: lower the learning rate, clip gradients, or look with "
                "debug=nan"
            )

    def state_dict(self) -> dict[str, Any]:
        """Between two steps only. All ranks have to call it."""
        values = self._read().clone()
        return {"names": list(self.names), "steps": list(self.steps), "values": values, "ended": self.ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.names, self.steps = tuple(state["names"]), list(state["steps"])
        self.ended = state.get("ended", 0)
        self._counts, self._open = [1] * len(self.steps), False
        values: Tensor = state["values"]
        if self.steps:
            self._use(values.new_empty(self.every, values.shape[1]))
            self._buffer[: len(values)] = values
