"""What the DataModules of all modalities share: subsets, loaders, the position, checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn

from kinoscope.contracts import DataSpec
from kinoscope.data.keys import KeyedBatchSampler
from kinoscope.data.loading import BatchSource, KeyedLoader, Subset, position_of
from kinoscope.errors import KinoscopeError
from kinoscope.launch.processes import cores

if TYPE_CHECKING:
    from kinoscope.contracts import Batch


class KeyedDataModule(pl.LightningDataModule):
    """What the DataModules of all modalities share: subsets, loaders, the position, checks.

    A subclass fills ``subsets`` in ``setup`` and turns a batch of uint8 into floats in ``preprocessed``.

    Args:
        batch_size: samples per device and step.
        workers: processes per loader.
        validation: share of the training data that is held out, 0 ≤ validation < 1.
        seed: of the order and of every augmentation.
        faults: what a subclass has found wrong with its own arguments; all are raised together.

    Attributes:
        spec: what the data are.
        preprocess: from uint8 to the network's input.
        subsets: what ``setup`` has read.
        skipped: samples left out while working, since their files are bad: as ``batch_size`` counts them in training,
            entries of the subset otherwise. A checkpoint keeps the number.
        reasons: why, one sentence for each file.
    """

    spec: DataSpec
    preprocess: Any  # a Preprocess; each modality has its own

    def __init__(self, batch_size: int, workers: int, validation: float, seed: int, faults: Sequence[str] = ()) -> None:
        super().__init__()
        found = list(faults)
        if batch_size < 1:
            found.append(f"data.batch_size must be at least 1, got {batch_size}")
        if workers < 0:
            found.append(f"data.workers must be at least 0, got {workers}")
        if not 0 <= validation < 1:
            found.append(f"data.validation is a share, 0 <= validation < 1, got {validation}")
        if found:
            raise ValueError("; ".join(found))
        self.batch_size, self.workers, self.validation, self.seed = batch_size, workers, validation, seed
        self.subsets: dict[Subset, BatchSource] = {}
        self.skipped = 0
        self.reasons: set[str] = set()

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        trainer = self.trainer
        # The number is rank 0's; and a test of the best checkpoint is no return to its time.
        if trainer is None or (trainer.state.fn == TrainerFn.FITTING and trainer.global_rank == 0):
            self.skipped = state_dict["skipped"]

    def left_out(self) -> dict[str, int]:
        """What bad files have cost this process so far, for the run's summary; a modality may add to it."""
        return {"samples": self.skipped}

    def tally(self) -> list[str]:
        """Lines of a table that says what was prepared, after ``prepare_data``; a modality fills it."""
        return []

    def fingerprint(self) -> str:
        """Identity of the data, whatever folder they lie in: hex digits."""
        raise NotImplementedError

    def cures(self) -> list[str]:
        """What helps where training waits for these data, the best first; a modality adds its own before the last."""
        ranks = self.trainer.world_size if self.trainer is not None else 1
        workers = max(1, cores() // ranks)
        more = [f"data.workers={workers} (now {self.workers})"] if workers > self.workers else []
        return [*more, f"a larger data.batch_size (now {self.batch_size})"]

    def counts(self) -> dict[str, int]:
        """Samples per subset, after ``setup``."""
        return {name: len(source) for name, source in self.subsets.items()}

    def preprocessed(self, batch: Batch) -> Batch:
        """The batch with float samples and without ``draws``; runs on the device."""
        raise NotImplementedError

    def first_batch(self, subset: Subset, entries: int = 1) -> dict[str, Any]:
        """The batch of the subset's first entries, as a loader gives it."""
        entries = min(entries, len(self.subsets[subset]))
        loader = KeyedLoader(self.subsets[subset], KeyedBatchSampler(entries, entries))
        try:
            return next(iter(loader))
        finally:
            loader.close()

    def train_dataloader(self) -> KeyedLoader:
        trainer = self.trainer
        # overfit_batches means the same few batches in every epoch
        shuffle = trainer is None or not trainer.overfit_batches  # pyright: ignore[reportAttributeAccessIssue]
        loader = self._loader("train", shuffle, trainer)
        if trainer is not None:
            # A checkpoint from an epoch's end makes Lightning start the next one without asking for our state.
            loader.load_state_dict(position_of(trainer))
        return loader

    def val_dataloader(self) -> KeyedLoader:
        return self._loader("validation")

    def test_dataloader(self) -> KeyedLoader:
        return self._loader("test")

    def _loader(self, subset: Subset, shuffle: bool = False, trainer: pl.Trainer | None = None) -> KeyedLoader:
        rank, world_size, on_cuda = 0, 1, False
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            on_cuda = self.trainer.strategy.root_device.type == "cuda"
            if world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
                raise KinoscopeError("set trainer.use_distributed_sampler=false: these loaders share out the samples")
        source = self.subsets[subset]
        if 0 < len(source) < world_size:
            raise KinoscopeError(f"{world_size} devices cannot share {len(source)} {subset} samples; use fewer devices")
        size = self.samples_per_batch(subset)
        drop_last = shuffle and len(source) >= size * world_size
        sampler = self.sampler_of(subset, size, shuffle, drop_last, rank, world_size)
        position = None if trainer is None else lambda: position_of(trainer)
        return KeyedLoader(source, sampler, self.workers, position, pin_memory=on_cuda)

    def sampler_of(
        self, subset: Subset, batch_size: int, shuffle: bool, drop_last: bool, rank: int, world_size: int
    ) -> KeyedBatchSampler:
        """Which samples a loader's batches hold, see `KeyedBatchSampler`; a modality may have an order of its own."""
        return KeyedBatchSampler(len(self.subsets[subset]), batch_size, self.seed, shuffle, drop_last, rank, world_size)

    def samples_per_batch(self, subset: Subset) -> int:
        """Entries of the subset per batch: fewer than ``batch_size`` where one entry gives several samples."""
        return self.batch_size

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """On a CPU a batch is where it belongs; Lightning would go through all of it to find that out."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        sample = next(value for key, value in batch.items() if key in ("image", "video", "clips", "flow"))
        if self.preprocess.mean.device != sample.device:
            self.preprocess.to(sample.device)
        batch = self.preprocessed(batch)
        # Lightning has converted the batch to the trainer's precision before the transfer, while it was still uint8.
        return self.trainer.precision_plugin.convert_input(batch) if self.trainer is not None else batch

    def check_spec(self, shape: tuple[int, ...], classes: Sequence[str]) -> None:
        """Compares the first real sample, after preprocessing, with what the config promised the network."""
        if shape != self.spec.shape:
            raise KinoscopeError(f"data.spec promises samples of shape {self.spec.shape}, the first one is {shape}")
        if tuple(classes) != self.spec.classes:
            raise KinoscopeError(
                f"data.spec promises the classes {', '.join(self.spec.classes)}; the data have {', '.join(classes)}"
            )
