"""What a classifier says of test samples: a contact sheet to look at, and the confusion matrix to count.

Both read the ``probs`` (B, K) and ``label`` that the system's ``test_step`` returns, so nothing is predicted twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinoscope.callbacks.choice import Choice, keys_of
from kinoscope.callbacks.drawing import (
    HEADER,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    RIGHT,
    SMALL,
    TEXT,
    TITLE,
    WRONG,
    Sheet,
    extents,
    hand_over,
    log,
    percent,
    plural,
    publish,
    require,
    spec_of,
)
from kinoscope.callbacks.tiles import Frames, Tile, draw_tiles, encode, film, frames_of
from kinoscope.runs import agreement

if TYPE_CHECKING:
    from kinoscope.contracts import Batch

NAMED_CELLS = 20  # up to so many classes each cell of the matrix shows its count


class Evaluation(pl.Callback):
    """Follows a test, or a validation that was asked for by itself; never the validations of a training."""

    def begin(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        raise NotImplementedError

    def watch(self, trainer: pl.Trainer, system: pl.LightningModule, outputs: Any, batch: Batch) -> None:
        raise NotImplementedError

    def end(self, trainer: pl.Trainer, system: pl.LightningModule, subset: str) -> None:
        raise NotImplementedError

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        require(self, pl_module, "predict")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.begin(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.watch(trainer, pl_module, outputs, batch)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end(trainer, pl_module, "test")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.state.fn == "validate":
            self.watch(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.end(trainer, pl_module, "validation")


class TiledEvaluation(Evaluation):
    """One that shows some of the samples as tiles, which move where they are videos.

    Args:
        samples: how many at most.
        columns: tiles in a row.
        fps: frames per second of what moves.
    """

    def __init__(self, samples: int = 24, columns: int = 6, fps: float = 8.0) -> None:
        if samples < 1 or columns < 1:
            raise ValueError(f"samples and columns must be at least 1, got {samples} and {columns}")
        if fps < 1:
            raise ValueError(f"fps must be at least 1, got {fps}")
        self.samples = samples
        self.columns = columns
        self.fps = fps


class ContactSheet(TiledEvaluation):
    """Test samples with prediction, probability and truth, drawn as ``contact_sheet.png`` at the end of a test.

    Samples are spread over the classes and are the same in every run on the same data. A quarter of them are mistakes,
    where there are so many, and the picture says so. A video shows its centre frame and, below, frames from its first
    to its last, all of its middle view; in ``contact_sheet.mp4`` they move.
    """

    def begin(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        self._reset()

    def _reset(self) -> None:
        self._right: Choice[Tile] = Choice(self.samples)
        self._wrong: Choice[Tile] = Choice(self.samples)
        self._counts = torch.zeros(2, dtype=torch.int64)  # seen, right

    def watch(self, trainer: pl.Trainer, system: pl.LightningModule, outputs: Any, batch: Batch) -> None:
        probs, label = probs_and_label(outputs)
        probability, predicted = probs.max(dim=1)
        right = hits_of(predicted, label)
        self._counts += torch.tensor([len(right), int(right.sum())])
        names = spec_of(trainer, system).classes
        for i, key in enumerate(keys_of(batch["index"].cpu().numpy()).tolist()):
            first = truths_of(label[i])[0]
            choice = self._right if right[i] else self._wrong
            if choice.wants(first, key):
                choice.add(first, key, tile_of(trainer, batch, i, names, predicted[i], probability[i], label[i]))

    def end(self, trainer: pl.Trainer, system: pl.LightningModule, subset: str) -> None:
        seen, right = _summed(trainer, system, self._counts).tolist()
        kept_right, kept_wrong = agreement.gather(self._right), agreement.gather(self._wrong)
        if trainer.is_global_zero and seen:
            tiles = choose_tiles(Choice.of(kept_right), Choice.of(kept_wrong), self.samples)
            noun = spec_of(trainer, system).modality
            sheet = draw_contact_sheet(tiles, self.columns, noun, seen, right, subset)
            publish(trainer, sheet.picture(), "contact_sheet", final=True)
            if len(tiles[0].frames) > 1:
                show(trainer, film(sheet, tiles, self.columns), "contact_sheet", self.fps)
        self._reset()


class ConfusionMatrix(Evaluation):
    """The confusion matrix over all test samples, drawn as ``confusion_matrix.png`` at the end of a test."""

    def __init__(self) -> None:
        self._counts: Tensor | None = None

    def begin(self, trainer: pl.Trainer, system: pl.LightningModule) -> None:
        spec = spec_of(trainer, system)
        self._counts = None
        if spec.multi_label:
            log.warning("no confusion matrix: it is not defined for samples with several labels")
        else:
            self._counts = torch.zeros(spec.num_classes, spec.num_classes, dtype=torch.int64)

    def watch(self, trainer: pl.Trainer, system: pl.LightningModule, outputs: Any, batch: Batch) -> None:
        if self._counts is not None:
            self._counts += confusion(*probs_and_label(outputs))

    def end(self, trainer: pl.Trainer, system: pl.LightningModule, subset: str) -> None:
        if self._counts is None:
            return
        counts = _summed(trainer, system, self._counts).numpy()
        self._counts = None
        if trainer.is_global_zero and counts.sum():
            spec = spec_of(trainer, system)
            sheet = draw_confusion(counts, spec.classes, spec.modality, subset)
            publish(trainer, sheet.picture(), "confusion_matrix", final=True)


def confusion(probs: Tensor, label: Tensor) -> Tensor:
    """Counts of (truth, prediction) pairs from probs (B, K) and label (B,) int64: (K, K) int64, rows are the truth."""
    classes = probs.shape[1]
    pairs = label * classes + probs.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def choose_tiles(right: Choice[Tile], wrong: Choice[Tile], samples: int) -> list[Tile]:
    """At most ``samples`` tiles in the order of classes, a quarter of them mistakes (more where too few were right)."""
    mistakes = min(len(wrong), max(samples // 4, samples - len(right)))
    tiles = right.first(samples - mistakes) + wrong.first(mistakes)
    return sorted(tiles, key=lambda tile: (tile.label, not tile.right))


def draw_contact_sheet(
    tiles: Sequence[Tile], columns: int, noun: str, seen: int, right: int, subset: str = "test"
) -> Sheet:
    """The contact sheet of at least one tile.

    Args:
        tiles: in reading order; their pictures all have one shape.
        columns: tiles in a row.
        noun: what a sample is, "video" or "image".
        seen: how many samples were tested.
        right: how many of them were right.
        subset: where they are from, in words.
    """
    shown_right = sum(tile.right for tile in tiles)
    mistakes = len(tiles) - shown_right
    subtitle = f"{percent(right / seen)} of {plural(seen, noun)} right. Shown: {shown_right} right, {mistakes} wrong"
    if mistakes / len(tiles) > 1 - right / seen:
        subtitle += " (mistakes are over-represented)"
    return draw_tiles(tiles, columns, f"{subset.capitalize()} {noun}s and what the network says", subtitle)


def draw_confusion(counts: NDArray[np.int64], classes: Sequence[str], noun: str, subset: str = "test") -> Sheet:
    """The confusion matrix; shading is the share of a row, blue where right, vermillion where wrong.

    Args:
        counts: (K, K), rows are the truth.
        classes: K names.
        noun: what a sample is, "video" or "image".
        subset: where the samples are from, in words.
    """
    k = len(classes)
    few = k <= NAMED_CELLS
    size = TEXT if k <= 12 else SMALL if few else 4.6
    pitch = 0.62 if k <= 8 else 0.42 if few else 0.082  # of one cell, inches
    total, right = int(counts.sum()), int(np.trace(counts))
    per_row = counts.sum(axis=1)
    names = min(max(extents(classes, size)), 1.9)  # room for a class name
    recall = 0.62 if few else 0.0
    heads = names * 0.75 + 0.12 if few else names  # at the top they are turned by 45° or 90°
    left, top, side = MARGIN + max(names, 1.2) + 0.1, HEADER + heads + 0.1, k * pitch
    panel = 0.0 if few else 3.1
    width = max(left + side + max(recall, names * 0.75) + panel + MARGIN, 5.2)
    subtitle = f"{percent(right / total)} of {plural(total, f'{subset} {noun}')} right"
    subtitle += f". Numbers are {noun}s" if few else ""
    sheet = Sheet(top + side + MARGIN, "Confusion matrix", subtitle, width=width)

    share = counts / np.maximum(per_row, 1)[:, None]
    axes = sheet.axes(left, top, side, side)
    axes.imshow(_shades(share), extent=(0, k, k, 0), interpolation="nearest", aspect="auto")
    if few:  # a hairline of paper between the cells
        axes.hlines(range(1, k), 0, k, color=PAPER, linewidth=1.5)
        axes.vlines(range(1, k), 0, k, color=PAPER, linewidth=1.5)
        for i, j in zip(*np.nonzero(counts), strict=True):
            colour = PAPER if share[i, j] > 0.5 else INK
            axes.text(j + 0.5, i + 0.53, f"{counts[i, j]:,}", size=size, color=colour, ha="center", va="center")
    for i, name in enumerate(classes):
        base = top + (i + 0.5) * pitch + size * 0.005
        sheet.text(left - 0.08, base, name, size, align="right", room=names)
        head = sheet.text(left + (i + 0.5) * pitch, top - 0.07, name, size, room=names)
        head.set(rotation=45 if few else 90, rotation_mode="anchor")
        if not few:
            head.set(x=(left + (i + 0.5) * pitch + size * 0.005) / sheet.width)
        if few:
            value = percent(counts[i, i] / per_row[i]) if per_row[i] else "none"
            sheet.text(left + side + recall, base, value, size, RIGHT if per_row[i] else MUTED, "bold", align="right")
    sheet.text(left - 0.08, top - 0.07, "true ↓  predicted →", SMALL, MUTED, align="right")
    if few:
        sheet.text(left + side + recall, top - 0.07, "recall", SMALL, MUTED, align="right")
    else:
        _worst(sheet, counts, classes, noun, left + side + 0.4, top)
    return sheet


def _worst(sheet: Sheet, counts: NDArray[np.int64], classes: Sequence[str], noun: str, left: float, top: float) -> None:
    """Beside a matrix too large to read, its commonest mistakes in words."""
    sheet.text(left, top + 0.12, "Commonest mistakes", TITLE * 0.8, INK, "bold")
    mistakes = counts.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(mistakes, axis=None, kind="stable")[::-1]
    for place, cell in enumerate(order[:12]):
        truth, said = divmod(int(cell), len(classes))
        n = int(mistakes[truth, said])
        if not n:
            break
        base = top + 0.52 + place * 0.56
        sheet.text(left, base, classes[truth], TEXT + 1, INK, "bold", room=2.7)
        words = f"called {classes[said]}: {n} of {int(counts[truth].sum())}"
        sheet.text(left, base + 0.2, words, TEXT + 1, WRONG, room=2.9)


def _shades(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row shares (K, K) → RGB (K, K, 3): from a pale ground to blue on the diagonal, to vermillion elsewhere."""
    from matplotlib.colors import to_rgb

    ground, right, wrong = (np.array(to_rgb(colour)) for colour in ("#f1f3f6", RIGHT, WRONG))
    full = np.where(np.eye(len(share), dtype=bool)[..., None], right, wrong)
    strength = np.sqrt(share)[..., None]  # a single mistake among many must still be seen
    return ground + strength * (full - ground)


