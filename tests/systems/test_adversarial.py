"""The adversarial system against Algorithm 1 written out: clock, players, averages, noise."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from kinoscope.contracts import DataSpec
from kinoscope.objectives.adversarial import NonSaturating
from kinoscope.runs.quiet import quiet
from kinoscope.systems.adversarial import Adversarial, frozen


class Line(nn.Module):
    """A generator of 1×2×2 images from 3 numbers."""

    latent_shape = (3,)
    latent_prior = "normal"

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, z: Tensor) -> Tensor:
        return self.norm(self.linear(z)).view(-1, 1, 2, 2)


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).squeeze(1)


class Images(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 20 * 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(index))}


def system(**changes: Any) -> Adversarial:
    torch.manual_seed(0)
    sgd = partial(torch.optim.SGD, lr=0.1)
    made = Adversarial(Line(), Judge(), NonSaturating(), sgd, sgd, fixed_samples=8, seed=5, **changes)
    made.spec = DataSpec("image", (1, 2, 2), ("one",), 1)
    return made


def fit(module: Adversarial, val_dataloaders: Any = None, **trainer: Any) -> pl.Trainer:
    made = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, max_epochs=1, **trainer,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(Images(), batch_size=4)
    with quiet():
        made.fit(module, train_dataloaders=loader, val_dataloaders=val_dataloaders)
    return made


# Little is validated here.
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def test_the_clock_counts_generator_updates() -> None:
    """20 batches and two optimizers: Lightning alone would count 40."""
    made = system()
    assert fit(made).global_step == made.clock == 20


def test_several_critic_steps_leave_fewer_generator_updates() -> None:
    made = system(critic_steps=4)
    assert fit(made).global_step == made.clock == 5


def test_max_steps_stops_after_so_many_generator_updates() -> None:
    made = system()
    before = copy.deepcopy(made.state_dict())
    fit(made, max_steps=7)
    assert made.clock == 7
    assert not torch.equal(before["generator.linear.weight"], made.state_dict()["generator.linear.weight"])


def test_a_fit_equals_algorithm_1_written_out() -> None:
    made = system(ema_decay=0.9)
    generator, critic = copy.deepcopy(made.generator), copy.deepcopy(made.critic)
    average = copy.deepcopy(made.generator)
    fit(made)

    objective = NonSaturating()
    players = (torch.optim.SGD(generator.parameters(), lr=0.1), torch.optim.SGD(critic.parameters(), lr=0.1))
    for batch in range(20):
        real = torch.stack([Images()[4 * batch + i]["image"] for i in range(4)])
        fake = generator(made.draw(2 * batch, 4)).detach()
        players[1].zero_grad()
        objective.critic_loss(critic, real, fake)["loss"].backward()
        players[1].step()
        players[0].zero_grad()
        objective.generator_loss(critic, generator(made.draw(2 * batch + 1, 4)))["loss"].backward()
        players[0].step()
        with torch.no_grad():
            for kept, current in zip(average.parameters(), generator.parameters(), strict=True):
                kept.mul_(0.9).add_(current, alpha=0.1)
    for ours, theirs in ((made.generator, generator), (made.critic, critic), (made.ema, average)):
        assert ours is not None
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other)
    assert int(made.ema_updates) == 20


def test_no_two_draws_of_a_training_are_the_same() -> None:
    made = system()
    drawn = torch.stack([made.draw(step, 4) for step in range(40)]).flatten(0, 1)
    assert len(torch.unique(drawn, dim=0)) == 160
    assert not (made.fixed_latent[:, None] == drawn[None]).all(dim=2).any()


def test_noise_belongs_to_a_position_in_the_global_batch() -> None:
    """Two ranks with half a batch each draw what one process draws for the whole."""
    made = system()
    assert torch.equal(made.draw(3, 8), torch.cat([made.draw(3, 4, first=0), made.draw(3, 4, first=4)]))


def test_frozen_takes_and_gives_back() -> None:
    judge = Judge()
    judge.linear.bias.requires_grad_(False)
    with frozen(list(judge.linear.parameters())[:1]):
        assert not any(parameter.requires_grad for parameter in judge.parameters())
    assert judge.linear.weight.requires_grad
    assert not judge.linear.bias.requires_grad


def test_samples_are_drawn_from_the_average_with_frozen_statistics() -> None:
    made = system(ema_decay=0.5)
    fit(made)
    assert made.ema is not None
    made.train()
    before = copy.deepcopy(made.state_dict())
    images = made.sample(5, seed=1)
    assert torch.equal(images, made.sample(5, seed=1))
    assert torch.equal(images[:2], made.sample(2, seed=1))  # an image does not depend on its neighbours
    assert made.training
    assert not made.ema.training
    after = made.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        assert torch.equal(made.sample(3), made.ema(made.fixed_latent[:3]))


@pytest.mark.parametrize(("key", "value"), [("critic_steps", 0), ("ema_decay", 1.0), ("ema_decay", 0.0)])
def test_nonsense_is_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=key):
        system(**{key: value})


class Penalised(NonSaturating):
    """With the critic's squared slope between real and fake images."""

    def critic_loss(self, critic: Any, real: Tensor, fake: Tensor, condition: Any = None) -> dict[str, Tensor]:
        terms = super().critic_loss(critic, real, fake)
        between = real.lerp(fake, 0.5).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = slope.flatten(1).square().sum(dim=1).mean()
        return {**terms, "loss": terms["loss"] + penalty, "penalty": penalty}


def test_a_penalty_on_gradients_is_trained_and_validated() -> None:
    made = system()
    made.objective = Penalised()
    loader = torch.utils.data.DataLoader(Images(), batch_size=4)
    trainer = fit(made, val_dataloaders=loader, limit_train_batches=4)
    validated = float(trainer.callback_metrics["val/penalty"])
    weight = made.critic.get_parameter("linear.weight")
    assert validated == pytest.approx(float(weight.detach().square().sum()))  # of a linear critic
    assert all(parameter.grad is None and parameter.requires_grad for parameter in made.critic.parameters())
    with quiet():
        trainer.test(made, loader, verbose=False)
    assert float(trainer.callback_metrics["test/penalty"]) == pytest.approx(validated)


def test_validation_of_a_game_without_penalties_keeps_no_graph() -> None:
    made, graphs = system(), []

    class Watching(NonSaturating):
        def critic_loss(self, critic: Any, real: Tensor, fake: Tensor, condition: Any = None) -> dict[str, Tensor]:
            terms = super().critic_loss(critic, real, fake)
            graphs.append(terms["loss"].requires_grad)
            return terms

    made.objective = Watching()
    fit(made, val_dataloaders=torch.utils.data.DataLoader(Images(), batch_size=40), limit_train_batches=3)
    assert graphs == [True, True, True, False, False]
