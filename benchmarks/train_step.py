"""A training step of kinoscope against a plain torch loop with the same networks, optimizers and batches.

    python benchmarks/train_step.py [--seconds 60] [--batch-size N]

    c3d_small_step     experiment=video/c3d_small: Classification
    dcgan_small_step   experiment=gan/dcgan_small: Adversarial
    mlp_gan_step       the same with two perceptrons and ten logged terms: a step of about 3 ms, nearly all of it calls

A ratio is the time of our step over the time of the plain one: 1 is a Trainer that costs nothing, less is better.

Ours is what ``python -m train`` runs: the experiment's system in the Trainer that the verb builds, with its checkpoint
callback, progress, learning-rate monitor, metrics.csv, logging window and guard against non-finite losses; without
pictures and W&B. Plain is what one would write by hand for the same result: forward, backward, step, and nothing else.
Of a GAN both compute the objective's terms and freeze the critic in the generator's step; ours also logs all terms.

One step is counted from the moment a batch is handed over to the moment the next one is asked for. Both take the same
float batches, which lie in memory: loading and preprocessing are in neither (video_pipeline.py measures them), nor are
validation and checkpoints. Both loops alternate within one fit: some steps of ours, then as many plain ones, so that
whatever else the machine does meets both. A round is as long as our logging window, so that each pays for one: the 20
steps of the default for DCGAN, 2 for C3D, whose steps are long. A first round is not counted.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinoscope.config.compose import compose_checked, plain
from kinoscope.contracts import Batch
from kinoscope.objectives.adversarial import NonSaturating
from kinoscope.runs.build import build_callbacks, build_datamodule, build_system, build_trainer
from kinoscope.runs.checkpoints import AtomicCheckpointIO
from kinoscope.runs.folder import RunFolder
from kinoscope.runs.interrupt import StopRequest
from kinoscope.runs.loggers import MetricsFile
from kinoscope.runs.quiet import quiet
from kinoscope.systems.adversarial import Adversarial
from kinoscope.systems.base import System
from kinoscope.systems.classification import Classification
from timing import parser, print_ratios, rounds, show, spread

BATCHES = 2  # different ones in memory
Step = Callable[[Batch], None]

EXPERIMENTS: dict[str, list[str]] = {
    "c3d_small_step": [
        "experiment=video/c3d_small",
        "model.log_every=2",
        "data.groups=8",
        "data.clips_per_group=2",
        "callbacks.contact_sheet=null",
        "callbacks.confusion_matrix=null",
        "callbacks.mistakes=null",
    ],
    "dcgan_small_step": ["experiment=gan/dcgan_small", "model.log_every=20", "callbacks.samples=null"],
    "mlp_gan_step": [
        "experiment=gan/dcgan_small",
        "model.log_every=20",
        "callbacks.samples=null",
        "~model.generator",
        "+model.generator={_target_: train_step.Generator}",
        "~model.critic",
        "+model.critic={_target_: train_step.Critic}",
        "model.objective._target_=train_step.TenTerms",
    ],
}
ALL = [
    "logger=csv",
    "callbacks.learning_curves=null",
    "callbacks.timing.warn_above=1",  # the plain loop runs where ours asks for data
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.max_steps=-1",
    "trainer.limit_val_batches=0",
    "trainer.log_every_n_steps=${model.log_every}",
    "data.workers=0",
]


PIXELS, HIDDEN, LATENT = 32 * 32, 128, 32  # of the perceptrons


class Generator(nn.Module):
    """Latent (B, LATENT) → image (B, 1, 32, 32)."""

    latent_shape: tuple[int, ...] = (LATENT,)
    latent_prior = "uniform"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z).tanh().view(-1, 1, 32, 32)


class Critic(nn.Module):
    """Image (B, 1, 32, 32) → logit (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.LeakyReLU(0.2), nn.Linear(HIDDEN, HIDDEN), nn.LeakyReLU(0.2),
            nn.Linear(HIDDEN, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1)).squeeze(1)


class TenTerms(NonSaturating):
    """The game with seven critic terms and three generator terms, as an objective with penalties would have."""

    def critic_loss(self, critic: Any, real: Tensor, fake: Tensor, condition: Any = None) -> dict[str, Tensor]:
        terms = super().critic_loss(critic, real, fake, condition)
        more = ("real_loss", "fake_loss", "penalty", "drift")
        return {**terms, **dict.fromkeys(more, terms["critic_real"])}

    def generator_loss(self, critic: Any, fake: Tensor, real: Any = None, condition: Any = None) -> dict[str, Tensor]:
        terms = super().generator_loss(critic, fake, real, condition)
        return {**terms, "fooled": terms["loss"], "matching": terms["loss"]}


