"""Goodfellow et al. 2014: values and gradients of both games, and the optimal critic on a table of probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kinoscope.objectives.adversarial import Minimax, NonSaturating

GAMES = (Minimax(), NonSaturating())


def score(x: Tensor) -> Tensor:
    """A critic whose logit is the image's only pixel."""
    return x.flatten(1).squeeze(1)


def pixels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


@pytest.mark.parametrize("game", GAMES)
def test_values_are_the_papers_logarithms(game: Minimax) -> None:
    real, fake = pixels(0.3, -1.2), pixels(2.0, -0.4)
    d_real, d_fake = score(real).sigmoid(), score(fake).sigmoid()
    terms = game.critic_loss(score, real, fake)
    torch.testing.assert_close(terms["loss"], -(d_real.log().mean() + (1 - d_fake).log().mean()))
    torch.testing.assert_close(terms["critic_real"], d_real.mean())
    torch.testing.assert_close(terms["critic_fake"], d_fake.mean())
    expected = {Minimax: (1 - d_fake).log().mean(), NonSaturating: -d_fake.log().mean()}[type(game)]
    torch.testing.assert_close(game.generator_loss(score, fake)["loss"], expected)


@pytest.mark.parametrize("logit", [-6.0, -1.0, 0.0, 2.0])
def test_generator_gradients(logit: float) -> None:
    """−σ(a) and σ(a) − 1: equal at a = 0, else of the ratio exp(a), so minimax dies where the critic is sure."""
    gradients = []
    for game in GAMES:
        fake = pixels(logit).requires_grad_()
        game.generator_loss(score, fake)["loss"].backward()
        assert fake.grad is not None
        gradients.append(fake.grad.item())
    sigma = 1 / (1 + math.exp(-logit))
    assert gradients == pytest.approx([-sigma, sigma - 1])
    assert gradients[0] / gradients[1] == pytest.approx(math.exp(logit))


@pytest.mark.parametrize("game", GAMES)
def test_extreme_logits_stay_finite(game: Minimax) -> None:
    real, fake = torch.full((2, 1, 1, 1), -1e4).requires_grad_(), torch.full((2, 1, 1, 1), 1e4).requires_grad_()
    for loss in (game.critic_loss(score, real, fake)["loss"], game.generator_loss(score, -fake)["loss"]):
        assert loss.isfinite()
        loss.backward()
    assert real.grad is not None and real.grad.isfinite().all()
    assert fake.grad is not None and fake.grad.isfinite().all()


@pytest.mark.parametrize("p_fake", [(0.1, 0.2, 0.7), (0.5, 0.3, 0.2)])
def test_the_optimal_critic_on_a_table(p_fake: tuple[float, ...]) -> None:
    """Gradient descent over free logits reaches D* = p / (p + q) and −V = 2 log 2 − 2 JSD; 2 log 2 where p = q."""
    p, q = torch.tensor((0.5, 0.3, 0.2)), torch.tensor(p_fake)
    # Samples in exactly those proportions: the objective's means are then the expectations.
    real, fake = (torch.arange(3).repeat_interleave((10 * t).round().long()).view(-1, 1, 1, 1) for t in (p, q))
    table = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([table], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        Minimax().critic_loss(lambda x: table[x.flatten()], real, fake)["loss"].backward()
        optimizer.step()
    torch.testing.assert_close(table.sigmoid(), p / (p + q), rtol=0, atol=1e-4)
    middle = (p + q) / 2
    jsd = 0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum()
    value = Minimax().critic_loss(lambda x: table[x.flatten()], real, fake)["loss"]
    torch.testing.assert_close(value, 2 * math.log(2) - 2 * jsd, rtol=0, atol=1e-5)


@pytest.mark.parametrize("game", GAMES)
def test_real_and_fake_are_separate_batches(game: Minimax) -> None:
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x)
        return score(x)

    real, fake = pixels(1.0, 2.0), pixels(3.0, 4.0)
    game.critic_loss(critic, real, fake)
    assert len(seen) == 2 and seen[0] is real and seen[1] is fake
    seen.clear()
    game.generator_loss(critic, fake, real)
    assert len(seen) == 1 and seen[0] is fake


@pytest.mark.parametrize("game", GAMES)
def test_only_the_loss_carries_a_gradient(game: Minimax) -> None:
    weight = nn.Parameter(torch.ones(()))
    terms = game.critic_loss(lambda x: weight * x.flatten(), torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))
    assert {name for name, term in terms.items() if term.requires_grad} == {"loss"}
    assert all(term.ndim == 0 for term in terms.values())
    assert game.after_critic_step(score) is None


@pytest.mark.parametrize("game", GAMES)
def test_a_condition_reaches_the_critic(game: Minimax) -> None:
    def critic(x: Tensor, condition: Tensor) -> Tensor:
        return x.flatten() * condition

    fake, condition = torch.ones(2, 1, 1, 1), torch.tensor([1.0, 3.0])
    loss = game.generator_loss(critic, fake, condition=condition)["loss"]
    torch.testing.assert_close(
        loss, game.generator_loss(critic, fake * condition.view(2, 1, 1, 1), condition=torch.ones(2))["loss"]
    )
