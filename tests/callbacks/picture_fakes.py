"""A system that is right where it is told to be, and a data module without files."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kinoscope.contracts import DataSpec

CLASSES = ("moves left", "moves right", "costs $5 {")
MISTAKES = {4: 0, 8: 1, 15: 2}  # sample → the wrong class it is given; the truth is index % 3
TOTAL = 18


class Data(pl.LightningDataModule):
    """``TOTAL`` samples in the order of their index; pixels are stored as 2·(0…1) − 1."""

    def __init__(self, modality: str, multi_label: bool = False) -> None:
        super().__init__()
        shape = {"image": (1, 8, 8), "video": (3, 5, 8, 8)}[modality]
        self.spec = DataSpec("image" if modality == "image" else "video", shape, CLASSES, len(CLASSES), multi_label)
        self.preprocess = SimpleNamespace(denormalise=lambda x: (x + 1) / 2)
        index = torch.arange(TOTAL)
        label = index % 3
        if multi_label:
            label = nn.functional.one_hot(label, 3)
        level = torch.rand(TOTAL, *shape, generator=torch.Generator().manual_seed(0))
        if modality == "video":  # frame t is grey t/10, so that a frame can be told from its pixels
            level = torch.ones_like(level) * (torch.arange(5) / 10).view(1, 1, 5, 1, 1)
        key = "image" if modality == "image" else "clips"
        pixels = 2 * level - 1
        samples = {key: pixels if key == "image" else torch.stack([-pixels, pixels, -pixels], dim=1)}
        samples |= {"label": label, "index": index}
        self.samples: list[dict[str, Tensor]] = [{k: v[i] for k, v in samples.items()} for i in range(TOTAL)]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.samples, batch_size=6)  # type: ignore[arg-type]

    val_dataloader = test_dataloader = train_dataloader


class System(pl.LightningModule):
    """Offers every verb a picture may ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.norm = nn.BatchNorm2d(1)
        self.latest = {"loss": 0.5, "accuracy": 0.75, "gradient_norm": 3.0}
        self.asked: list[tuple[int, int | None, bool]] = []

    @property
    def clock(self) -> int:
        return self.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.weight**2

    def predict(self, batch: dict[str, Tensor]) -> Tensor:
        said = [MISTAKES.get(i, i % 3) for i in batch["index"].tolist()]
        return 0.1 + 0.7 * nn.functional.one_hot(torch.tensor(said), 3)  # 0.8, 0.1, 0.1

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        self.log("val/video_accuracy", 0.9, batch_size=len(batch["index"]))
        return {"probs": self.predict(batch), "label": batch["label"]}

    test_step = validation_step

    def reconstruct(self, batch: dict[str, Tensor]) -> Tensor:
        return self.norm(batch["image"]) * 0 + batch["image"].clamp(max=0)  # bright pixels come out at one half

    def sample(self, n: int, seed: int | None, condition: Tensor | None = None) -> Tensor:
        self.asked.append((n, seed, self.training))
        return self.norm(torch.zeros(n, 1, 8, 8))


Run = Callable[..., pl.Trainer]
