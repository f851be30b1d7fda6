"""The logging window: means, the first bad step, exact state."""

from __future__ import annotations

import math

import pytest
import torch

from kinoscope.systems.window import NonFinite, Window


def filled(every: int, rows: list[tuple[float, float]]) -> Window:
    window = Window(every)
    for step, (loss, accuracy) in enumerate(rows, start=1):
        window.add(step, {"loss": torch.tensor(loss), "accuracy": torch.tensor(accuracy)})
    return window


def test_take_gives_the_mean_of_each_term_and_starts_anew() -> None:
    window = filled(3, [(1.0, 0.0), (2.0, 0.5), (6.0, 1.0)])
    assert window.full
    assert window.take() == {"loss": 3.0, "accuracy": 0.5}
    assert not window.full
    assert window.take() == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_non_finite_term_is_named_with_its_step(bad: float) -> None:
    window = filled(5, [(1.0, 0.0), (2.0, bad), (bad, bad)])
    with pytest.raises(NonFinite, match=r"'accuracy' became (nan|inf|-inf) at step 2"):
        window.check()


def test_terms_are_detached() -> None:
    window = Window(2)
    weight = torch.ones((), requires_grad=True)
    window.add(1, {"loss": weight * 2})
    assert not window.state_dict()["values"].requires_grad


def test_a_window_resumed_in_its_middle_gives_the_same_means() -> None:
    rows = [(0.1, 0.2), (0.3, 0.4), (0.5, 0.7), (0.11, 0.13)]
    whole = filled(4, rows)
    half = filled(4, rows[:2])
    resumed = Window(4)
    resumed.load_state_dict(half.state_dict())
    for step, (loss, accuracy) in enumerate(rows[2:], start=3):
        resumed.add(step, {"loss": torch.tensor(loss), "accuracy": torch.tensor(accuracy)})
    assert resumed.take() == whole.take()


def test_terms_may_not_change_within_a_window() -> None:
    window = filled(5, [(1.0, 0.0)])
    with pytest.raises(ValueError, match="terms changed"):
        window.add(2, {"other": torch.tensor(1.0)})
