"""Small trainings that are run by one process, and by two ranks with half of every batch each.

    python rank_scenarios.py <folder>

runs all of them as the rank that the environment names, and leaves ``<folder>/rank<number>.pt``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from kinoscope.callbacks.predictions import ConfusionMatrix, ContactSheet
from kinoscope.callbacks.reconstructions import ReconstructionStrip
from kinoscope.contracts import DataSpec
from kinoscope.data.loading import KeyedBatchSampler, KeyedLoader
from kinoscope.objectives.adversarial import NonSaturating
from kinoscope.objectives.reconstruction import SquaredError
from kinoscope.runs import agreement
from kinoscope.runs.quiet import quiet
from kinoscope.systems.adversarial import Adversarial
from kinoscope.systems.autoencoder import Autoencoder
from kinoscope.systems.base import System
from kinoscope.systems.classification import Classification
from kinoscope.systems.window import NonFinite, Window

BATCH = 8  # of all ranks together
CLASSES = ("one", "two", "three")
SPEC = DataSpec("image", (1, 4, 4), CLASSES, 3)
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
adam = partial(torch.optim.Adam, lr=0.01)


class Source:
    """``n`` images of noise, and labels that have to do with them."""

    def __init__(self, n: int) -> None:
        self.image = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))
        self.label = (self.image.sum(dim=(1, 2, 3)) * 7).long() % 3

    def __len__(self) -> int:
        return len(self.image)

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, Tensor]:
        index = torch.tensor([index for _, index in keys])
        return {"image": self.image[index], "label": self.label[index], "index": index}


class Data(pl.LightningDataModule):
    """``train`` and ``held_out`` images, dealt out to the ranks as kinoscope's own data are."""

    def __init__(self, train: int = 96, held_out: int = 11, batch: int = BATCH) -> None:
        super().__init__()
        self.train, self.held_out, self.batch = Source(train), Source(held_out), batch
        self.spec = SPEC
        self.preprocess = SimpleNamespace(denormalise=lambda x: x)

    def _loader(self, source: Source) -> KeyedLoader:
        rank, size = self.trainer.global_rank, self.trainer.world_size  # type: ignore[union-attr]
        return KeyedLoader(source, KeyedBatchSampler(len(source), self.batch // size, rank=rank, world_size=size))

    def train_dataloader(self) -> KeyedLoader:
        return self._loader(self.train)

    def val_dataloader(self) -> KeyedLoader:
        return self._loader(self.held_out)

    test_dataloader = val_dataloader


class Recorder(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    name = version = ""  # type: ignore[assignment]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))


class Unordered(pl.Callback):
    """Does what torch can only do in whatever order it comes."""

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def perceptron(inputs: int, outputs: int, *norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), *norm, nn.Tanh(), nn.Linear(8, outputs))


class Codec(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = perceptron(16, 3), perceptron(3, 16)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        return self.decoder(code).view(-1, 1, 4, 4)


class Generator(nn.Module):
    latent_shape = (3,)
    latent_prior = "normal"

    def __init__(self, *norm: nn.Module) -> None:
        super().__init__()
        self.body = perceptron(3, 16, *norm)

    def forward(self, z: Tensor) -> Tensor:
        return self.body(z).view(-1, 1, 4, 4)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(1)


def classifier(**changes: Any) -> Classification:
    torch.manual_seed(0)
    return _known(Classification(perceptron(16, 3), **{"optimizer": sgd, "log_every": 4, **changes}))


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return _known(Autoencoder(Codec(), adam, SquaredError(), log_every=4))


def gan(*norm: nn.Module, **changes: Any) -> Adversarial:
    torch.manual_seed(0)
    players = Generator(*norm), Critic()
    options: dict[str, Any] = {"ema_decay": 0.9, "fixed_samples": 5, "seed": 3, "log_every": 4, **changes}
    return _known(Adversarial(*players, NonSaturating(), adam, adam, **options))


def _known(system: Any) -> Any:
    system.spec = SPEC
    return system


def trainer_of(ranks: int, folder: Path | None = None, strategy: Any = None, **options: Any) -> pl.Trainer:
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    several = {"strategy": strategy or DDPStrategy(), "devices": ranks} if ranks > 1 else {"devices": 1}
    return pl.Trainer(
        accelerator="cpu", enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        default_root_dir=folder, **{**plain, **several, **options},
    )  # fmt: skip


def fit(system: System, ranks: int, data: Data | None = None, **options: Any) -> dict[str, Any]:
    """Weights, buffers and what was logged, after a fit."""
    recorder = Recorder()
    trainer = trainer_of(ranks, logger=recorder, **{"max_steps": 6, "limit_val_batches": 0, **options})
    with quiet():
        trainer.fit(system, datamodule=data or Data())
    state = {name: _whole(value) for name, value in system.state_dict().items() if "mean" not in name.partition(".")[0]}
    return {"weights": state, "rows": recorder.rows, "clock": system.clock}


def _whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()  # type: ignore[operator]


def train_autoencoder(ranks: int, folder: Path) -> dict[str, Any]:
    return fit(autoencoder(), ranks, limit_val_batches=None, val_check_interval=3)


def train_classifier(ranks: int, folder: Path) -> dict[str, Any]:
    return fit(classifier(), ranks)


def accumulate_classifier(ranks: int, folder: Path) -> dict[str, Any]:
    return fit(classifier(), ranks, Data(batch=BATCH // 2), accumulate_grad_batches=2)


def train_gan(ranks: int, folder: Path) -> dict[str, Any]:
    return fit(gan(), ranks, max_steps=3, max_epochs=1, limit_val_batches=None, val_check_interval=3)


def accumulate_gan(ranks: int, folder: Path) -> dict[str, Any]:
    system = gan(critic_steps=2)
    system.take_over(2, None, None)
    return fit(system, ranks, Data(batch=BATCH // 2))


def clip_gan(ranks: int, folder: Path) -> dict[str, Any]:
    system = gan()
    system.take_over(1, 0.01, "norm")
    return fit(system, ranks)


def normalised_gan(ranks: int, folder: Path) -> dict[str, Any]:
    return fit(gan(nn.BatchNorm1d(8)), ranks, max_steps=3, limit_val_batches=None, val_check_interval=3)


def uneven_batch(ranks: int, folder: Path) -> dict[str, Any]:
    """Seven samples: four on one rank, three on the other."""
    return fit(classifier(log_every=1), ranks, Data(train=7), max_steps=1)


def test_classifier(ranks: int, folder: Path) -> dict[str, Any]:
    system = classifier()
    folder = folder / "pictures-of-a-test"
    trainer = trainer_of(ranks, folder, callbacks=[ContactSheet(samples=6), ConfusionMatrix()])
    with quiet():
        metrics = trainer.test(system, datamodule=Data(batch=4), verbose=False)[0]
    return {"metrics": metrics, **pictures(folder, "contact_sheet", "confusion_matrix")}


def test_autoencoder(ranks: int, folder: Path) -> dict[str, Any]:
    folder = folder / "pictures-of-a-code"
    trainer = trainer_of(ranks, folder, callbacks=[ReconstructionStrip(samples=5)])
    with quiet():
        metrics = trainer.test(autoencoder(), datamodule=Data(batch=4), verbose=False)[0]
    return {"metrics": metrics, **pictures(folder, "reconstructions")}


def pictures(folder: Path, *names: str) -> dict[str, bytes]:
    files = [folder / "pictures" / f"{name}.png" for name in names]
    agreement.gather(None)  # rank 0 has written them
    return {file.stem: file.read_bytes() for file in files}


class Breaking(Classification):
    """The last rank's loss is no number from its third batch on."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 2 and self.global_rank == self.trainer.world_size - 1:
            self.window._rows[batch_idx][0] = torch.nan
        return loss


def break_down(ranks: int, folder: Path) -> dict[str, Any]:
    try:
        fit(_known(Breaking(perceptron(16, 3), sgd, log_every=4)), ranks)
    except NonFinite as error:
        return {"said": str(error)}
    return {"said": ""}


def window(ranks: int, folder: Path) -> dict[str, Any]:
    """Rank r sees 1/3 + r over r + 1 samples, in a window that goes through a checkpoint in its middle."""
    made = Window(2)
    rank = agreement.rank()
    made.add(1, {"loss": torch.tensor(1 / 3 + rank)}, count=rank + 1)
    resumed = Window(2)
    resumed.load_state_dict(made.state_dict())
    for each in (made, resumed):
        each.add(2, {"loss": torch.tensor(0.1 * rank)}, count=rank + 1)
    return {"straight": made.take(), "resumed": resumed.take()}


def shard_classifier(ranks: int, folder: Path) -> dict[str, Any]:
    return fit(classifier(), ranks, strategy=_sharding(ranks))


def shard_autoencoder(ranks: int, folder: Path) -> dict[str, Any]:
    return fit(autoencoder(), ranks, strategy=_sharding(ranks), limit_val_batches=None, val_check_interval=3)


def shard_gan(ranks: int, folder: Path) -> dict[str, Any]:
    return fit(gan(), ranks, strategy=_sharding(ranks))


def _sharding(ranks: int) -> Any:
    return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)


SCENARIOS: Sequence[Callable[[int, Path], dict[str, Any]]] = (
    train_classifier, accumulate_classifier, train_gan, accumulate_gan, clip_gan, normalised_gan, uneven_batch,
    test_classifier, test_autoencoder, break_down, window, shard_classifier, shard_autoencoder, shard_gan,
)  # fmt: skip


def main(folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    ranks = int(os.environ["WORLD_SIZE"])
    results: dict[str, dict[str, Any]] = {}
    with agreement.joined(trainer_of(ranks), classifier()):
        for scenario in SCENARIOS:
            try:
                results[scenario.__name__] = scenario(ranks, folder)
            except Exception as error:  # the others are still worth looking at
                results[scenario.__name__] = {"error": f"{type(error).__name__}: {error}"}
    torch.save(results, folder / f"rank{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