def _summed(trainer: pl.Trainer, system: pl.LightningModule, counts: Tensor) -> Tensor:
    """Counts over all ranks; every rank has to call this."""
    return cast(Tensor, trainer.strategy.reduce(counts.to(system.device), reduce_op="sum")).cpu()


def probs_and_label(outputs: Any) -> tuple[Tensor, Tensor]:
    """On the CPU, from what ``test_step`` returned: probs (B, K), label (B,) or (B, K)."""
    results = cast(Mapping[str, Tensor], outputs)
    return results["probs"].detach().float().cpu(), results["label"].cpu()


def hits_of(predicted: Tensor, label: Tensor) -> Tensor:
    """(B,) bool: the best class is the true one, or one of the true ones."""
    return predicted == label if label.ndim == 1 else label.gather(1, predicted[:, None])[:, 0].bool()


def truths_of(label: Tensor) -> list[int]:
    """The true classes in one sample's label, () or (K,); −1 where there is none."""
    return [int(label)] if label.ndim == 0 else label.nonzero().flatten().tolist() or [-1]


def tile_of(
    trainer: pl.Trainer,
    batch: Batch,
    i: int,
    names: Sequence[str],
    predicted: Tensor,
    probability: Tensor,
    label: Tensor,
) -> Tile:
    """The ``i``-th sample of a batch and what was said of it.

    Args:
        trainer: knows the preprocessing, which is undone.
        batch: holds it.
        i: its position in the batch.
        names: of all classes.
        predicted: (), its best class.
        probability: (), of that class.
        label: () int64, or (K,) multi-hot.
    """
    truths = truths_of(label)
    return Tile(
        label=truths[0],
        truth=", ".join(names[truth] for truth in truths if truth >= 0) or "none",
        predicted=names[int(predicted)],
        probability=float(probability),
        right=int(predicted) in truths,
        frames=frames_of(trainer, batch, i),
        index=int(batch["index"][i]),
    )


def show(trainer: pl.Trainer, frames: Frames, name: str, fps: float) -> None:
    """Writes ``pictures/<name>.mp4`` in the run folder and hands it to the loggers; a failure is a warning."""
    path = Path(trainer.default_root_dir) / "pictures" / f"{name}.mp4"
    try:
        encode(frames, path, fps)
    except Exception as error:  # whatever the encoder throws, the run is worth more than its video
        log.warning("video %s was not written: %s", path, error)
        return
    hand_over(trainer, "log_video", key=f"videos/{name}", path=path)
