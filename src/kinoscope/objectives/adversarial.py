"""The two games of the first GAN paper.

Goodfellow, Pouget-Abadie, Mirza, Xu, Warde-Farley, Ozair, Courville, Bengio, "Generative Adversarial Nets", NIPS 2014,
arXiv 1406.2661. With the critic's logit a, D(x) = σ(a), log D = −softplus(−a) and log(1 − D) = −softplus(a), so that no
logarithm of a rounded probability is ever taken.

Both losses call the critic on one kind of image at a time: its batch normalisation then never mixes real and fake. In
the critic's step the caller detaches the fakes.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus

from kinoscope.objectives.precision import full


class Minimax:
    """min_G max_D V = E log D(x) + E log(1 − D(G(z))) (eq. 1): the critic minimises −V, the generator V's second term.

    At the best critic −V = 2 log 2 − 2 JSD(data, generator); at equal distributions it is 2 log 2. Once the critic
    rejects the fakes (a ≪ 0), the generator's gradient −σ(a) dies: the reason for the game below.
    """

    def critic_loss(
        self, critic: Callable[..., Tensor], real: Tensor, fake: Tensor, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images real and fake (B, C, H, W), fake detached → ``loss`` = −V in nats, and the means of D on either."""
        on_real, on_fake = _logits(critic, real, condition), _logits(critic, fake, condition)
        return {
            "loss": softplus(-on_real).mean() + softplus(on_fake).mean(),
            "critic_real": on_real.detach().sigmoid().mean(),
            "critic_fake": on_fake.detach().sigmoid().mean(),
        }

    def generator_loss(
        self, critic: Callable[..., Tensor], fake: Tensor, real: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images fake (B, C, H, W) → ``loss`` = E log(1 − D(G(z))) in nats, at most 0."""
        return {"loss": -softplus(_logits(critic, fake, condition)).mean()}

    def after_critic_step(self, critic: Callable[..., Tensor]) -> None:
        """Nothing: the game puts no bound on the critic's weights."""


class NonSaturating(Minimax):
    """The critic of ``Minimax`` and a generator that maximises E log D(G(z)) (section 3), its gradient σ(a) − 1."""

    def generator_loss(
        self, critic: Callable[..., Tensor], fake: Tensor, real: Tensor | None = None, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Images fake (B, C, H, W) → ``loss`` = −E log D(G(z)) in nats, at least 0."""
        return {"loss": softplus(-_logits(critic, fake, condition)).mean()}


def _logits(critic: Callable[..., Tensor], x: Tensor, condition: Tensor | None) -> Tensor:
    """The critic's logits (B,), in float32 at least; a condition is handed on to a critic that is built for one."""
    return full(critic(x) if condition is None else critic(x, condition))
