"""Window means of logged terms, with one device synchronisation per window.

``self.log`` does its work at every metric and step, whatever ``log_every_n_steps`` says. Here a step is one stack and
one copy into a device buffer; the buffer is read when the window is full. Since every value of the window is kept, the
first non-finite one can be named with its step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kinoscope.errors import KinoscopeError


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
        self._buffer = torch.empty(0)

    @property
    def full(self) -> bool:
        return len(self.steps) >= self.every

    def add(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Keeps the detached scalar ``terms`` of one ``step``; never synchronises."""
        values = torch.stack([term.detach().float() for term in terms.values()])
        if not self.steps:
            self.names = tuple(terms)
            if self._buffer.shape != (self.every, len(values)) or self._buffer.device != values.device:
                self._buffer = values.new_empty(self.every, len(values))
        elif tuple(terms) != self.names:
            raise ValueError(f"terms changed within a window: {self.names} became {tuple(terms)}")
        elif self._buffer.device != values.device:  # a window resumed from a checkpoint
            self._buffer = self._buffer.to(values.device)
        self._buffer[len(self.steps)] = values
        self.steps.append(step)

    def check(self) -> None:
        """Raises `NonFinite` naming the first bad step and term since the window began."""
        self._check(self._read())

    def take(self) -> dict[str, float]:
        """Means over the window, which then starts anew. Raises `NonFinite` like `check`."""
        rows = self._read()
        self._check(rows)
        self.steps = []
        return dict(zip(self.names, rows.double().mean(dim=0).tolist(), strict=True)) if len(rows) else {}

    def _read(self) -> Tensor:
        return self._buffer[: len(self.steps)].cpu()

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
        return {"names": list(self.names), "steps": list(self.steps), "values": self._read().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.names, self.steps = tuple(state["names"]), list(state["steps"])
        values: Tensor = state["values"]
        if self.steps:
            self._buffer = values.new_empty(self.every, values.shape[1])
            self._buffer[: len(values)] = values
