"""Loss scaling, bfloat16 and gradient clipping in trainings that take milliseconds."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import pytest
import rank_scenarios as scenarios
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from kinoscope.errors import Refusal
from kinoscope.objectives.adversarial import NonSaturating
from kinoscope.systems.adversarial import Adversarial
from kinoscope.systems.base import System
from kinoscope.systems.tuning import keep_sound, require_tunable

# Data without validation, few batches: Lightning has something to say about each.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")


class Scaled(MixedPrecision):
    """Loss scaling as 16-mixed has it, around the arithmetic of 32 bits: the numbers must not change."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        super().__init__("16-mixed", "cpu", scaler)

    def autocast_context_manager(self) -> AbstractContextManager[Any]:  # type: ignore[override]
        return contextlib.nullcontext()


def scaler(**options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, **options)


@pytest.mark.parametrize("changes", [{}, {"critic_steps": 2}])
@pytest.mark.parametrize("clip", [None, 0.01])
def test_scaled_losses_train_the_same_players(changes: dict[str, Any], clip: float | None) -> None:
    """Also when clipped: gradients are unscaled before."""
    ours, theirs = scenarios.gan(**changes), scenarios.gan(**changes)
    for system in (ours, theirs):
        system.take_over(1, clip, "norm")
    scaled = scenarios.fit(ours, 1, plugins=[Scaled(scaler())])
    plain = scenarios.fit(theirs, 1)
    scenarios_close(scaled["weights"], plain["weights"])
    assert scaled["clock"] == plain["clock"] == 6


@pytest.mark.parametrize("critic_steps", [1, 2])
def test_the_scale_is_adjusted_once_for_both_players(critic_steps: int) -> None:
    """It doubles after three critic updates without overflow, whether or not the generator was updated with each."""
    made = scaler(growth_interval=3)
    scenarios.fit(scenarios.gan(critic_steps=critic_steps), 1, max_steps=6, plugins=[Scaled(made)])
    assert made.get_scale() == 2.0 ** (10 + 6 * critic_steps // 3)


class Overflowing(NonSaturating):
    """The first critic loss has a gradient that no number can hold."""

    def __init__(self) -> None:
        self.calls = 0

    def critic_loss(self, critic: Any, real: Tensor, fake: Tensor, condition: Any = None) -> dict[str, Tensor]:
        terms = super().critic_loss(critic, real, fake)
        self.calls += 1
        if self.calls == 1:
            terms["loss"] = terms["loss"] * 1e38
        return terms


def test_an_overflow_halves_the_scale_and_spares_the_player() -> None:
    made = scaler()
    torch.manual_seed(0)
    players = scenarios.Generator(), scenarios.Critic()
    system = Adversarial(*players, Overflowing(), scenarios.adam, scenarios.adam)
    system.spec = scenarios.SPEC
    before = {name: value.clone() for name, value in system.state_dict().items()}
    scenarios.fit(system, 1, max_steps=1, plugins=[Scaled(made)])
    after = system.state_dict()
    assert made.get_scale() == 2.0**9
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("critic"))
    assert not all(torch.equal(before[name], after[name]) for name in before if name.startswith("generator"))


@pytest.mark.parametrize("make", [scenarios.classifier, scenarios.autoencoder, scenarios.gan])
def test_bfloat16_keeps_weights_and_losses_in_float32(make: Any) -> None:
    """And trains nearly as float32 does: 8 bits of mantissa are 0.4 % in each product."""
    low = scenarios.fit(make(), 1, precision="bf16-mixed", limit_val_batches=None, max_steps=12)
    full = scenarios.fit(make(), 1, limit_val_batches=None, max_steps=12)
    assert all(value.dtype != torch.bfloat16 for value in low["weights"].values())
    for (_, ours), (_, theirs) in zip(low["rows"], full["rows"], strict=True):
        assert ours == pytest.approx(theirs, rel=0.1, abs=0.1)
    losses = [value for _, row in low["rows"] for name, value in row.items() if "loss" in name or "error" in name]
    assert losses
    rounded = torch.tensor(losses).bfloat16().double()
    assert not torch.equal(rounded, torch.tensor(losses, dtype=torch.float64))  # they have more than bfloat16's digits


