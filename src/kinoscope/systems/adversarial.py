"""Two players, two optimizers, one clock.

Lightning's ``global_step`` counts every ``optimizer.step()`` it sees: with two optimizers it runs twice as fast as the
training, and ``max_steps``, checkpoints and every x-axis with it. Here only the generator steps through
``self.optimizers()``; the critic steps through the strategy, below that counter. So ``global_step`` is the number of
generator updates, which is also this system's ``clock``. Every gradient goes through ``self.manual_backward`` and every
step through the precision plugin, so that DDP averages and loss scaling hold for both players.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kinoscope.contracts import AdversarialObjective, Batch, Critic, Generator
from kinoscope.data.draws import latent
from kinoscope.systems.base import OptimizerFactory, System

FIXED_LATENT_STEP = 2**40  # beyond any training step, so that no batch shares these draws
VALIDATION_LATENT_STEP = 2**41


class Adversarial(System):
    """Algorithm 1 of Goodfellow et al. 2014: ``critic_steps`` critic updates, then one generator update.

    Args:
        generator: latent (B, *latent_shape) → image (B, C, H, W).
        critic: image → logit (B,).
        objective: the two losses (`kinoscope.contracts.AdversarialObjective`).
        generator_optimizer: makes the generator's optimizer.
        critic_optimizer: makes the critic's optimizer.
        critic_steps: critic updates (batches) per generator update.
        ema_decay: decay of an exponential moving average of the generator, used for sampling; None keeps none.
        fixed_samples: how many latents are drawn once and kept in the checkpoint, for comparable sample grids.
        seed: all latent noise is a function of (seed, step, position in the global batch).
        log_every: batches per logging window.
    """

    ema_updates: Tensor
    fixed_latent: Tensor

    def __init__(
        self,
        generator: nn.Module,
        critic: nn.Module,
        objective: AdversarialObjective,
        generator_optimizer: OptimizerFactory,
        critic_optimizer: OptimizerFactory,
        critic_steps: int = 1,
        ema_decay: float | None = None,
        fixed_samples: int = 64,
        seed: int = 0,
        log_every: int = 20,
    ) -> None:
        super().__init__(log_every=log_every)
        if critic_steps < 1:
            raise ValueError(f"critic_steps must be at least 1, got {critic_steps}")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, got {ema_decay}")
        self.automatic_optimization = False
        self.generator = generator
        self.critic = critic
        self.objective = objective
        self.generator_optimizer = generator_optimizer
        self.critic_optimizer = critic_optimizer
        self.critic_steps = critic_steps
        self.ema_decay = ema_decay
        self.seed = seed
        self.ema = copy.deepcopy(generator).requires_grad_(False).eval() if ema_decay is not None else None
        self.register_buffer("ema_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fixed_latent", self.draw(FIXED_LATENT_STEP, fixed_samples))
        self._batches = 0  # batches trained on; with critic_steps > 1 more than the clock
        self._generator_terms: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._evaluated = 0

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        critic = self.critic_optimizer(self.critic.parameters())
        return [self.generator_optimizer(self.generator.parameters()), critic], []

    def train(self, mode: bool = True) -> Adversarial:
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()  # its batch statistics are the generator's, copied; it never sees a training batch
        return self

    def draw(self, step: int, n: int, first: int = 0) -> Tensor:
        """Latents (n, *latent_shape) of ``step``, for positions ``first`` … ``first + n − 1`` of the global batch."""
        shape, prior = self._player.latent_shape, self._player.latent_prior
        return self._here(latent(self.seed, step, np.arange(first, first + n), shape, prior))

    def _here(self, noise: np.ndarray) -> Tensor:
        return torch.from_numpy(noise).to(self.device, cast(torch.dtype, self.dtype))

    @property
    def _player(self) -> Generator:
        return cast(Generator, self.generator)

    @property
    def _judge(self) -> Critic:
        return cast(Critic, self.critic)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        real = batch["image"]
        first = self.global_rank * len(real)
        optimizer = cast(list[Any], self.optimizers())
        # Two draws a batch, one for each player (Algorithm 1 draws a fresh minibatch of noise for the generator).
        critic_noise = self.draw(2 * self._batches, len(real), first)
        terms = self._critic_step(optimizer[1], real, critic_noise)
        self._batches += 1
        if self._batches % self.critic_steps == 0:
            generator_noise = self.draw(2 * self._batches - 1, len(real), first)
            self._generator_terms = self._generator_step(optimizer[0], real, generator_noise)
        if self._generator_terms:
            kept = {name: value.to(self.device) for name, value in self._generator_terms.items()}  # of a checkpoint
            self.observe({**_named("critic", terms), **_named("generator", kept)})

    def _critic_step(self, optimizer: Any, real: Tensor, noise: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.generator(noise)
        terms = self.objective.critic_loss(self._judge, real, fake)
        optimizer.zero_grad()
        self.manual_backward(terms["loss"])
        # Below Lightning's step counter, through the precision plugin's loss scaler.
        self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None, model=self)
        self.objective.after_critic_step(self._judge)
        return terms

    def _generator_step(self, optimizer: Any, real: Tensor, noise: Tensor) -> dict[str, Tensor]:
        with frozen(self.critic):
            terms = self.objective.generator_loss(self._judge, self.generator(noise), real)
            optimizer.zero_grad()
            self.manual_backward(terms["loss"])
        optimizer.step()
        if self.ema is not None:
            self._update_ema(self.ema)
        return terms

    @torch.no_grad()
    def _update_ema(self, ema: nn.Module) -> None:
        assert self.ema_decay is not None
        averaged: list[Tensor] = list(ema.parameters())
        current: list[Tensor] = list(self.generator.parameters())
        torch._foreach_lerp_(averaged, current, 1 - self.ema_decay)
        for kept, buffer in zip(ema.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(buffer)
        self.ema_updates += 1

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None, condition: Tensor | None = None) -> Tensor:
        """Images (n, C, H, W) from the averaged generator if there is one, with frozen batch statistics.

        Args:
            n: how many.
            seed: draws latents of that seed; None takes the fixed ones kept in the checkpoint.
            condition: must be None; this system is unconditional.
        """
        if condition is not None:
            raise ValueError("this generator is unconditional: leave condition out")
        if seed is None:
            if n > len(self.fixed_latent):
                raise ValueError(f"{n} samples asked of {len(self.fixed_latent)} fixed latents: give a seed, or fewer")
            noise = self.fixed_latent[:n]
        else:
            shape, prior = self._player.latent_shape, self._player.latent_prior
            noise = torch.from_numpy(latent(seed, 0, np.arange(n), shape, prior)).to(
                self.device, cast(torch.dtype, self.dtype)
            )
        network = self.ema if self.ema is not None else self.generator
        training = network.training
        network.eval()
        try:
            return network(noise)
        finally:
            network.train(training)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        real = batch["image"]
        fake = self.generator(self.draw(VALIDATION_LATENT_STEP + batch_idx, len(real), self.global_rank * len(real)))
        terms = _named("critic", self.objective.critic_loss(self._judge, real, fake))
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach() * len(real)
        self._evaluated += len(real)

    test_step = validation_step

    def conclude(self, stage: Literal["val", "test"]) -> None:
        names = sorted(self._sums)
        totals = torch.stack(
            [self._sums[name] for name in names] + [torch.tensor(float(self._evaluated), device=self.device)]
        )
        totals = cast(Tensor, self.trainer.strategy.reduce(totals, reduce_op="sum"))
        means = (totals[:-1] / totals[-1]).tolist()
        self.publish({f"{stage}/{name}": value for name, value in zip(names, means, strict=True)})
        self._sums, self._evaluated = {}, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["adversarial"] = {
            "batches": self._batches,
            "generator_terms": {name: value.detach() for name, value in self._generator_terms.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["adversarial"]
        self._batches, self._generator_terms = state["batches"], state["generator_terms"]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of ``module`` takes a gradient inside."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _named(player: str, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loss under its player's name; other terms are named by the objective."""
    return {f"{player}_loss" if name == "loss" else name: value for name, value in terms.items()}
