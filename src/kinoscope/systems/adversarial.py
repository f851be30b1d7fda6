"""Two players, two optimizers, one clock.

Lightning's ``global_step`` counts every ``optimizer.step()`` it sees: with two optimizers it runs twice as fast as the
training, and ``max_steps``, checkpoints and every x-axis with it. Here only the generator steps through
``self.optimizers()``; the critic steps through the strategy, below that counter. So ``global_step`` is the number of
generator updates, which is also this system's ``clock``. Every gradient goes through ``self.manual_backward`` and every
step through the precision plugin, so that loss scaling holds for both players.

Over several devices each player's gradients are averaged once, right before its step. DDP would wait in every backward
pass for the gradients of both players, or search each graph for those that do not come; so its reducer is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from lightning.pytorch.utilities import GradClipAlgorithmType
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from kinoscope.contracts import AdversarialObjective, Batch, Critic, Generator
from kinoscope.data.draws import latent
from kinoscope.systems import ranks
from kinoscope.systems.base import OptimizerFactory, System, trainable

FIXED_LATENT_STEP = 2**40  # beyond any training step, so that no batch shares these draws
VALIDATION_LATENT_STEP = 2**41
AHEAD = 16  # steps whose latents are drawn at once: their number costs little, the call a twentieth of a small step


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
        log_every: critic updates per logging window.

    Attributes:
        accumulate: batches per critic update; the generator's update then takes as many batches of noise. As with
            Lightning's own, the gradients of an epoch's last, incomplete update are divided by no less.
        clip: the greatest norm, or value, of each player's gradient.
    """

    fsdp: ClassVar[bool] = False  # a critic is called twice before one backward pass, and is frozen in between

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
        self.accumulate = 1
        self.clip: tuple[float, GradClipAlgorithmType] | None = None
        self._drawn: tuple[Tensor, ...] = ()
        self._drawn_for: tuple[int, ...] = ()
        self.register_buffer("ema_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("fixed_latent", self.draw(FIXED_LATENT_STEP, fixed_samples))
        self._critic_updates = 0  # with critic_steps > 1 more than the clock
        self._real: list[Tensor] = []  # the batches of the update that is being made
        self._critic_terms: list[dict[str, Tensor]] = []  # of each of them
        self._generator_terms: dict[str, Tensor] = {}  # of the last generator update
        self._parameters_of: dict[str, list[nn.Parameter]] = {}  # each player's that are trained
        self._sums: dict[str, Tensor] = {}
        self._evaluated = 0

    @property
    def entries(self) -> list[tuple[nn.Module, Sequence[str]]]:
        return [(self.generator, ("forward",)), (self.critic, ("forward",))]

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        for name, player in (("generator", self.generator), ("critic", self.critic)):
            self._parameters_of[name] = trainable(player)
        critic = self.critic_optimizer(self._parameters_of["critic"])
        return [self.generator_optimizer(self._parameters_of["generator"]), critic], []

    def take_over(self, accumulate: int, clip: float | None, algorithm: str | None) -> None:
        if accumulate < 1:
            raise ValueError(f"accumulate_grad_batches must be at least 1, got {accumulate}")
        if clip is not None and clip <= 0:
            raise ValueError(f"gradient_clip_val must be positive, got {clip}")
        if algorithm not in (None, *GradClipAlgorithmType):
            raise ValueError(f"gradient_clip_algorithm is norm or value, got {algorithm!r}")
        self.accumulate = accumulate
        self.clip = None if clip is None else (clip, GradClipAlgorithmType(algorithm or "norm"))

    def train(self, mode: bool = True) -> Adversarial:
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()  # its batch statistics are the generator's, copied; it never sees a training batch
        return self

    def draw(self, step: int | NDArray[np.int64], n: int, first: int = 0, every: int = 1) -> Tensor:
        """Latents of a step, or of each of several, for the positions first, first + every, … of the global batch.

        Returns:
            (*step.shape, n, *latent_shape).
        """
        shape, prior = self._player.latent_shape, self._player.latent_prior
        return self._here(latent(self.seed, step, first + every * np.arange(n), shape, prior))

    def _own(self, step: int, n: int, before: int = 0) -> Tensor:
        """This rank's share of a batch's latents: it has every ``world_size``-th sample, as the loaders deal them out.

        Args:
            step: of the draws.
            n: samples on this rank.
            before: samples on each rank in earlier batches of the same update.
        """
        ahead = AHEAD if self.accumulate == 1 else 1  # the batches of one update take turns with their positions
        block, row = divmod(step, ahead)
        if self._drawn_for != (block, n, before):
            size = self.trainer.world_size
            drawn = self.draw(block * ahead + np.arange(ahead), n, before * size + self.global_rank, size)
            self._drawn, self._drawn_for = drawn.unbind(), (block, n, before)
        return self._drawn[row]

    def _here(self, noise: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(noise)
        if self.device.type == "cuda":  # a copy from pageable memory would wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(self.device, cast(torch.dtype, self.dtype), non_blocking=True)

    @property
    def _player(self) -> Generator:
        return cast(Generator, self.generator)

    @property
    def _judge(self) -> Critic:
        return cast(Critic, self.critic)

    @property
    def between_updates(self) -> bool:
        return not self._real

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        real = batch["image"]
        self._critic_terms.append(self._critic_backward(real))
        self._real.append(real)
        if len(self._real) == self.accumulate or self.trainer.is_last_batch:
            self._update()

    def _update(self) -> None:
        """Steps the critic and, every ``critic_steps`` times, the generator against the critic as it then is."""
        generator, critic = cast(list[Any], self.optimizers())
        self._step_critic(critic.optimizer)
        self.objective.after_critic_step(self._judge)
        self._critic_updates += 1
        if self._critic_updates % self.critic_steps == 0:
            self._generator_terms = self._generator_backward()
            self._step_generator(generator)
        elif self._scaler is not None:
            self._scaler.update()
        counts = [len(real) for real in self._real]
        terms = _mean(self._critic_terms, counts)
        self._real.clear()
        self._critic_terms.clear()
        if self._generator_terms:
            self.observe({**_named("critic", terms), **_named("generator", self._generator_terms)}, sum(counts))

    def _critic_backward(self, real: Tensor) -> dict[str, Tensor]:
        # Two draws an update, one for each player (Algorithm 1 draws a fresh minibatch of noise for the generator).
        with torch.no_grad():
            fake = self.generator(self._own(2 * self._critic_updates, len(real), sum(map(len, self._real))))
        terms = self.objective.critic_loss(self._judge, real, fake)
        self._backward(terms["loss"])
        return terms

    def _generator_backward(self) -> dict[str, Tensor]:
        terms: list[dict[str, Tensor]] = []
        counts = [len(real) for real in self._real]
        with frozen(self._parameters_of["critic"]):
            for i, real in enumerate(self._real):
                fake = self.generator(self._own(2 * self._critic_updates - 1, len(real), sum(counts[:i])))
                terms.append(self.objective.generator_loss(self._judge, fake, real))
                self._backward(terms[-1]["loss"])
        return _mean(terms, counts)

    def _backward(self, loss: Tensor) -> None:
        with getattr(self.trainer.strategy, "block_backward_sync", nullcontext)():  # where there are several devices
            self.manual_backward(loss if self.accumulate == 1 else loss / self.accumulate)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """Of 16-bit training; the precision plugin's."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _step_critic(self, optimizer: Optimizer) -> None:
        """A step below Lightning's counter."""
        ranks.average_gradients(self._parameters_of["critic"])
        scaler = self._scaler
        if scaler is None:
            self.trainer.strategy.optimizer_step(optimizer, _nothing, model=self)
        else:  # as the plugin does, but for the scale: the generator's step adjusts it, once for both players
            scaler.unscale_(optimizer)
            self.trainer.precision_plugin._after_closure(self, optimizer)
            scaler.step(optimizer)
        forget_gradients(self._parameters_of["critic"])

    def _step_generator(self, optimizer: Any) -> None:
        ranks.average_gradients(self._parameters_of["generator"])
        optimizer.step()
        forget_gradients(self._parameters_of["generator"])
        if self.ema is not None:
            self._update_ema(self.ema)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clips, after the precision plugin has undone its scaling and callbacks have seen the gradients."""
        if self.clip is not None:
            self.trainer.precision_plugin.clip_gradients(optimizer, *self.clip)

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
            noise = self._here(latent(seed, 0, np.arange(n), shape, prior))
        network = self.ema if self.ema is not None else self.generator
        training = network.training
        network.eval()
        try:
            return network(noise)
        finally:
            network.train(training)

    def on_validation_start(self) -> None:
        self._drawn_for = ()
        # Batch statistics are each rank's own in training; all ranks judge the generator that will be saved.
        ranks.copy_from_first(self.buffers())

    def on_test_start(self) -> None:
        self.on_validation_start()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        real = batch["image"]
        fake = self.generator(self._own(VALIDATION_LATENT_STEP + batch_idx, len(real)))
        # A penalty takes gradients, which tensors of inference mode cannot; for its input only, not for the critic.
        with torch.inference_mode(False), torch.enable_grad(), frozen(trainable(self.critic)):
            terms = self.objective.critic_loss(self._judge, real.clone(), fake.clone())
        for name, value in _named("critic", terms).items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double() * len(real)
        self._evaluated += len(real)

    test_step = validation_step

    def conclude(self, stage: Literal["val", "test"]) -> None:
        names = sorted(self._sums)
        evaluated = torch.tensor(float(self._evaluated), dtype=torch.float64, device=self.device)
        totals = ranks.total(torch.stack([*(self._sums[name] for name in names), evaluated]))
        means = (totals[:-1] / totals[-1]).tolist()
        self.publish({f"{stage}/{name}": value for name, value in zip(names, means, strict=True)})
        self._sums, self._evaluated = {}, 0

    def on_train_start(self) -> None:
        self._real, self._critic_terms, self._drawn_for = [], [], ()  # of a fit that ended, maybe within an update
        self._generator_terms = {name: value.to(self.device) for name, value in self._generator_terms.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["adversarial"] = {
            "critic_updates": self._critic_updates,
            "generator_terms": self._over_ranks(self._generator_terms),
        }

    def _over_ranks(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over all ranks, rounded as the logging window would round them."""
        if not terms:
            return {}
        sums = ranks.total(torch.stack([value.detach().double() for value in terms.values()]))
        return dict(zip(terms, (sums / ranks.count()).float(), strict=True))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["adversarial"]
        self._critic_updates, self._generator_terms = state["critic_updates"], state["generator_terms"]


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """None of ``parameters``, which all take gradients outside, takes one inside."""
    for parameter in parameters:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad = True


def forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """What ``zero_grad`` of their optimizer comes to, without a hundredth of a small step that it takes for it."""
    for parameter in parameters:
        parameter.grad = None


def _nothing() -> None:
    """What is left to do in an optimizer's closure when the gradients are there."""


def _mean(terms: Sequence[Mapping[str, Tensor]], counts: Sequence[int]) -> dict[str, Tensor]:
    """The terms of an update from those of its batches, weighted by their samples."""
    if len(terms) == 1:
        return dict(terms[0])
    total = sum(counts)
    return {
        name: torch.stack(
            [part[name].detach() * (count / total) for part, count in zip(terms, counts, strict=True)]
        ).sum()
        for name in terms[0]
    }


def _named(player: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The loss under its player's name; other terms are named by the objective."""
    return {f"{player}_loss" if name == "loss" else name: value for name, value in terms.items()}