class PlainClassification:
    """A hand-written training step, with a copy of the system's network and an optimizer of its own."""

    def __init__(self, system: Classification) -> None:
        self.network = copy.deepcopy(system.network).train()
        self.optimizer = system.optimizer(self.network.parameters())

    def __call__(self, batch: Batch) -> None:
        loss = F.cross_entropy(self.network(batch["video"]), batch["label"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class PlainAdversarial:
    """Likewise: one critic update on detached fakes, then one generator update with the critic frozen."""

    def __init__(self, system: Adversarial) -> None:
        self.generator = copy.deepcopy(system.generator).train()
        self.critic = copy.deepcopy(system.critic).train()
        self.generator_optimizer = system.generator_optimizer(self.generator.parameters())
        self.critic_optimizer = system.critic_optimizer(self.critic.parameters())
        self.objective = system.objective

    def latent(self, n: int) -> Tensor:
        return torch.empty(n, *self.generator.latent_shape).uniform_(-1, 1)  # type: ignore[misc]

    def __call__(self, batch: Batch) -> None:
        real = batch["image"]
        with torch.no_grad():
            fake = self.generator(self.latent(len(real)))
        terms = self.objective.critic_loss(self.critic, real, fake)
        self.critic_optimizer.zero_grad()
        terms["loss"].backward()
        self.critic_optimizer.step()

        self.critic.requires_grad_(False)
        terms = self.objective.generator_loss(self.critic, self.generator(self.latent(len(real))), real)
        self.generator_optimizer.zero_grad()
        terms["loss"].backward()
        self.generator_optimizer.step()
        self.critic.requires_grad_(True)


def plain_step(system: System) -> Step:
    """The plain loop's step for this system."""
    if isinstance(system, Classification):
        return PlainClassification(system)
    assert isinstance(system, Adversarial)
    return PlainAdversarial(system)


class Alternating:
    """A loader that hands batches to the Trainer, and in between trains the plain loop on the same ones.

    Args:
        batches: float batches, taken in turn.
        step: of the plain loop.
        steps: of either loop in a round.
        deadline: no round begins that would end later, on the clock of ``time.monotonic``.

    Attributes:
        ours: milliseconds per step, one number per round.
        plain: likewise.
    """

    def __init__(self, batches: list[Batch], step: Step, steps: int, deadline: float) -> None:
        self.batches, self.step, self.steps, self.deadline = batches, step, steps, deadline
        self.ours: list[float] = []
        self.plain: list[float] = []

    def __len__(self) -> int:
        return 10**9  # an epoch as long as the time allows; without a length Lightning would fetch ahead

    def __iter__(self) -> Iterator[Batch]:
        batches = itertools.cycle(self.batches)
        for number in rounds(self.deadline, least=2):
            taken = list(itertools.islice(batches, self.steps))
            began = time.perf_counter()
            yield from taken
            between = time.perf_counter()
            for batch in taken:
                self.step(batch)
            ended = time.perf_counter()
            if number > 0:  # the first steps allocate memory and choose kernels
                self.ours.append(1e3 * (between - began) / self.steps)
                self.plain.append(1e3 * (ended - between) / self.steps)


class InMemory(pl.LightningDataModule):
    """Batches that need no loading, no transfer and no preprocessing."""

    def __init__(self, loader: Alternating, preprocess: Any) -> None:
        super().__init__()
        self.loader = loader
        self.preprocess = preprocess  # is part of every checkpoint

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch

    def train_dataloader(self) -> Alternating:
        return self.loader

    val_dataloader = train_dataloader  # never read; without one Lightning warns


def float_batches(datamodule: Any) -> list[Batch]:
    """The experiment's first training batches, ready for the network."""
    datamodule.prepare_data()
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    return [datamodule.on_after_batch_transfer(batch, 0) for batch in itertools.islice(loader, BATCHES)]


def fit(config: Any, folder: Path, system: System, datamodule: InMemory) -> None:
    """Trains as ``kinoscope.verbs.train`` does: the same Trainer, callbacks and files."""
    run = RunFolder.create(folder / "outputs", config.name, "benchmark")
    run.write_summary()
    metrics = MetricsFile(run.metrics_file)
    with StopRequest() as stop, quiet():
        context = {
            "run": run,
            "stop": stop,
            "metrics": metrics,
            "identity": {"signature": "benchmark", "config": plain(config)},
            "monitor": None,
            "mode": "min",
        }
        trainer = build_trainer(
            config, system, run.path, build_callbacks(config, context), [metrics], plugins=[AtomicCheckpointIO()]
        )
        trainer.fit(system, datamodule=datamodule)


def measure(experiment: list[str], folder: Path, deadline: float) -> Alternating:
    """Trains one experiment in both ways until the ``deadline``."""
    config = compose_checked("train", [*experiment, *ALL, f"data_dir={folder / 'data'}"])
    pl.seed_everything(config.seed, verbose=False)
    system, datamodule = build_system(config), build_datamodule(config)
    loader = Alternating(float_batches(datamodule), plain_step(system), config.model.log_every, deadline)
    fit(config, folder, system, InMemory(loader, datamodule.preprocess))
    return loader


def main() -> None:
    began = time.monotonic()
    options = parser(__doc__)
    options.add_argument("--batch-size", type=int, help="default: the experiment's own")
    args = options.parse_args()
    size = [] if args.batch_size is None else [f"data.batch_size={args.batch_size}"]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, experiment) in enumerate(EXPERIMENTS.items(), 1):
            deadline = began + args.seconds * number / len(EXPERIMENTS)
            times = measure([*experiment, *size], Path(folder), deadline)
            show(name, "ms per step", {"ours": times.ours, "plain torch": times.plain})
            ratios[name] = spread(times.ours)[1] / spread(times.plain)[1]
    print_ratios(ratios)


if __name__ == "__main__":
    main()
