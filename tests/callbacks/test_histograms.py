from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from picture_fakes import Run
from picture_fakes import System as Base
from torch import Tensor, nn

from kinoscope.callbacks.histograms import Histograms, gradient_norms, histograms
from kinoscope.systems.window import Window


class System(Base):
    """A linear map whose gradient is known: every weight's is 3, the bias's is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(2)
        self.body = nn.Linear(4, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.body(torch.full((1, 4), 3.0)).sum()


class Keeper:
    """A logger that keeps what it is given."""

    def __new__(cls) -> Any:
        from lightning.pytorch.loggers.logger import DummyLogger

        class Kept(DummyLogger):
            def __init__(self) -> None:
                super().__init__()
                self.metrics: list[tuple[int | None, dict[str, float]]] = []
                self.histograms: list[tuple[int, dict[str, Any]]] = []

            def log_metrics(self, metrics: Any, step: int | None = None) -> None:
                if "gradients/total" in metrics:
                    self.metrics.append((step, metrics))

            def log_histograms(self, histograms: Any, step: int) -> None:
                self.histograms.append((step, histograms))

        return Kept()


def test_norms_are_those_of_the_gradients(run: Run) -> None:
    keeper = Keeper()
    run("fit", Histograms(every_n_windows=2), system=System(), logger=keeper, gradient_clip_val=0.1)
    (step, metrics), *rest = keeper.metrics
    assert step == 4 and not rest, "2 epochs of 3 steps: one look, after 2 windows of 2 steps"
    assert metrics == {  # before clipping
        "gradients/total": pytest.approx((4 * 9 + 1) ** 0.5),
        "gradients/body": pytest.approx((4 * 9 + 1) ** 0.5),
    }
    ((step, drawn),) = keeper.histograms
    assert step == 4 and set(drawn) == {"weights/weight", "weights/norm.weight", "weights/norm.bias"} | {
        "weights/body.weight", "weights/body.bias",
    }  # fmt: skip
    assert drawn["weights/body.weight"][0].sum() == 4


def test_accumulated_gradients_are_looked_at_once(run: Run) -> None:
    keeper = Keeper()
    system = System()
    run("fit", Histograms(every_n_windows=1), system=system, logger=keeper, accumulate_grad_batches=3)
    assert [step for step, _ in keeper.metrics] == [2]  # 6 batches, 2 steps
    assert keeper.metrics[0][1]["gradients/total"] == pytest.approx(37**0.5)


def test_by_default_nothing_is_looked_at(run: Run) -> None:
    keeper = Keeper()
    run("fit", Histograms(), system=System(), logger=keeper)
    assert not keeper.metrics and not keeper.histograms


def test_norms_add_up_over_modules() -> None:
    found = gradient_norms({"a.weight": torch.tensor(3.0), "a.bias": torch.tensor(4.0), "scale": torch.tensor(12.0)})
    assert found == {"gradients/total": 13.0, "gradients/a": 5.0, "gradients/scale": 12.0}


@pytest.mark.parametrize("values", [torch.randn(1000, generator=torch.Generator().manual_seed(0)), torch.arange(64.0)])
def test_a_histogram_counts_every_weight(values: Tensor) -> None:
    ((name, (counts, edges)),) = histograms([("a", nn.Parameter(values))], 16).items()
    expected, theirs = np.histogram(values.numpy(), 16)
    assert name == "weights/a" and edges == pytest.approx(theirs, abs=1e-6)
    assert counts.sum() == len(values)
    assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 1, "at most one on an edge, by rounding"


def test_a_histogram_of_broken_or_equal_weights() -> None:
    broken = torch.tensor([float("nan"), float("inf"), 1.0, 1.0])
    counts, edges = histograms([("a", nn.Parameter(broken))], 4)["weights/a"]
    assert counts.sum() == 2 and (edges[0], edges[-1]) == (0.5, 1.5)
    counts, _ = histograms([("a", nn.Parameter(broken[:2]))], 4)["weights/a"]
    assert counts.sum() == 0