class Reaching(System):
    """Kernels that reach past both ends of an axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(16, 16, 3, padding=1)  # over two frames, as C3D's last
        self.transposed = nn.ConvTranspose2d(16, 16, 3, stride=2, padding=1)  # over one pixel
        self.linear = nn.Linear(16, 16)

    def gradients(self, dtype: torch.dtype) -> list[Tensor]:
        x = torch.randn(4, 16, 2, 6, 6, generator=torch.Generator().manual_seed(1))
        self.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert self.linear(x[:, :, 0, 0, 0]).dtype == dtype  # all else is left to autocast
            answer = self.convolution(x).square().sum() + self.transposed(x[:, :, 0, :1, :1]).square().sum()
        answer.backward()
        return [p.grad.clone() for p in self.parameters() if p.grad is not None]


def test_bfloat16_on_a_cpu_takes_no_gradient_from_memory_that_nobody_has_written() -> None:
    plain, kept = Reaching(), Reaching()
    keep_sound(kept, torch.device("cpu"), "bf16-mixed")
    expected = plain.gradients(torch.float32)
    for turn in range(3):
        junk = [torch.full((30_000 * (turn + 1),), 1e30) for _ in range(3)]
        del junk  # what lies in memory afterwards
        for ours, theirs in zip(kept.gradients(torch.bfloat16), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    with pytest.raises(Refusal, match="bf16-true: on a CPU, torch gets the gradients of Conv3d wrong"):
        require_tunable(plain, None, False, torch.device("cpu"), "bf16-true")
    require_tunable(plain, None, False, torch.device("cuda"), "bf16-true")
    keep_sound(plain, torch.device("cuda"), "bf16-mixed")
    assert "forward" not in vars(plain.convolution)


class Norms(torch.optim.SGD):
    """Notes how long, and how large in any place, the gradient was at each step."""

    seen: list[tuple[float, float]]

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)  # Lightning clips within the closure
        gradient = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]])
        type(self).seen.append((float(gradient.norm()), float(gradient.abs().max())))
        return result


@pytest.mark.parametrize(("algorithm", "which"), [("norm", 0), ("value", 1)])
def test_each_players_gradient_is_clipped(algorithm: str, which: int) -> None:
    Norms.seen = []
    torch.manual_seed(0)
    optimizer = lambda parameters: Norms(parameters, lr=0.1)  # noqa: E731
    system = Adversarial(scenarios.Generator(), scenarios.Critic(), NonSaturating(), optimizer, optimizer)
    system.spec = scenarios.SPEC
    system.take_over(1, 0.001, algorithm)
    scenarios.fit(system, 1)
    assert len(Norms.seen) == 12
    assert all(seen[which] == pytest.approx(0.001, rel=1e-3) for seen in Norms.seen)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((0, None, None), "accumulate_grad_batches"), ((1, -1.0, None), "gradient_clip_val"), ((1, 1.0, "sum"), "'sum'")],
)
def test_nonsense_is_refused(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scenarios.gan().take_over(*arguments)


def test_a_system_without_gradients_refuses_to_clip_them() -> None:
    class Still(System):
        pass

    with pytest.raises(ValueError, match="Still has no gradients"):
        Still().take_over(1, 1.0, None)


def scenarios_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)


def test_losses_of_half_precision_logits_are_taken_in_float32_and_float64_is_kept() -> None:
    critic = nn.Identity()
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        x = torch.randn(5).to(dtype)
        assert NonSaturating().critic_loss(critic, x, x)["loss"].dtype == expected
        assert NonSaturating().generator_loss(critic, x)["loss"].dtype == expected
